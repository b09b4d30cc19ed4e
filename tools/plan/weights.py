"""Parameters of each rank under a layout, read off real models on the meta device."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from model.decoder import TIED_NAME, Piece
from model.layers import Initializer, Layers, logical_name
from model.semicausal import ModelConfig, SemiCausal
from parallel.engine import decays
from parallel.mesh import LayoutConfig
from parallel.tensor import padded_vocabulary

LAYER = "decoder.blocks."
"""What the names of decoder layers' parameters begin with."""


def held_rows(num_tokens: int, *, tensor: int) -> int:
    """A rank's rows of a vocabulary, padded only where it is split."""
    return num_tokens if tensor == 1 else padded_vocabulary(num_tokens, tensor=tensor) // tensor


class ShapeLayers(Layers):
    """Layers of the shapes that a rank of a tensor group holds.

    Args:
        tensor: ranks that share each layer.
    """

    def __init__(self, tensor: int):
        self.tensor = tensor

    def column(self, in_features: int, out_features: int, *, init: Initializer) -> nn.Module:
        """A rank's outputs."""
        return super().column(in_features, out_features // self.tensor, init=init)

    def row(self, in_features: int, out_features: int, *, init: Initializer) -> nn.Module:
        """A rank's inputs; the bias is whole."""
        return super().row(in_features // self.tensor, out_features, init=init)

    def vocabulary(self, num_tokens: int, width: int, *, init: Initializer) -> nn.Module:
        """A rank's rows."""
        rows = held_rows(num_tokens, tensor=self.tensor)
        return super().vocabulary(rows, width, init=init)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Parameters of one shape that a rank holds.

    Attributes:
        name: of the first of them, in the whole model.
        count: how many there are: one, or one in each decoder layer.
        elements: of each, padding included.
        group: what the optimiser groups by: whether it decays, and whether it is the token
            embedding while another stage has it too. None: it is frozen.
    """

    name: str
    count: int = 1
    elements: int
    group: tuple[bool, bool] | None


@dataclass(frozen=True, kw_only=True)
class Share:
    """A rank's part of the model.

    Attributes:
        weights: all its parameters.
        piece_layers: decoder layers of each run that it computes in one go.
        is_first: it embeds tokens and reads spans.
        is_last: it computes the loss.
        vocabulary_rows: rows of each table of the vocabulary, padding included.
    """

    weights: tuple[Weight, ...]
    piece_layers: tuple[int, ...]
    is_first: bool
    is_last: bool
    vocabulary_rows: int

    @cached_property
    def layers(self) -> int:
        """All decoder layers it holds."""
        return sum(self.piece_layers)

    @cached_property
    def elements(self) -> int:
        """All parameters, padding included: what takes memory."""
        return sum(weight.count * weight.elements for weight in self.weights)

    @cached_property
    def trained(self) -> int:
        """Parameters that the optimiser updates, padding included."""
        return sum(self._groups.values())

    @cached_property
    def largest(self) -> int:
        """Elements of the largest parameter that trains."""
        return max((w.elements for w in self.weights if w.group), default=0)

    @cached_property
    def largest_group(self) -> int:
        """Elements of the optimiser's largest group."""
        return max(self._groups.values())

    @cached_property
    def _groups(self) -> Counter[tuple[bool, bool]]:
        sizes: Counter[tuple[bool, bool]] = Counter()
        for weight in self.weights:
            if weight.group is not None:
                sizes[weight.group] += weight.count * weight.elements
        return sizes


class Weights:
    """Parameters of a model by rank; what is alike is built once.

    Args:
        model: the whole model.
    """

    def __init__(self, model: ModelConfig):
        self.model = model
        self._built: dict[tuple[int, bool, bool], list[Weight]] = {}
        self._shares: dict[tuple[int, bool, bool, tuple[int, ...]], Share] = {}

    def share(self, layout: LayoutConfig, pipeline_rank: int) -> Share:
        """What the ranks of a stage hold, each as much as the others.

        Args:
            layout: how the model is spread, its split included.
            pipeline_rank: the stage.
        """
        assert layout.split is not None, "planned layouts carry their split"
        layers = tuple(layout.split[pipeline_rank :: layout.pipeline])
        is_first, is_last = pipeline_rank == 0, pipeline_rank == layout.pipeline - 1
        key = (layout.tensor, is_first, is_last, layers)
        found = self._shares.get(key)
        if found is None:
            found = self._shares[key] = self._count(*key)
        return found

    def _count(self, tensor: int, is_first: bool, is_last: bool, layers: tuple[int, ...]) -> Share:
        weights = self._weights(tensor, is_first=is_first, is_last=is_last)
        in_layers = sum(layers)
        return Share(
            weights=tuple(
                replace(w, count=in_layers) if w.name.startswith(LAYER) else w for w in weights
            ),
            piece_layers=layers,
            is_first=is_first,
            is_last=is_last,
            vocabulary_rows=held_rows(self.model.decoder.vocabulary, tensor=tensor),
        )

    def _weights(self, tensor: int, *, is_first: bool, is_last: bool) -> list[Weight]:
        """Parameters of a stage of one decoder layer."""
        key = (tensor, is_first, is_last)
        if key not in self._built:
            piece = Piece(first_layer=0, last_layer=1, is_first=is_first, is_last=is_last)
            with torch.device("meta"):
                part = SemiCausal(self.model, ShapeLayers(tensor), pieces=[piece])
            tied = TIED_NAME if part.has_tied_ends and is_first != is_last else None
            self._built[key] = [
                Weight(
                    name=name,
                    elements=parameter.numel(),
                    group=(decays(name, parameter), logical_name(name, parameter) == tied)
                    if parameter.requires_grad
                    else None,
                )
                for name, parameter in part.named_parameters()
            ]
        return self._built[key]
