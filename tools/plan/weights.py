"""Parameters of each rank under a layout, read off real models on the meta device."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

from torch import nn

from model.adapters.tuning import Names, Tuning
from model.decoder import TIED_NAME, Piece
from model.layers import Initializer, Layers, logical_name
from model.semicausal import ModelConfig, SemiCausal
from parallel.engine import decays
from parallel.mesh import LayoutConfig
from parallel.tensor import padded_vocabulary


def held_rows(num_tokens: int, *, tensor: int) -> int:
    """A rank's rows of a vocabulary, padded only where it is split."""
    return num_tokens if tensor == 1 else padded_vocabulary(num_tokens, tensor=tensor) // tensor


_FIRST_LAYER = "decoder.blocks.0."
_PLAIN = (True, False, 1.0)
"""Group of most matrices."""


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
    group: tuple[bool, bool, float] | None
    """What the optimiser groups by: whether it decays, whether it is the token embedding while
    another stage has it too, and its share of the learning rate. None: it is frozen."""


class _Held(NamedTuple):
    """A parameter of the plain model, of the first decoder layer or outside of the layers."""

    name: str
    shape: tuple[int, ...]
    group: tuple[bool, bool, float] | None


@dataclass(frozen=True, kw_only=True)
class Share:
    """A rank's part of the model; all counts include padding.

    Attributes:
        weights: all its parameters.
        pieces: first decoder layer, and one past the last, of each run that it computes in one go.
        is_first: it embeds tokens and reads spans.
        is_last: it computes the loss.
        vocabulary_rows: rows of each table of the vocabulary.
    """

    weights: list[Weight]
    pieces: tuple[tuple[int, int], ...]
    is_first: bool
    is_last: bool
    vocabulary_rows: int

    @cached_property
    def piece_layers(self) -> tuple[int, ...]:
        """Decoder layers of each piece."""
        return tuple(last - first for first, last in self.pieces)

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
    def largest_held(self) -> int:
        """Elements of the largest parameter, whether it trains or not."""
        return max(weight.elements for weight in self.weights)

    @cached_property
    def largest(self) -> int:
        """Elements of the largest parameter that trains."""
        return max((w.elements for w in self.weights if w.group), default=0)

    @cached_property
    def largest_group(self) -> int:
        """Elements of the optimiser's largest group."""
        return max(self._groups.values(), default=0)

    @cached_property
    def sizes(self) -> Counter[int]:
        """How many parameters have so many elements."""
        return Counter(weight.elements for weight in self.weights)

    @cached_property
    def _groups(self) -> Counter[tuple[bool, bool, float]]:
        sizes: Counter[tuple[bool, bool, float]] = Counter()
        for weight in self.weights:
            if weight.group is not None:
                sizes[weight.group] += weight.elements
        return sizes


class Weights:
    """Parameters of a model by rank; what is alike is built once."""

    def __init__(self, model: ModelConfig, tuning: Tuning | None = None):
        self.model = model
        self._tuning = tuning or Tuning()
        if self._tuning.is_set:
            names = Names.of(model)
            self._low_rank = self._tuning.low_rank(names)
            self._narrowed = self._tuning.narrowed(names)
            self._trained = self._tuning.trained(names)
        self._share = cache(self._counted)
        self._parameters = cache(self._built)

    def share(self, layout: LayoutConfig, pipeline_rank: int) -> Share:
        """What the ranks of a stage hold, each as much as the others."""
        assert layout.split is not None, "planned layouts carry their split"
        ends = [0, *accumulate(layout.split)]
        pieces = tuple(list(pairwise(ends))[pipeline_rank :: layout.pipeline])
        is_last = pipeline_rank == layout.pipeline - 1
        return self._share(layout.tensor, pipeline_rank == 0, is_last, pieces)

    def _counted(
        self, tensor: int, is_first: bool, is_last: bool, pieces: tuple[tuple[int, int], ...]
    ) -> Share:
        of_layer, others = self._parameters(tensor, is_first, is_last)
        layers = [number for piece in pieces for number in range(*piece)]
        if not self._tuning.is_set:
            weights = [_weight(h) for h in of_layer] * len(layers) + [_weight(h) for h in others]
        else:
            held = [
                h._replace(name=h.name.replace(_FIRST_LAYER, f"decoder.blocks.{number}."))
                for number in layers
                for h in of_layer
            ]
            weights = [weight for h in [*held, *others] for weight in self._tuned(h)]
        return Share(
            weights=weights,
            pieces=pieces,
            is_first=is_first,
            is_last=is_last,
            vocabulary_rows=held_rows(self.model.decoder.vocabulary, tensor=tensor),
        )

    def _tuned(self, held: _Held) -> Iterator[Weight]:
        """A parameter that trains only if it is chosen, and the adapters beside its layer."""
        elements = math.prod(held.shape)
        chosen = held.name in self._trained
        yield Weight(elements, (held.group or _PLAIN) if chosen else None)
        layer, is_weight, _ = held.name.rpartition(".weight")
        if not is_weight or len(held.shape) != 2:
            return
        out_features, in_features = held.shape
        lora, bottleneck = self._tuning.lora, self._tuning.bottleneck
        if lora is not None and layer in self._low_rank:
            yield Weight(lora.rank * in_features, _PLAIN)
            yield Weight(lora.rank * out_features, (True, False, lora.up_rate_ratio))
        if bottleneck is not None and layer in self._narrowed:
            for read, written in (
                (out_features, bottleneck.width),
                (bottleneck.width, out_features),
            ):
                yield Weight(read * written, _PLAIN)
                yield Weight(written, (False, False, 1.0))

    def _built(self, tensor: int, is_first: bool, is_last: bool) -> tuple[list[_Held], list[_Held]]:
        """Parameters of a decoder layer, and what else its stage has."""
        decoder = self.model.decoder
        if decoder.positions == "sinusoidal":
            # They are no parameters, and a table of them takes longer than all the rest.
            decoder = decoder.model_copy(update={"max_tokens": 2})
        model = self.model.model_copy(update={"decoder": decoder})
        piece = Piece(first_layer=0, last_layer=1, is_first=is_first, is_last=is_last)
        part = SemiCausal(model, ShapeLayers(tensor), pieces=[piece])
        tied = TIED_NAME if part.has_tied_ends and is_first != is_last else None
        of_layer: list[_Held] = []
        others: list[_Held] = []
        for name, parameter in part.named_parameters():
            logical = logical_name(name, parameter)
            group = (decays(name, parameter), logical == tied, 1.0)
            held = _Held(
                logical, tuple(parameter.shape), group if parameter.requires_grad else None
            )
            (of_layer if name.startswith(_FIRST_LAYER) else others).append(held)
        return of_layer, others


def _weight(held: _Held) -> Weight:
    return Weight(math.prod(held.shape), held.group)
