"""Matrix products in fp8 with one scale a tensor, for the inner layers of a decoder and its head.

Inputs and weights have e4m3, gradients e5m2; sums are fp32, results bf16. Weights are quantised
once a step, by their largest element; a layer's inputs and gradients by the largest of the step
before (delayed scaling), so that a cast needs no pass over its tensor in advance. The head's states
are scaled by their own, which is little to read beside the logits, whose gradient is 1 at most.

On CUDA `torch._scaled_mm` multiplies. Elsewhere its operands are multiplied in fp32: slow, and the
definition of the numbers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from model.layers import Linear

E4M3: Final = torch.float8_e4m3fn
E5M2: Final = torch.float8_e5m2

HEADROOM: Final = 2.0
"""How far a tensor may outgrow its largest element of the step before. It costs fp8 one of 15
(e4m3) or 30 (e5m2) powers of two at the small end."""

GRADIENT_FACTOR: Final = 2.0**15
"""Of the logits' gradient: all of it fits into e5m2, and bf16 loses nothing of it."""

LEAST_AMAX: Final = 1e-30
"""What is smaller altogether counts as zero: its scale would not be finite."""

DIVISOR: Final = 16
"""Of the dims of a product on tensor cores."""


def quantise(values: Tensor, amax: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values in fp8, and what to multiply them by; values beyond `amax` become as large as that.

    Args:
        values: of any shape and float type.
        amax: [] fp32, to be the largest number of the type.
        dtype: of fp8.
    """
    most = torch.finfo(dtype).max
    amax = amax.clamp(min=LEAST_AMAX)
    scaled = values.float() * (most / amax)
    return scaled.clamp(-most, most).to(dtype), amax / most


def multiply(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    *,
    bias: Tensor | None = None,
    fast: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """[m, k] x [k, n] -> [m, n] of fp8 operands, in bf16.

    `torch._scaled_mm` wants k and n to be multiples of 16, `a` in rows and `b` in columns.

    Args:
        a: its memory goes row by row.
        b: its memory goes column by column.
        scale_a: [] what to multiply `a` by.
        scale_b: the same of `b`.
        bias: [n] bf16, added before the result is rounded.
        fast: whether tensor cores may sum with fewer bits than fp32 has.
        out: [m, n] bf16 that the result is written to; None for memory of its own.
    """
    if a.is_cuda:
        return cast(Any, torch)._scaled_mm(
            a,
            b,
            scale_a=scale_a,
            scale_b=scale_b,
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=fast,
            out=out,
        )
    product = (a.float() @ b.float()) * (scale_a * scale_b)
    rounded = (product if bias is None else product + bias.float()).bfloat16()
    return rounded if out is None else out.copy_(rounded)


class Scales:
    """The largest elements of all inputs and gradients of a model's fp8 products.

    Within a step they stay, whatever its microbatches hold; where one is not known yet (zero), each
    tensor is scaled by its own.

    Attributes:
        last: [n, 2] of the step before, of inputs and gradients. What a checkpoint has to keep.
        seen: n pairs of [] of this step, as far as it has come. Tensors of their own: views of one
            would count as changed in a backward whenever another product has changed its own.
        version: of the weights; whoever changes them raises it.
    """

    def __init__(self, num_products: int, device: torch.device):
        self.last = torch.zeros(num_products, 2, device=device)
        self.seen = [
            (torch.zeros((), device=device), torch.zeros((), device=device))
            for _ in range(num_products)
        ]
        self.version = 0

    def gathered(self) -> Tensor:
        """[n, 2] what was seen in this step."""
        return torch.stack([value for pair in self.seen for value in pair]).view(-1, 2)

    def settle(self, seen: Tensor, *, keep: Tensor) -> None:
        """Ends a step, whose largest elements are the next one's scales.

        Args:
            seen: [n, 2] by all ranks.
            keep: [] whether the step counts for nothing, as its gradient is not finite.
        """
        self.last.copy_(torch.where(keep | ~seen.isfinite().all(), self.last, seen))
        torch._foreach_zero_([value for pair in self.seen for value in pair])  # pyright: ignore[reportPrivateImportUsage]
        self.version += 1

    def restore(self, last: Sequence[Sequence[float]]) -> None:
        """Goes on with `last` as a checkpoint kept it; what another model had says nothing."""
        if len(last) == len(self.last):
            self.last.copy_(torch.tensor(last))


class Quantised(nn.Module):
    """A weight in fp8, by rows and by columns; the weight itself stays where it is.

    It has rows of zeros beyond the weight's, up to a multiple of 16, as a vocabulary may have any
    size.

    Args:
        weight: [out, in].
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        (num_rows, num_columns), device = weight.shape, weight.device
        num_rows = _rounded_up(num_rows)
        self.weight = torch.zeros(num_rows, num_columns, dtype=E4M3, device=device)
        self.transposed = torch.zeros(num_columns, num_rows, dtype=E4M3, device=device)
        self.scale = torch.zeros((), device=device)
        self.version = -1

    @torch.no_grad()
    def refresh(self, weight: Tensor, version: int) -> None:
        """Quantises a weight, unless this version of it has been."""
        if version == self.version:
            return
        quantised, scale = quantise(weight, amax_of(weight), E4M3)
        self.weight[: len(weight)].copy_(quantised)
        self.transposed[:, : len(weight)].copy_(quantised.t())
        self.scale.copy_(scale)
        self.version = version


class Product(Quantised):
    """What multiplies in the place of a linear layer.

    Args:
        layer: whose weight it is.
        last: [2] its part of `Scales.last`.
        seen: its pair of `Scales.seen`.
    """

    def __init__(self, layer: Linear, last: Tensor, seen: tuple[Tensor, Tensor]):
        super().__init__(layer.weight)
        self.last = last
        self.seen_input, self.seen_gradient = seen

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[.., in] -> [.., out]; without gradients nothing is noted of `x`."""
        rows = x.reshape(-1, x.shape[-1])
        amax = amax_of(rows.detach())
        if torch.is_grad_enabled():
            self.seen_input.copy_(torch.maximum(self.seen_input, amax))
        out = _Fp8Linear.apply(
            *(rows, weight, bias, self.weight, self.transposed, self.scale),
            *(amax, self.last, self.seen_gradient),
        )
        return cast(Tensor, out).view(*x.shape[:-1], -1)


def amax_of(values: Tensor) -> Tensor:
    """[] the largest magnitude, in fp32."""
    return values.abs().amax().float()


def expected(last: Tensor, amax: Tensor) -> Tensor:
    """[] by which a tensor is scaled: from the step before, if there was one."""
    return torch.where(last > 0, last * HEADROOM, amax)


def as_bad(scale: Tensor, amax: Tensor) -> Tensor:
    """The scale; NaN where the tensor is not finite: clamped, it would look as if it were."""
    return torch.where(amax.isfinite(), scale, torch.nan)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        quantised: Tensor,
        transposed: Tensor,
        scale: Tensor,
        amax: Tensor,
        last: Tensor,
        seen_gradient: Tensor,
    ) -> Tensor:
        x8, x_scale = quantise(x, expected(last[0], amax), E4M3)
        x_scale = as_bad(x_scale, amax)
        ctx.save_for_backward(x8, x_scale, transposed, scale, last)
        ctx.seen_gradient = seen_gradient  # not saved: the backward changes it
        return multiply(x8, quantised.t(), x_scale, scale, bias=bias, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x8, x_scale, transposed, scale, last = ctx.saved_tensors
        amax, seen = amax_of(gradient), ctx.seen_gradient
        seen.copy_(torch.maximum(seen, amax))
        g8, g_scale = quantise(gradient, expected(last[1], amax), E5M2)
        g_scale = as_bad(g_scale, amax)
        of_x = multiply(g8, transposed.t(), g_scale, scale)
        of_weight = multiply(g8.t().contiguous(), x8.t().contiguous().t(), g_scale, x_scale)
        of_bias = gradient.float().sum(dim=0).to(gradient.dtype)
        return of_x, of_weight, of_bias, *[None] * 6


def inner_blocks(blocks: Sequence[Any]) -> Sequence[Any]:
    """Those that multiply in fp8: not the first and the last, which suffer most from it."""
    return blocks[1:-1]


def multiply_in_fp8(blocks: Sequence[Any], *, head: Any = None) -> Scales:
    """Has qkv, up and down of all blocks but the first and the last multiply in fp8.

    Args:
        blocks: of a whole decoder, in bf16, where they will stay; their layers are `Linear`.
        head: a `LinearCrossEntropy` with the whole vocabulary that does so, too.

    Returns:
        Their scales; whoever changes weights settles a step, or raises the version.
    """
    layers = [layer for block in inner_blocks(blocks) for layer in _layers_of(block)]
    assert layers, "refused with the configuration"
    scales = Scales(len(layers), layers[0].weight.device)
    for layer, last, seen in zip(layers, scales.last, scales.seen, strict=True):
        layer.product = Product(layer, last, seen)
    for block in inner_blocks(blocks):
        # Outside of what may be compiled.
        block.register_forward_pre_hook(_refresher(scales, *_layers_of(block)))
    if head is not None:
        assert head.shard is None, "refused with the configuration"
        head.product = Quantised(head.weight)
        head.register_forward_pre_hook(_refresher(scales, head))
    return scales


def _layers_of(block: Any) -> Iterator[Linear]:
    for layer in (block.attention.qkv, block.feed_forward.up, block.feed_forward.down):
        assert isinstance(layer, Linear), "refused with the configuration"
        yield layer


def _refresher(scales: Scales, *holders: Any) -> Any:
    def refresh(*_: Any) -> None:
        for holder in holders:
            holder.product.refresh(holder.weight, scales.version)

    return refresh


class HeadInFp8:
    """The products of a head's chunks, one chunk after the other; all in fp8.

    It does what `model.loss.HeadAsStored` does.

    Args:
        states: [C, H] bf16.
        weight: [V, H], quantised.
        num_tokens: V.
        chunk: states whose logits exist at once.
    """

    def __init__(self, states: Tensor, weight: Quantised, *, num_tokens: int, chunk: int):
        self._weight, self._num_tokens = weight, num_tokens
        # What is not finite makes its own scale so, and thereby all.
        quantised, self._scale = quantise(states, amax_of(states), E4M3)
        # Tensor cores sum over slots by sixteens. What lies beyond a chunk gets no gradient.
        self._states = quantised.new_zeros(len(states) + DIVISOR, states.shape[1])
        self._states[: len(states)].copy_(quantised)
        self._gradient_scale = torch.full((), 1 / GRADIENT_FACTOR, device=states.device)
        rows = _rounded_up(min(chunk, len(states)))
        self._buffer = states.new_empty(rows, len(weight.weight))
        self._gradient: Tensor | None = None

    def logits(self, start: int, stop: int) -> Tensor:
        """[c, V] of these states, with columns beyond the tokens; to be written over."""
        rows = _rounded_up(stop - start)
        self._part = self._states[start : start + rows]
        self._logits, self._gradient = self._buffer[:rows], None
        weight = self._weight
        multiply(
            *(self._part, weight.weight.t(), self._scale, weight.scale), fast=True, out=self._logits
        )
        self._logits[stop - start :].zero_()
        return self._logits[: stop - start]

    def of_states(self, out: Tensor) -> None:
        """Writes the states' gradient; the logits were written over with theirs."""
        weight = self._weight
        product = multiply(
            self._quantised(), weight.transposed.t(), self._gradient_scale, weight.scale
        )
        out.copy_(product[: len(out)])

    def of_weight(self, total: Tensor | None, *, is_only: bool) -> Tensor:
        """[V, H] the weight's gradient with that of chunks before; fp32 if there are several."""
        columns, states = self._quantised().t().contiguous(), self._part.t().contiguous()
        product = multiply(columns, states.t(), self._gradient_scale, self._scale)
        product = product[: self._num_tokens]
        if is_only:
            return product
        return product.float() if total is None else total.add_(product)

    def _quantised(self) -> Tensor:
        if self._gradient is None:
            self._gradient = self._logits.mul_(GRADIENT_FACTOR).to(E5M2)
        return self._gradient


def _rounded_up(number: int) -> int:
    return number + -number % DIVISOR
