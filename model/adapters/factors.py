"""What adapters are made of: narrow layers, split as the layer beside them is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.layers import Layers
from model.region import Range, Region


class Narrow(nn.Linear):
    """A layer that adapters are made of; whoever puts them on fills it."""

    def reset_parameters(self) -> None:
        """Nothing yet."""


class Up(Narrow):
    """The second of an adapter's two layers, which adds to what the layer beside it has computed.

    In one product: a pass over the output alone costs as much as the narrow products do.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # it reads two tensors
        self, narrow: Tensor, out: Tensor, factor: float
    ) -> Tensor:
        """[.., rank], [.., out] -> [.., out], out + factor * B(narrow)."""
        rows = narrow.flatten(0, -2)
        return torch.addmm(out.flatten(0, -2), rows, self.weight.t(), alpha=factor).view_as(out)


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

    def down(self, rank: int) -> Narrow:
        """[.., in] -> [.., rank]; of inputs that are split, this rank's part of the sum."""
        return self._made(self.inputs, rank, is_up=False)

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
        layer = Up(rank, size, bias=False) if is_up else Narrow(size, rank, bias=False)
        if part is None:
            self._mark(layer.weight)
        else:
            shape = (whole, rank) if is_up else (rank, whole)
            box = (part, (0, rank)) if is_up else ((0, rank), part)
            cast(Any, layer.weight).placement = Region.of_box(shape, *box)
        return layer

    def _mark(self, parameter: Tensor) -> None:
        cast(Any, parameter).sequence_parallel = self.splits_rows
