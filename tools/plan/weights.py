"""Parameters of each rank under a layout, read off real models on the meta device."""

from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from torch import nn

from model.decoder import TIED_NAME, Piece
from model.layers import Initializer, Layers, logical_name
from model.semicausal import ModelConfig, SemiCausal
from parallel.engine import decays
from parallel.mesh import LayoutConfig
from parallel.tensor import padded_vocabulary


def held_rows(num_tokens: int, *, tensor: int) -> int:
    """A rank's rows of a vocabulary, padded only where it is split."""
    return num_tokens if tensor == 1 else padded_vocabulary(num_tokens, tensor=tensor) // tensor


class ShapeLayers(Layers):
    """Layers without values, of the shapes that each of `tensor` ranks holds."""

    device = "meta"

    def __init__(self, tensor: int):
        self.tensor = tensor

    def column(
        self, in_features: int, out_features: int, *, init: Initializer, bias: bool = True
    ) -> nn.Module:
        """A rank's outputs."""
        return super().column(in_features, out_features // self.tensor, init=init, bias=bias)

    def row(
        self, in_features: int, out_features: int, *, init: Initializer, bias: bool = True
    ) -> nn.Module:
        """A rank's inputs; the bias is whole."""
        return super().row(in_features // self.tensor, out_features, init=init, bias=bias)

    def vocabulary(self, num_tokens: int, width: int, *, init: Initializer) -> nn.Module:
        """A rank's rows."""
        return super().vocabulary(held_rows(num_tokens, tensor=self.tensor), width, init=init)


class Weight(NamedTuple):
    """A parameter that a rank holds."""

    elements: int
    """Padding included."""
    group: tuple[bool, bool] | None
    """What the optimiser groups by: whether it decays, and whether it is the token embedding while
    another stage has it too. None: it is frozen."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A rank's part of the model; all counts include padding.

    Attributes:
        weights: all its parameters.
        piece_layers: decoder layers of each run that it computes in one go.
        is_first: it embeds tokens and reads spans.
        is_last: it computes the loss.
        vocabulary_rows: rows of each table of the vocabulary.
    """

    weights: list[Weight]
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
        """All parameters: what takes memory."""
        return sum(weight.elements for weight in self.weights)

    @cached_property
    def trained(self) -> int:
        """Parameters that the optimiser updates."""
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
                sizes[weight.group] += weight.elements
        return sizes


class Weights:
    """Parameters of a model by rank; what is alike is built once."""

    def __init__(self, model: ModelConfig):
        self.model = model
        self._share = cache(self._counted)
        self._parameters = cache(self._built)

    def share(self, layout: LayoutConfig, pipeline_rank: int) -> Share:
        """What the ranks of a stage hold, each as much as the others."""
        assert layout.split is not None, "planned layouts carry their split"
        layers = tuple(layout.split[pipeline_rank :: layout.pipeline])
        is_last = pipeline_rank == layout.pipeline - 1
        return self._share(layout.tensor, pipeline_rank == 0, is_last, layers)

    def _counted(
        self, tensor: int, is_first: bool, is_last: bool, layers: tuple[int, ...]
    ) -> Share:
        of_layer, others = self._parameters(tensor, is_first, is_last)
        return Share(
            weights=of_layer * sum(layers) + others,
            piece_layers=layers,
            is_first=is_first,
            is_last=is_last,
            vocabulary_rows=held_rows(self.model.decoder.vocabulary, tensor=tensor),
        )

    def _built(
        self, tensor: int, is_first: bool, is_last: bool
    ) -> tuple[list[Weight], list[Weight]]:
        """Parameters of a decoder layer, and what else its stage has."""
        decoder = self.model.decoder
        if decoder.positions == "sinusoidal":
            # They are no parameters, and a table of them takes longer than all the rest.
            decoder = decoder.model_copy(update={"max_tokens": 2})
        model = self.model.model_copy(update={"decoder": decoder})
        piece = Piece(first_layer=0, last_layer=1, is_first=is_first, is_last=is_last)
        part = SemiCausal(model, ShapeLayers(tensor), pieces=[piece])
        tied = TIED_NAME if part.has_tied_ends and is_first != is_last else None
        of_layer: list[Weight] = []
        others: list[Weight] = []
        for name, parameter in part.named_parameters():
            group = (decays(name, parameter), logical_name(name, parameter) == tied)
            weight = Weight(parameter.numel(), group if parameter.requires_grad else None)
            (of_layer if name.startswith("decoder.blocks.") else others).append(weight)
        return of_layer, others
