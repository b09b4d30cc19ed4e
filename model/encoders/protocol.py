"""The encoder protocol: its configuration answers all that is asked before it is built."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from model.layers import Layers
from model.recompute import Recompute


@dataclass(frozen=True, kw_only=True)
class SpanLoad:
    """Spans of one modality in a sequence or a microbatch, on average.

    Attributes:
        vectors: M, of all spans; each fills a decoder slot.
        spans: N.
        longest: vectors of the longest span.
    """

    vectors: float
    spans: float
    longest: float


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Blocks of one shape that the same rows go through: what operations are counted from.

    Attributes:
        num_blocks: how many.
        width: E.
        hidden: F.
        heads: A.
        rows: R, rows of the linear layers.
        cells: rows of the padded grid that attention works on.
        pairs: pairs of cells that attend, padding included: the grid computes them too.
        dropout: whether it is used.
        trains: whether gradients flow through.
        bias_trains: whether a bias of attention's scores trains.
    """

    num_blocks: int
    width: int
    hidden: int
    heads: int
    rows: float
    cells: float
    pairs: float
    dropout: bool
    trains: bool
    bias_trains: bool


class Encoder(Protocol):
    """A module that reads the spans of its modality, each alone."""

    def __call__(self, spans: Any) -> Float[Tensor, "M E"]:
        """Vectors of all spans of a microbatch, one for each of their slots."""
        ...

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the configuration keeps fixed."""
        ...


class EncoderKind(Protocol):
    """The configuration of a kind of encoder."""

    @property
    def kind(self) -> str:
        """Its name, which no other has."""
        ...

    @property
    def width(self) -> int:
        """E, channels of its vectors."""
        ...

    @property
    def init_from(self) -> str | None:
        """Checkpoint whose encoder of this modality supplies the first weights."""
        ...

    @property
    def longest_span(self) -> int:
        """Vectors of the longest span that it can read."""
        ...

    @property
    def architecture(self) -> dict[str, Any]:
        """Keys that another encoder must share for its weights to mean the same."""
        ...

    def build(self, *, vocabulary: int, layers: Layers, recompute: Recompute) -> nn.Module:
        """The `Encoder`, without first values.

        Args:
            vocabulary: tokens that the decoder knows.
            layers: where weights come from.
            recompute: activations that are computed again in the backward.
        """
        ...

    def tensor_sizes(self) -> dict[str, int]:
        """Sizes that a tensor degree must divide, by key."""
        ...

    def stacks(self, load: SpanLoad) -> tuple[Stack, ...]:
        """Its work on these spans, in the order of the forward."""
        ...

    def faults(
        self, path: str, *, vocabulary: int, longest: int, is_supplied: bool
    ) -> Iterator[str]:
        """What is wrong with it in a run, each with its key.

        Args:
            path: key of this configuration.
            vocabulary: tokens that the decoder knows.
            longest: vectors of the longest span it will be given, as far as that is known.
            is_supplied: whether a checkpoint supplies the first weights of the whole model.
        """
        ...
