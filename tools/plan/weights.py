"""Which parameters each rank holds under a layout, to the element."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from model.decoder import Piece
from model.encoders.text import NUM_BUCKETS
from model.semicausal import EncoderConfig, ModelConfig
from parallel.mesh import LayoutConfig, held_pieces
from parallel.tensor import padded_vocabulary

PARTS = ("embedding", "layers", "head", "encoder", "connector")
"""What parameters belong to."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Some parameters of one shape that a rank holds.

    Attributes:
        part: one of `PARTS`.
        count: how many there are.
        elements: of each, padding included.
        decays: a matrix that weight decay applies to; the optimiser groups by it.
        trains: the optimiser updates it.
        is_tied_end: the tied embedding where another stage has it too, which the optimiser keeps in
            a group of its own.
    """

    part: str
    count: int
    elements: int
    decays: bool = False
    trains: bool = True
    is_tied_end: bool = False


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
        return sum(w.count * w.elements for w in self.weights if w.trains)

    @cached_property
    def largest(self) -> int:
        """Elements of the largest parameter that trains."""
        return max((w.elements for w in self.weights if w.trains), default=0)

    @cached_property
    def largest_group(self) -> int:
        """Elements of the optimiser's largest group: matrices that decay, a tied end, the rest."""
        sizes: Counter[tuple[bool, bool]] = Counter()
        for weight in self.weights:
            if weight.trains:
                sizes[weight.decays, weight.is_tied_end] += weight.count * weight.elements
        return max(sizes.values())

    def smaller_than(self, elements: int) -> int:
        """Elements of all parameters that are no larger than this."""
        return sum(w.count * w.elements for w in self.weights if w.elements <= elements)


def rank_share(
    config: ModelConfig,
    layout: LayoutConfig,
    *,
    split: Sequence[int],
    pipeline_rank: int,
) -> Share:
    """What one rank holds; those of a tensor group hold as much as each other.

    Args:
        config: the whole model.
        layout: how it is spread.
        split: decoder layers of each piece.
        pipeline_rank: the stage.
    """
    pieces = held_pieces(tuple(split), layout, pipeline_rank=pipeline_rank)
    is_first = any(piece.is_first for piece in pieces)
    is_last = any(piece.is_last for piece in pieces)
    place = _Place(layout.tensor)
    return Share(
        weights=tuple(_weights(config, pieces, place, is_first=is_first, is_last=is_last)),
        piece_layers=tuple(piece.last_layer - piece.first_layer for piece in pieces),
        is_first=is_first,
        is_last=is_last,
        vocabulary_rows=place.rows(config.decoder.vocabulary),
    )


@dataclass(frozen=True)
class _Place:
    tensor: int

    def rows(self, tokens: int) -> int:
        """A rank's rows of a vocabulary, padded only where it is split."""
        if self.tensor == 1:
            return tokens
        return padded_vocabulary(tokens, tensor=self.tensor) // self.tensor

    def vocabulary(self, part: str, tokens: int, width: int, **kind: bool) -> Weight:
        """A rank's part of a table of the vocabulary."""
        return Weight(part=part, count=1, elements=self.rows(tokens) * width, **kind)

    def block(
        self, part: str, count: int, width: int, hidden: int, *, trains: bool
    ) -> Iterator[Weight]:
        """Blocks: qkv, out, up and down, and two norms."""
        t = self.tensor
        matrices = (3 * width * width // t, width * width // t, *(width * hidden // t,) * 2)
        # Columns' biases are split, rows' are whole.
        vectors = (3 * width // t, hidden // t, width, width, *(width,) * 4)
        for elements, decays in [*((m, True) for m in matrices), *((v, False) for v in vectors)]:
            yield Weight(
                part=part,
                count=count,
                elements=elements,
                decays=decays,
                trains=trains,
            )


def _weights(
    config: ModelConfig,
    pieces: Sequence[Piece],
    place: _Place,
    *,
    is_first: bool,
    is_last: bool,
) -> Iterator[Weight]:
    decoder = config.decoder
    vocabulary, width = decoder.vocabulary, decoder.width
    is_tied_end = decoder.tied_head and is_first != is_last
    if is_first:
        yield place.vocabulary("embedding", vocabulary, width, is_tied_end=is_tied_end)
    num_layers = sum(piece.last_layer - piece.first_layer for piece in pieces)
    yield from place.block("layers", num_layers, width, decoder.feed_forward, trains=True)
    if is_last and decoder.norm == "pre":
        yield Weight(part="head", count=2, elements=width)
    if is_last and not (is_first and decoder.tied_head):
        yield place.vocabulary("head", vocabulary, width, is_tied_end=is_tied_end)
    if is_first:
        for part in config.encoders.values():
            yield from _encoder(part, vocabulary, width, place)


def _encoder(part: EncoderConfig, vocabulary: int, to: int, place: _Place) -> Iterator[Weight]:
    encoder = part.encoder
    width, num_training = encoder.width, encoder.layers_in_training
    num_frozen = encoder.num_layers - num_training
    bottom_trains = num_frozen == 0
    yield place.vocabulary("encoder", vocabulary, width, trains=bottom_trains)
    for elements, count in (
        (encoder.max_tokens * width, 1),
        (NUM_BUCKETS * encoder.heads, 1),
        (width, 2),
    ):
        yield Weight(part="encoder", count=count, elements=elements, trains=bottom_trains)
    hidden = encoder.feed_forward
    yield from place.block("encoder", num_frozen, width, hidden, trains=False)
    yield from place.block("encoder", num_training, width, hidden, trains=True)
    num_linear = 1 if part.connector.kind == "linear" else part.connector.num_layers
    for index in range(num_linear):
        elements = to * (width if index == 0 else to)
        yield Weight(part="connector", count=1, elements=elements, decays=True)
        yield Weight(part="connector", count=1, elements=to)
