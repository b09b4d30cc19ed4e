"""Floating-point operations of a model's parts, as arithmetic on its shapes.

B sequences of S slots and H channels (as in `model`), L layers, F feed-forward width,
V tokens; E channels and R rows in an encoder. A product of [m, k] and [k, n] costs 2 m k n. What is
counted is what kernels compute: causal attention half of the S x S scores, span attention all cells
of its padded grid. Lookups, norms, activations and the optimiser are left out: they are negligible.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from model.decoder import DecoderConfig
from model.encoders.protocol import SpanLoad, Stack
from model.recompute import Recompute
from model.semicausal import EncoderConfig, ModelConfig

BACKWARD = 2
"""A product's backward is two products of its size: one for its input, one for its weight."""

MEAN_SPAN_TOKENS = 96
"""Of the paper's spans, 64 to 128 tokens long."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one microbatch holds, on average.

    Attributes:
        sequences: B.
        sequence_tokens: S.
        spans: by modality; every encoder of the model has an entry.
    """

    sequences: int
    sequence_tokens: int
    spans: Mapping[str, SpanLoad] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Decoder slots, B*S."""
        return self.sequences * self.sequence_tokens

    @property
    def scored(self) -> float:
        """Slots that carry a loss: of a span, only the first token is predicted."""
        return self.slots - sum(part.slots - part.spans for part in self.spans.values())


def usual_load(
    config: ModelConfig, *, sequences: int, sequence_tokens: int, span_share: float
) -> Load:
    """The paper's spans in every encoder's share of the slots.

    Args:
        config: the model; encoders share the slots of spans evenly.
        sequences: B.
        sequence_tokens: S.
        span_share: share of the slots in spans.
    """
    spans = {}
    for modality, part in config.encoders.items():
        vectors = span_share * sequences * sequence_tokens / len(config.encoders)
        longest = part.encoder.longest_span
        if (item_slots := part.connector.item_slots) is not None:
            spans[modality] = SpanLoad.of_items(
                slots=vectors, spans=vectors, item_slots=item_slots, longest=longest
            )
            continue
        length = min(MEAN_SPAN_TOKENS, longest, sequence_tokens // 2)
        spans[modality] = SpanLoad(vectors=vectors, spans=vectors / length, longest=4 / 3 * length)
    return Load(sequences=sequences, sequence_tokens=sequence_tokens, spans=spans)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations of one part for one microbatch, whole (not divided over ranks).

    Attributes:
        products: forward products with weights.
        attention: forward scores and mixing of attention.
        backward: operations of the backward over those of the forward: 2 where all trains, less
            where weights are frozen, 0 where nothing below trains either.
        again: operations computed a second time in the backward.
    """

    products: float = 0.0
    attention: float = 0.0
    backward: float = BACKWARD
    again: float = 0.0

    @property
    def forward(self) -> float:
        """All operations of the forward."""
        return self.products + self.attention

    @property
    def training(self) -> float:
        """Forward, backward, and what is computed again."""
        return (1 + self.backward) * self.forward + self.again


@dataclass(frozen=True, kw_only=True)
class ModelWork:
    """Operations of a whole model by part, for one microbatch.

    Attributes:
        layer: one decoder layer.
        head: logits of the scored slots.
        encoder: all encoders' blocks, one entry a block.
        connector: all connectors, one entry each.
    """

    layer: Work
    head: Work
    encoder: tuple[Work, ...]
    connector: tuple[Work, ...]

    @property
    def first(self) -> float:
        """Training operations that the first piece has besides layers."""
        return sum(work.training for work in (*self.encoder, *self.connector))


def block_products(width: int, feed_forward: int, *, rows: float) -> float:
    """Forward operations of one block's products: [H, 3H], [H, H], [H, F] and [F, H]."""
    return 2 * rows * (4 * width**2 + 2 * width * feed_forward)


def stack_products(stack: Stack) -> float:
    """The same where heads may have another width and share keys, and a gate may be there."""
    hidden = (2 + stack.gated) * stack.hidden
    return 2 * stack.rows * stack.width * (stack.fused + stack.inner + hidden)


def block_attention(width: int, *, pairs: float) -> float:
    """Forward operations of one block's attention: scores and mixing, each pairs x width."""
    return 2 * 2 * pairs * width


