"""Attention inside documents that share sequences, each as if it were alone in one.

There is no mask: a slot's scores with other documents are never computed. On GPUs that is one
call of flash attention's variable-length kernels, elsewhere one call for each document. It is an
operator of its own, into which neither autograd nor a compiler looks: where documents lie changes
with every batch, and would be compiled anew each time.
"""

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from model.backend import Backend

_aten: Any = torch.ops.aten

FP32_BELOW_ROWS = 256
"""Documents so short are computed in fp32 on CPUs: there torch's backward in bf16 takes up to three
times as long for 128 rows, and as long for 256."""


def attend_within(
    qkv: Float[Tensor, "R A 3 D"],
    documents: Int32[Tensor, "N"],
    *,
    most_rows: int,
    backend: Backend,
) -> Float[Tensor, "R A D"]:
    """Causal attention of each document's rows among themselves.

    Args:
        qkv: queries, keys and values.
        documents: where they begin, see `Batch.documents`.
        most_rows: of a document, at most.
        backend: `math` does without flash attention; all others take it where it is there.
    """
    mixed, _ = _forward(qkv, documents, most_rows, backend)
    return mixed


@torch.library.custom_op("semicausal::attend_within", mutates_args=())
def _forward(qkv: Tensor, documents: Tensor, most_rows: int, backend: str) -> tuple[Tensor, Tensor]:
    """Also gives the logarithm of each row's sum, [A, R], where flash attention makes it."""
    if _has_varlen(qkv, backend):
        query, key, value = qkv.unbind(2)
        mixed, logarithms, *_ = _aten._flash_attention_forward(
            query, key, value, documents, documents, most_rows, most_rows, 0.0, True, False
        )
        return mixed, logarithms
    mixed, logarithms = _shaped(qkv, documents, most_rows, backend)
    order = _Order.of(documents)
    ordered = order.sort(qkv)
    for rows, shape in order.runs:
        query, key, value = _heads(ordered[rows], shape, backend)
        if _has_flash(qkv, backend):
            found, sums = _aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, True
            )
            _of_heads(logarithms[:, rows], shape).copy_(sums)
        else:
            found = _weights(query, key) @ value
        _laid_out(mixed[rows], shape).copy_(found)
    return order.restore(mixed), logarithms


@_forward.register_fake
def _shaped(qkv: Tensor, documents: Tensor, most_rows: int, backend: str) -> tuple[Tensor, Tensor]:
    R, A, _, D = qkv.shape
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return qkv.new_empty(R, A, D), qkv.new_empty(A, R, dtype=dtype)


@torch.library.custom_op("semicausal::attend_within_backward", mutates_args=())
def _backward(
    grad: Tensor,
    qkv: Tensor,
    documents: Tensor,
    mixed: Tensor,
    logarithms: Tensor,
    most_rows: int,
    backend: str,
) -> Tensor:
    """The gradient of `qkv`."""
    grad = grad.contiguous()
    if _has_varlen(qkv, backend):
        query, key, value = qkv.unbind(2)
        # Dropout's state, which nothing reads without dropout.
        state, unused = qkv.new_zeros(2, dtype=torch.uint64), qkv.new_empty(0)
        grads = _aten._flash_attention_backward(
            *(grad, query, key, value, mixed, logarithms),
            *(documents, documents, most_rows, most_rows, 0.0, True, state, unused),
        )
        return torch.stack(grads, dim=2)
    order = _Order.of(documents)
    grad, qkv, mixed = order.sort(grad), order.sort(qkv), order.sort(mixed)
    grad_qkv = torch.empty_like(qkv)
    for rows, shape in order.runs:
        query, key, value = _heads(qkv[rows], shape, backend)
        upstream = _laid_out(grad[rows], shape).to(query.dtype)
        if _has_flash(qkv, backend):
            grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
                upstream,
                *(query, key, value),
                _laid_out(mixed[rows], shape).to(query.dtype),
                _of_heads(logarithms[:, rows], shape),
                *(0.0, True),
            )
        else:
            grads = _plain_backward(upstream, query, key, value)
        for part, found in zip(grad_qkv[rows].unbind(2), grads, strict=True):
            _laid_out(part, shape).copy_(found)
    return order.restore(grad_qkv)


