"""What every encoder is: its configuration answers all that is asked before it is built."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from model.attention import SpanSelfAttention
from model.block import Block
from model.config import Config, Depth, Heads, HiddenWidth, PathText, Width
from model.layers import Layers
from model.recompute import Recompute
from model.style import USUAL_STYLE, Style


@dataclass(frozen=True, kw_only=True)
class SpanLoad:
    """Spans of one modality in a sequence or a microbatch, on average.

    Attributes:
        vectors: M, of all spans.
        spans: N.
        longest: vectors of the longest span.
        item_slots: decoder slots of each; None where each vector fills one.
    """

    vectors: float
    spans: float
    longest: float
    item_slots: int | None = None

    @property
    def slots(self) -> float:
        """Decoder slots of all spans."""
        return self.vectors if self.item_slots is None else self.spans * self.item_slots

    @classmethod
    def of_items(cls, *, slots: float, spans: float, item_slots: int, longest: int) -> "SpanLoad":
        """Items that all take as many slots, each taken for one of the largest.

        Args:
            slots: that there are for them.
            spans: at most so many.
            item_slots: of each.
            longest: vectors of the largest.
        """
        count = min(spans, slots / item_slots)
        return cls(vectors=count * longest, spans=count, longest=longest, item_slots=item_slots)


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
        head_width: D; None: E / A.
        kv_heads: G; None: A.
        gated: whether the feed-forward has a gate.
        turned: whether positions turn queries and keys.
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
    head_width: int | None = None
    kv_heads: int | None = None
    gated: bool = False
    turned: bool = False

    @property
    def inner(self) -> int:
        """A D, width of what attention mixes."""
        return self.heads * (self.head_width or self.width // self.heads)

    @property
    def fused(self) -> int:
        """(A + 2 G) D, width of queries, keys and values."""
        return self.inner + 2 * self.inner * (self.kv_heads or self.heads) // self.heads


class EncoderKind(Config):
    """The configuration of a kind of encoder: what it is before it is built, and its blocks."""

    kind: Any
    """Its name, which no other has."""
    width: Width
    """E, channels of its vectors."""
    num_layers: Depth
    heads: Heads
    feed_forward: HiddenWidth
    init_from: PathText | None = None
    """Checkpoint whose encoder of this modality supplies the first weights."""
    trainable_layers: Annotated[int, Field(ge=0, le=2**12)] | None = None
    """Train only the last this many layers, and what lies behind them; needs `init_from`. Default:
    all, or 2 with `init_from`, as the paper does (MetaLM §3.2)."""

    @property
    def layers_in_training(self) -> int:
        """How many of the last layers train."""
        if self.trainable_layers is not None:
            return min(self.trainable_layers, self.num_layers)
        return self.num_layers if self.init_from is None else min(2, self.num_layers)

    @property
    def layers_fixed(self) -> int:
        """How many of the first layers do not; what lies before them is fixed with them."""
        return self.num_layers - self.layers_in_training

    @property
    @abstractmethod
    def longest_span(self) -> int:
        """Vectors of the longest span that it can read."""

    @abstractmethod
    def architecture(self, *, vocabulary: int) -> dict[str, Any]:
        """What another encoder must share for its weights to mean the same.

        Args:
            vocabulary: tokens that the decoder knows.
        """

    @abstractmethod
    def build(self, *, vocabulary: int, layers: Layers, recompute: Recompute) -> nn.Module:
        """A module that reads `PackedSpans` of its modality into vectors [M, E], each span alone.

        It has no first values yet; parameters that stay fixed ask for no gradient.

        Args:
            vocabulary: tokens that the decoder knows.
            layers: where weights come from.
            recompute: activations that are computed again in the backward.
        """

    @abstractmethod
    def stacks(self, load: SpanLoad) -> tuple[Stack, ...]:
        """Its work on these spans, in the order of the forward."""

    @abstractmethod
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

    def block_faults(self, path: str, *, is_supplied: bool) -> Iterator[str]:
        """What is wrong with its blocks alone: heads that do not fit, layers left random."""
        if self.width % self.heads:
            yield f"{path}.heads: {self.heads} heads do not divide width {self.width}"
        if self.layers_fixed and not is_supplied and self.init_from is None:
            yield (
                f"{path}.trainable_layers: {self.layers_in_training} of {self.num_layers} layers "
                f"would train and the rest stay random; name a checkpoint in {path}.init_from, or "
                "leave the key out"
            )

    def tensor_sizes(self) -> dict[str, int]:
        """Sizes that a tensor degree must divide, by key."""
        return {"heads": self.heads, "feed_forward": self.feed_forward}

    def blocks(
        self,
        layers: Layers,
        recompute: Recompute,
        *,
        dropout: float = 0.0,
        style: Style = USUAL_STYLE,
        attention: type[SpanSelfAttention] = SpanSelfAttention,
        two_kinds: int = 0,
    ) -> nn.ModuleList:
        """All its bidirectional blocks, the first of which take rows of two kinds."""
        return nn.ModuleList(
            Block(
                width=self.width,
                heads=self.heads,
                hidden=self.feed_forward,
                attention=attention,
                layers=layers,
                style=style,
                depth=self.num_layers,
                dropout=dropout,
                recompute=recompute,
                two_kinds=number < two_kinds,
            )
            for number in range(self.num_layers)
        )

    def fix(self, *before: nn.Module | None, blocks: nn.ModuleList) -> None:
        """Has what does not train ask for no gradient.

        Args:
            before: what lies before the first block, None for what is not there.
            blocks: all of them.
        """
        if not self.layers_fixed:
            return
        for module in (*before, *list(blocks)[: self.layers_fixed]):
            if module is not None:
                module.requires_grad_(False)


class ItemEncoderKind(EncoderKind):
    """The same of an encoder that reads items which documents carry whole, such as pictures."""

    @abstractmethod
    def item_vectors(self, size: Sequence[int]) -> int:
        """Vectors of an item: its decoder slots.

        Args:
            size: what was recorded of it when the corpus was built; of a picture, its height and
                width in pixels.

        Raises:
            ValueError: it is larger than what is read; the message is the end of a sentence.
        """