def head_products(width: int, vocabulary: int, *, scored: float) -> float:
    """Forward operations of the logits, [scored, H] x [H, V]."""
    return 2 * scored * width * vocabulary


def connector_work(
    part: EncoderConfig, *, to: int, load: SpanLoad, recompute: Recompute = "none"
) -> Work:
    """Operations of a connector: products, and where queries attend, that."""
    rows = part.connector.products(part.encoder, to, load)
    products = sum(2 * each.rows * each.inner * each.outer for each in rows)
    attention = block_attention(part.encoder.width, pairs=part.connector.pairs(load))
    if not attention:  # linear layers are never computed again
        return Work(products=products)
    again = {"none": 0.0, "selective": attention, "full": products + attention}[recompute]
    return Work(products=products, attention=attention, again=again)


def causal_stack(
    decoder: DecoderConfig,
    *,
    sequences: int,
    sequence_tokens: int,
    document_tokens: float | None = None,
) -> Stack:
    """One layer of a decoder.

    Args:
        decoder: its shape.
        sequences: B.
        sequence_tokens: S.
        document_tokens: where documents are kept apart, slots of the one that a slot lies in, on
            average: the sum of their squares over their sum. At most S, and S if it is not known.
    """
    rows = sequences * sequence_tokens
    reach = min(document_tokens or sequence_tokens, sequence_tokens)
    return Stack(
        num_blocks=1,
        width=decoder.width,
        hidden=decoder.feed_forward,
        heads=decoder.heads,
        rows=rows,
        cells=rows,
        pairs=rows * (reach + 1) / 2,
        dropout=decoder.dropout > 0,
        trains=True,
        bias_trains=False,
        head_width=decoder.head_width,
        kv_heads=decoder.kv_heads,
        gated=decoder.activation == "swiglu",
        turned=decoder.positions == "rope",
    )


def model_work(config: ModelConfig, load: Load, *, recompute: Recompute = "none") -> ModelWork:
    """Operations of every part for one microbatch.

    Recomputation at `selective` computes attention's scores and mixing twice, at `full` the whole
    block. The head keeps its gradients from the forward and computes nothing again.
    """
    decoder = config.decoder
    layer = causal_stack(decoder, sequences=load.sequences, sequence_tokens=load.sequence_tokens)
    connector: list[Work] = []
    encoder: list[Work] = []
    for modality, part in config.encoders.items():
        spans = load.spans[modality]
        for stack in part.encoder.stacks(spans):
            encoder += [_block(stack, recompute)] * stack.num_blocks
        connector.append(connector_work(part, to=decoder.width, load=spans, recompute=recompute))
    return ModelWork(
        layer=_block(layer, recompute),
        head=Work(products=head_products(decoder.width, decoder.vocabulary, scored=load.scored)),
        encoder=tuple(encoder),
        connector=tuple(connector),
    )


def item_cost(config: ModelConfig, modality: str, slots: int) -> int:
    """Operations with which an encoder and its connector train on one item, such as a picture.

    A whole number, so that sums of them are the same in any order. Where all items take as many
    slots, each is taken for one of the largest.

    Args:
        config: the model.
        modality: of the item.
        slots: that it takes.
    """
    part = config.encoders[modality]
    load = SpanLoad(vectors=slots, spans=1, longest=slots)
    if (item_slots := part.connector.item_slots) is not None:
        longest = part.encoder.longest_span
        load = SpanLoad.of_items(slots=slots, spans=1, item_slots=item_slots, longest=longest)
    blocks = sum(
        stack.num_blocks * _block(stack, "none").training for stack in part.encoder.stacks(load)
    )
    return round(blocks + connector_work(part, to=config.decoder.width, load=load).training)


def _block(stack: Stack, recompute: Recompute) -> Work:
    """One block. Nothing flows back into those below the first that trains."""
    products = stack_products(stack)
    attention = block_attention(stack.inner, pairs=stack.pairs)
    if not stack.trains:
        return Work(products=products, attention=attention, backward=0)
    again = {"none": 0.0, "selective": attention, "full": products + attention}[recompute]
    return Work(products=products, attention=attention, again=again)