@_backward.register_fake
def _backward_shaped(grad: Tensor, qkv: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(qkv)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, documents, *ctx.how = inputs
    ctx.save_for_backward(qkv, documents, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    return _backward(grad, *ctx.saved_tensors, *ctx.how), None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _has_varlen(qkv: Tensor, backend: str) -> bool:
    """Whether there are kernels for documents of several lengths."""
    return (
        qkv.is_cuda
        and backend != "math"
        and qkv.dtype in (torch.bfloat16, torch.float16)
        and qkv.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(qkv.device) >= (8, 0)
    )


def _has_flash(qkv: Tensor, backend: str) -> bool:
    """Whether there is a flash kernel for one document."""
    return qkv.device.type == "cpu" and backend != "math"


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """[N, A, L, L], each row's adding up to one."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    return scores.masked_fill_(later, float("-inf")).softmax(-1)


def _plain_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    weights = _weights(query, key)
    grad_weights = grad @ value.mT
    surplus = grad_weights - (grad_weights * weights).sum(-1, keepdim=True)
    grad_scores = weights * surplus / math.sqrt(query.shape[-1])
    return grad_scores @ key, grad_scores.mT @ query, weights.mT @ grad


@dataclass(frozen=True)
class _Order:
    """Documents in an order that lets many be computed at once.

    Attributes:
        rows: [R] row that stands in each place; None where all stay.
        runs: rows of neighbours that are equally long, and how many by how many these are.
    """

    rows: Tensor | None
    runs: list[tuple[slice, tuple[int, int]]]

    @classmethod
    def of(cls, documents: Tensor) -> "_Order":
        """As they stand, or by length if that leaves less than half as many runs."""
        lengths, rows = documents.diff(), None
        found = lengths.tolist()
        if sum(1 for _ in groupby(found)) > 2 * len(set(found)):
            lengths, by_length = lengths.sort(stable=True)
            moved = documents[:-1][by_length] - (lengths.cumsum(0) - lengths)
            rows = moved.repeat_interleave(lengths)
            rows += torch.arange(len(rows), device=rows.device)
            found = lengths.tolist()
        runs: list[tuple[slice, tuple[int, int]]] = []
        stop = 0
        for length, equal in groupby(filter(None, found)):
            count = len(list(equal))
            start, stop = stop, stop + count * length
            runs.append((slice(start, stop), (count, length)))
        return cls(rows, runs)

    def sort(self, values: Tensor) -> Tensor:
        """Rows as they stand, in this order."""
        return values if self.rows is None else values.index_select(0, self.rows)

    def restore(self, values: Tensor) -> Tensor:
        """Rows in this order, as they stood."""
        if self.rows is None:
            return values
        return torch.empty_like(values).index_copy_(0, self.rows, values)


def _laid_out(rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """[R, A, D] as [documents, A, rows, D]."""
    return rows.unflatten(0, shape).transpose(1, 2)


def _of_heads(sums: Tensor, shape: tuple[int, int]) -> Tensor:
    """[A, R] as [documents, A, rows]."""
    return sums.unflatten(1, shape).transpose(0, 1)


def _heads(qkv: Tensor, shape: tuple[int, int], backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, [documents, A, rows, D] each, in the type to compute in."""
    query, key, value = (_laid_out(part, shape) for part in qkv.unbind(2))
    is_half = qkv.dtype in (torch.bfloat16, torch.float16)
    if is_half and (shape[1] < FP32_BELOW_ROWS or not _has_flash(qkv, backend)):
        return query.float(), key.float(), value.float()
    return query, key, value
