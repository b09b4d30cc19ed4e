"""What adapters are made of: narrow layers, split as the layer beside them is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import Layers
from model.region import Range, Region


class Narrow(nn.Linear):
    """A layer that adapters are made of; whoever puts them on fills it."""

    def reset_parameters(self) -> None:
        """Nothing yet."""


class Down(Narrow):
    """The first of an adapter's two layers, which hands on what it read for the layer beside it.

    So the gradients of both meet in one place, where a product adds to what is there: summed by
    autograd, they would be two tensors and one more pass over each.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # it hands on what it reads
        self, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[.., in] -> the same, and [.., rank]."""
        if torch.compiler.is_compiling():
            return x, super().forward(x)
        return cast(tuple[Tensor, Tensor], _Read.apply(x, self.weight))


class Up(Narrow):
    """The second of an adapter's two layers, which adds to what the layer beside it has computed.

    In place: a pass over the output alone costs as much as the narrow products do.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # it reads two tensors
        self, narrow: Tensor, out: Tensor, factor: float
    ) -> Tensor:
        """[.., rank], [.., out] -> [.., out], out + factor * B(narrow), written over `out`."""
        if torch.compiler.is_compiling():
            rows = narrow.flatten(0, -2)
            return torch.addmm(out.flatten(0, -2), rows, self.weight.t(), alpha=factor).view_as(out)
        return cast(Tensor, _Add.apply(out, narrow, self.weight, factor))


class _Read(torch.autograd.Function):
    """What `Down` computes; compiled, torch fuses it itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        return x, F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x, grad_narrow = grads
        if grad_narrow is None:
            return grad_x, None
        wants_x, wants_weight = ctx.needs_input_grad
        rows = grad_narrow.flatten(0, -2)
        if not wants_x:
            grad_x = None
        elif grad_x is None:
            grad_x = (rows @ weight).view_as(x)
        else:
            # Made by the layer beside, the only one that reads what was handed on.
            grad_x.view(-1, grad_x.shape[-1]).addmm_(rows, weight)
        return grad_x, rows.t() @ x.flatten(0, -2) if wants_weight else None


class _Add(torch.autograd.Function):
    """What `Up` computes; compiled, torch fuses it itself."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, narrow: Tensor, weight: Tensor, factor: float) -> Tensor:
        ctx.mark_dirty(out)
        ctx.save_for_backward(narrow, weight)
        ctx.factor = factor
        out.view(-1, out.shape[-1]).addmm_(narrow.flatten(0, -2), weight.t(), alpha=factor)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        narrow, weight = ctx.saved_tensors
        grad_out = grads[0]
        rows = grad_out.flatten(0, -2)
        _, wants_narrow, wants_weight, _ = ctx.needs_input_grad
        grad_narrow = (rows @ weight).mul_(ctx.factor).view_as(narrow) if wants_narrow else None
        grad_weight = None
        if wants_weight:
            grad_weight = (narrow.flatten(0, -2).t() @ rows).mul_(ctx.factor).t()
        return grad_out, grad_narrow, grad_weight, None


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What adapters beside a linear layer are made of: x -> up(join(down(x))).

    Attributes:
        in_features: of the whole layer.
        out_features: of the whole layer.
        inputs: those that this rank reads, None for all.
        outputs: those that this rank computes, None for all.
        splits_rows: whether ranks work on a part of the rows, and sum the gradients of what is
            whole.
        join: between `down` and `up`, what makes each rank's rows of all that `up` reads.
        dropout: of what the layer reads.
    """

    in_features: int
    out_features: int
    inputs: Range | None = None
    outputs: Range | None = None
    splits_rows: bool = False
    join: Callable[[Tensor], Tensor] = lambda narrow: narrow
    dropout: Callable[[float], nn.Module] = Layers().dropout

    @staticmethod
    def of(layer: nn.Module) -> "Factors":
        """Those of a layer that `Layers` has made."""
        made = getattr(layer, "adapter_factors", None)
        if made is not None:
            return made
        linear = cast(nn.Linear, layer)
        return Factors(in_features=linear.in_features, out_features=linear.out_features)

    def down(self, rank: int) -> Down:
        """[.., in] -> [.., rank]; of inputs that are split, this rank's part of the sum."""
        return cast(Down, self._made(self.inputs, rank, is_up=False))

    def up(self, rank: int) -> Up:
        """[.., rank] -> [.., out], or this rank's outputs."""
        return cast(Up, self._made(self.outputs, rank, is_up=True))

    def behind(self, width: int) -> tuple[Narrow, Narrow]:
        """[.., out] -> [.., width] -> [.., out], with biases, where outputs are whole."""
        assert self.outputs is None, "refused with the configuration"
        pair = Narrow(self.out_features, width), Narrow(width, self.out_features)
        for layer in pair:
            for parameter in layer.parameters():
                self._mark(parameter)
        return pair

    def _made(self, part: Range | None, rank: int, *, is_up: bool) -> Narrow:
        whole = self.out_features if is_up else self.in_features
        size = whole if part is None else part[1] - part[0]
        layer = Up(rank, size, bias=False) if is_up else Down(size, rank, bias=False)
        if part is None:
            self._mark(layer.weight)
        else:
            shape = (whole, rank) if is_up else (rank, whole)
            box = (part, (0, rank)) if is_up else ((0, rank), part)
            cast(Any, layer.weight).placement = Region.of_box(shape, *box)
        return layer

    def _mark(self, parameter: Tensor) -> None:
        cast(Any, parameter).sequence_parallel = self.splits_rows
