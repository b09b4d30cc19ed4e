"""Cross-entropy over scored slots alone, in chunks: the logits of a batch never exist."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from model.fp8 import HeadInFp8, Quantised
from model.layers import Initializer, VocabularyShard
from model.steady import steady_rows

LossKernel = Literal["auto", "torch", "triton"]
"""What makes loss and gradient of logits on a GPU: `triton` in one pass, `torch` in about ten;
`auto` is triton where it works."""

CPU_CHUNK_TOKENS = 256
GPU_CHUNK_TOKENS = 4096
GPU_CHUNK_BYTES = 1 << 30
STATES_AS_COLUMNS = range(4, 17)
"""Numbers of states whose logits MKL gives in about two thirds of the time if they stand on the
right of the weight, as columns; with fewer or more it is slower so."""


def usual_chunk_tokens(*, on_gpu: bool, num_rows: int, element_bytes: int) -> int:
    """Scored slots whose logits exist at once, where the configuration leaves it open.

    Each chunk reads the weight twice and updates its gradient, which GPUs feel below some thousand
    slots. There it is as many as have 1 GiB of logits, in the weight's type, and 4,096 at least.
    The memory that happens to be free has no say: ranks that share the vocabulary must agree, a run
    that goes on must round as before, and the planner must know.

    Args:
        on_gpu: whether the head is on one.
        num_rows: of the weight, or of a rank's part of it.
        element_bytes: of the weight's type.
    """
    if not on_gpu:
        return CPU_CHUNK_TOKENS
    fitting = GPU_CHUNK_BYTES // (num_rows * element_bytes)
    return max(GPU_CHUNK_TOKENS, fitting // 1024 * 1024)


class Loss(NamedTuple):
    """What the head returns.

    Attributes:
        total: [] sum over scored slots, nats, fp32. Divide by the global count.
        terms: [C] loss of each scored slot, fp32, without gradient; zero beyond `num_scored`.
    """

    total: Tensor
    terms: Tensor


class LinearCrossEntropy(nn.Module):
    """The head and its loss in one module.

    A tied weight is the embedding's own parameter. This module registers it too, so that ZeRO-3
    gathers it once per call and not once per chunk.

    Args:
        weight: [V, H], or a rank's rows of it.
        chunk_tokens: scored slots whose logits exist at once; None: `usual_chunk_tokens`.
        kernel: what makes loss and gradient of logits on a GPU; on a CPU torch does.
        shard: which rows, and what joins them; None if all.
        init: first values of a weight that is the head's own.

    Attributes:
        product: the weight in fp8 that is multiplied in its place, None for itself; whoever puts it
            there keeps it fresh (`model.fp8.multiply_in_fp8`).
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        chunk_tokens: int | None = None,
        kernel: LossKernel = "auto",
        shard: VocabularyShard | None = None,
        init: Initializer | None = None,
    ):
        super().__init__()
        self.weight = weight
        self.chunk_tokens = chunk_tokens
        self.kernel: LossKernel = kernel
        self.shard = shard
        self.init = init
        self.product: Quantised | None = None

    def forward(
        self,
        states: Float[Tensor, "C H"],
        targets: Int64[Tensor, "C"] | None = None,
        num_scored: int = 0,
    ) -> Loss | Float[Tensor, "C V"]:
        """Loss of the first `num_scored` states; the rest is padding of the static shape.

        Without targets, the logits of all states, or of a rank's part of the vocabulary: in a
        forward too, so that ZeRO-3 gathers the weight.

        Where the vocabulary is split, the loss is that of the whole one, and the gradient of the
        states is this rank's part of a sum over ranks. Nothing waits for the device.
        """
        if targets is None:
            return self.logits(states)
        weight = self.weight
        if not torch.is_grad_enabled():
            # An autograd function asks which inputs want gradients, not whether any are wanted.
            states, weight = states.detach(), weight.detach()
        chunk = self.chunk_tokens or usual_chunk_tokens(
            on_gpu=weight.is_cuda, num_rows=len(weight), element_bytes=weight.element_size()
        )
        total, terms = _ChunkedCrossEntropy.apply(
            states,
            weight,
            targets[:num_scored],
            chunk,
            self.shard,
            chosen_cross_entropy(self.kernel, weight.device),
            self.product,
        )
        return Loss(total, terms)

    def logits(self, states: Float[Tensor, "... H"]) -> Float[Tensor, "... V"]:
        """Logits in fp32, for generation."""
        if states.is_cpu and states.ndim == 2 and len(states) in STATES_AS_COLUMNS:
            return torch.mm(self.weight, states.t()).t().float()
        return torch.matmul(states, self.weight.t()).float()


CrossEntropy = Callable[..., Tensor]
"""Loss of a chunk of logits, and their gradient; see `cross_entropy_`."""


def chosen_cross_entropy(kernel: LossKernel, device: torch.device) -> CrossEntropy:
    """What is to be used on a device."""
    wants_triton = kernel == "triton" or (kernel == "auto" and why_no_triton(device) is None)
    if device.type != "cuda" or not wants_triton:
        return cross_entropy_
    from model.kernels import cross_entropy  # needs triton

    return cross_entropy.cross_entropy_


@functools.cache
def why_no_triton(device: torch.device) -> str | None:
    """Why our Triton kernels cannot run on a device, None if they can; the first call tries."""
    if device.type != "cuda":
        return "there is no GPU"
    try:
        row, target = torch.zeros(1, 16, device=device), torch.zeros(1, device=device).long()
        from model.kernels import cross_entropy  # needs triton

        cross_entropy.cross_entropy_(row, target, num_tokens=16, shard=None, gradient=True)
    except Exception as error:  # packages, compilers and drivers each raise their own
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def cross_entropy_(
    logits: Tensor,
    targets: Tensor,
    *,
    num_tokens: int,
    shard: VocabularyShard | None,
    gradient: bool,
) -> Tensor:
    """Loss of each row of a chunk of logits, and over them its gradient, softmax - onehot.

    This is what defines the numbers, and what runs on CPUs.

    Args:
        logits: [C, V] of the whole vocabulary, or of a rank's part; written over.
        targets: [C] tokens of the whole vocabulary.
        num_tokens: columns that are tokens; those beyond are padding and get no gradient.
        shard: which part the columns are, and what joins them; None if all.
        gradient: whether it is wanted; without, the logits are left as anything.

    Returns:
        [C] loss of each row, fp32.
    """
    exact = logits.float()
    exact[:, num_tokens:] = float("-inf")
    target, here = targets[:, None], None
    if shard is not None:
        target = target - shard.first
        here = (target >= 0) & (target < num_tokens)
        target = target.clamp(0, exact.shape[1] - 1)
    maxima = exact.amax(dim=1, keepdim=True)
    if shard is not None:
        maxima = shard.maximum(maxima)
    chosen = exact.gather(1, target)
    exponentials = exact.sub_(maxima).exp_()
    sums = exponentials.sum(dim=1, keepdim=True)
    if shard is not None:
        assert here is not None
        chosen = chosen.masked_fill(~here, 0.0)
        sums, chosen = shard.sum(torch.cat([sums, chosen], dim=1)).split(1, dim=1)
    if gradient:
        minus_one = -torch.ones_like(chosen) if here is None else -here.to(chosen.dtype)
        shares = exponentials.div_(sums).scatter_add_(1, target, minus_one)
        if shares is not logits:
            logits.copy_(shares)
    return (sums.log() + maxima - chosen).squeeze(1)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are computed in the forward, while a chunk's logits are at hand.

    d total / d logits = softmax - onehot needs nothing from upstream but a scalar factor, which
    the backward multiplies in.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        shard: VocabularyShard | None,
        cross_entropy: CrossEntropy,
        in_fp8: Quantised | None,
    ) -> tuple[Tensor, Tensor]:
        wants_states, wants_weight = ctx.needs_input_grad[:2]
        num_scored, num_rows = len(targets), len(weight)
        grad_states = torch.zeros_like(states) if wants_states else None
        grad_weight = None
        terms = torch.zeros(states.shape[0], dtype=torch.float32, device=states.device)
        if in_fp8 is None:
            products = HeadAsStored(states, weight, chunk=chunk)
        else:
            products = HeadInFp8(states, in_fp8, num_tokens=num_rows, chunk=chunk)
        for start in range(0, num_scored, chunk):
            stop = min(start + chunk, num_scored)
            terms[start:stop] = cross_entropy(
                products.logits(start, stop),
                targets[start:stop],
                num_tokens=num_rows if shard is None else shard.size,
                shard=shard,
                gradient=wants_states or wants_weight,
            )
            if grad_states is not None:
                products.of_states(grad_states[start:stop])
            if wants_weight:
                grad_weight = products.of_weight(grad_weight, is_only=num_scored <= chunk)
        if wants_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        ctx.save_for_backward(grad_states, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_total = grads[0]
        grad_states, grad_weight = ctx.saved_tensors
        if grad_states is not None:
            grad_states = grad_states * grad_total.to(grad_states.dtype)
        if grad_weight is not None:
            scaled = torch.empty_like(grad_weight, dtype=ctx.weight_dtype)
            # Of one dim, it counts when the type to compute in is chosen: fp32.
            grad_weight = torch.mul(grad_weight, grad_total.reshape(1, 1), out=scaled)
        return grad_states, grad_weight, *[None] * 5


class HeadAsStored:
    """The products of a head's chunks, one chunk after the other, in the weight's type.

    Args:
        states: [C, H].
        weight: [V, H].
        chunk: states whose logits exist at once.
    """

    def __init__(self, states: Tensor, weight: Tensor, *, chunk: int):
        self._states, self._weight = states, weight
        num_columns = len(weight)
        if weight.is_cuda:
            # Rows that begin at multiples of 16 bytes are read and multiplied faster.
            num_columns += -num_columns % 64
        # One for all chunks, of a size that does not change from batch to batch.
        self._buffer = weight.new_empty(min(chunk, len(states)), num_columns)

    def logits(self, start: int, stop: int) -> Tensor:
        """[c, V] of these states, on a GPU with columns beyond the tokens; to be written over."""
        wanted, room = stop - start, min(len(self._buffer), len(self._states) - start)
        rows = steady_rows(wanted, like=self._weight, room=room)
        self._part, padded = self._states[start : start + rows], self._buffer[:rows]
        self._logits = padded[:, : len(self._weight)]
        torch.mm(self._part, self._weight.t(), out=self._logits)
        self._logits[wanted:].zero_()  # as if written over with their gradient
        return padded[:wanted]

    def of_states(self, out: Tensor) -> None:
        """Writes the states' gradient; the logits were written over with theirs."""
        if len(out) == len(self._logits):
            torch.mm(self._logits, self._weight, out=out)
        else:
            out.copy_(torch.mm(self._logits, self._weight)[: len(out)])

    def of_weight(self, total: Tensor | None, *, is_only: bool) -> Tensor:
        """[V, H] the weight's gradient with that of chunks before; fp32 if there are several."""
        columns = self._logits.t()
        if is_only:
            return columns @ self._part
        if total is None:
            # bf16 sums over dozens of chunks would lose small terms: they are fp32.
            return _product(columns, self._part)
        _add_product(total, columns, self._part)
        return total


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product in fp32, summed in fp32 on a GPU."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product to a total in fp32."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += a @ b
