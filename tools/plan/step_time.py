"""Seconds of a training step by part, from a machine's rates; nothing is assumed to overlap.

A stage's time for a microbatch is that of its products, attention, element-wise work and calls, and
of the tensor group's traffic. With m microbatches, c chunks and stages of T_s seconds, a step takes
m max(T) for the slowest stage and (sum(T) - max(T)) / c of bubble: at equal stages the usual
(p - 1) / (m c). Then come gradients over data ranks, and the update. DeepSpeed hides traffic behind
the backward at ZeRO-3 alone, and on CPUs not at all; so predictions for ZeRO-3 on GPUs are on the
safe side.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from model.connector import layer_sizes
from model.encoders.protocol import Stack
from parallel.costs import Load
from parallel.mesh import LayoutConfig
from tools.plan.machines import Links, Machine, Rates
from tools.plan.task import Candidate, Task
from tools.plan.weights import Share

FP32 = 4
UPDATE_BYTES = 28
"""AdamW reads weight, gradient and two moments, and writes three of them, in fp32."""

WHOLE_MOVES = 20
"""Elements of width moved in a block: two norms and two residuals, forward and backward."""
SPLIT_MOVES = 11
"""The same between the projections: layout of queries, keys and values; biases' gradients."""
HIDDEN_MOVES = 6
"""Elements of hidden width: GELU forward and backward, a bias's gradient."""
LOGIT_MOVES = 10
"""Passes over fp32 logits: maximum, shift, exponential, sum, division, casts."""


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Time of a step by part.

    Attributes:
        compute: of the slowest stage, over all microbatches.
        tensor: traffic of its tensor group.
        bubble: what it waits for other stages.
        pipeline: traffic between stages.
        data: traffic over data ranks: gradients, gathered parameters.
        update: what is done to gradients and weights on the rank itself.
    """

    compute: float
    tensor: float
    bubble: float
    pipeline: float
    data: float
    update: float

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(vars(self).values())


class Cost(NamedTuple):
    """Seconds of one microbatch, forward and backward, on one rank of a tensor group."""

    compute: float
    traffic: float
    """Of the tensor group."""

    @property
    def total(self) -> float:
        """Both."""
        return self.compute + self.traffic


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What a microbatch takes.

    Attributes:
        layer: a decoder layer.
        piece: what each piece does whatever its layers.
        first: what the first stage does besides.
        last: what the last stage does besides.
    """

    layer: Cost
    piece: float
    first: Cost
    last: Cost

    def of(self, share: Share, *, chunks: int) -> Cost:
        """What a stage takes."""
        parts = (
            (share.layers, self.layer),
            (share.is_first, self.first),
            (share.is_last, self.last),
        )
        compute = sum(count * cost.compute for count, cost in parts) + chunks * self.piece
        return Cost(compute, sum(count * cost.traffic for count, cost in parts))


def pieces_seconds(task: Task, candidate: Candidate, machine: Machine) -> Pieces:
    """What layers and ends take, which splits are balanced by."""
    rates = machine.rates_for(task.precision, ranks=candidate.ranks)
    layout, e = candidate.layout, task.element_bytes
    links = machine.links(span=layout.tensor)
    load = task.load(candidate.micro_sequences)
    layer = block_seconds(
        rates,
        task.decoder_layer(candidate.micro_sequences),
        layout,
        rows_split=layout.tensor if layout.sequence_parallel else 1,
        attention_rate=rates.attention,
        element_bytes=e,
    )
    # Which slots are apart, which later, their union; the mask made, and filled.
    mask = task.mask_elements(candidate.micro_sequences) * (4 + 2 * e) / rates.elementwise
    activation = load.slots * task.model.decoder.width * e
    sums = 4 + 2 * (layout.recompute == "full")
    layer_traffic = links.all_reduce(activation, ranks=layout.tensor, times=sums)
    if layout.sequence_parallel:
        # An all-reduce becomes two halves, and inputs are gathered again for weights' gradients.
        layer_traffic = links.all_gather(activation, ranks=layout.tensor, times=2 * sums + 2)
    return Pieces(
        layer=Cost(layer, layer_traffic),
        piece=mask,
        first=_first(task, layout, links, rates, load),
        last=_last(task, layout, links, rates, load),
    )


def step_seconds(task: Task, candidate: Candidate, machine: Machine) -> Seconds:
    """Time of a step."""
    pieces = pieces_seconds(task, candidate, machine)
    rates = machine.rates_for(task.precision, ranks=candidate.ranks)
    layout, stage = candidate.layout, candidate.stage
    owned = 1 if stage == 0 else candidate.data
    encoder_blocks = sum(
        stack.num_blocks
        for modality, part in task.model.encoders.items()
        for stack in part.encoder.stacks(task.spans[modality])
    )
    stages: list[Cost] = []
    update = data = 0.0
    for rank in range(layout.pipeline):
        share = task.share(candidate, rank)
        num_blocks = share.layers + share.is_first * encoder_blocks
        cost = pieces.of(share, chunks=layout.chunks)
        handling = (
            share.trained * rates.microbatch_element_seconds[stage]
            + num_blocks * rates.microbatch_block_seconds[stage]
            + rates.microbatch_seconds
        )
        stages.append(Cost(cost.compute + handling, cost.traffic))
        updating = (
            share.trained * rates.step_element_seconds[stage]
            + num_blocks * rates.step_block_seconds[stage]
            + share.trained / owned * UPDATE_BYTES / rates.update
        )
        update = max(update, updating)
        data = max(data, _data(task, candidate, machine, share))
    slowest = max(stages, key=lambda cost: cost.total)
    return Seconds(
        compute=candidate.num_microbatches * slowest.compute,
        tensor=candidate.num_microbatches * slowest.traffic,
        bubble=(sum(cost.total for cost in stages) - slowest.total) / layout.chunks,
        pipeline=_pipeline(task, candidate, machine),
        data=data,
        update=update,
    )


def block_seconds(
    rates: Rates,
    stack: Stack,
    layout: LayoutConfig,
    *,
    rows_split: int,
    attention_rate: float,
    element_bytes: int,
) -> float:
    """Forward and backward of one block on a rank."""
    tensor, rows, width, hidden = layout.tensor, stack.rows, stack.width, stack.hidden
    products = sum(
        rates.product_seconds(rows, inner, outer)
        for inner, outer in (
            (width, 3 * width / tensor),
            (width / tensor, width),
            (width, hidden / tensor),
            (hidden / tensor, width),
        )
    )
    # Rates count a backward as two forwards: one of three parts each.
    attention = 4 * stack.pairs * width / tensor / attention_rate
    moved = block_moves(stack, tensor=tensor, rows_split=rows_split) * element_bytes
    forward = products + attention + moved / rates.elementwise / 3
    times = 3 if stack.trains else 1
    again = 0.0
    if stack.trains and layout.recompute == "full":
        times += 1
    if stack.trains and layout.recompute == "selective":
        again = attention
    return times * (forward + rates.block_seconds / 3) + again


def block_moves(stack: Stack, *, tensor: int, rows_split: int) -> float:
    """Elements that a block moves, forward and backward, besides its products and attention."""
    split = SPLIT_MOVES * stack.width + HIDDEN_MOVES * stack.hidden
    return stack.rows * (WHOLE_MOVES * stack.width / rows_split + split / tensor)


def _first(task: Task, layout: LayoutConfig, links: Links, rates: Rates, load: Load) -> Cost:
    """Embedding, encoders and connectors."""
    decoder, tensor, e = task.model.decoder, layout.tensor, task.element_bytes
    activation = load.slots * decoder.width * e
    # The embedding's gradient is dense: made, filled, and added to what is there.
    table = decoder.vocabulary * decoder.width * e / tensor
    compute = (5 * activation + 4 * table) / rates.elementwise
    traffic = links.all_reduce(activation, ranks=tensor)
    for modality, part in task.model.encoders.items():
        spans = load.spans[modality]
        stacks = part.encoder.stacks(spans)
        for stack in stacks:
            compute += stack.num_blocks * block_seconds(
                rates,
                stack,
                layout,
                rows_split=1,
                attention_rate=rates.span_attention,
                element_bytes=e,
            )
            sums = (4 + 2 * (layout.recompute == "full")) if stack.trains else 2
            traffic += links.all_reduce(
                stack.rows * stack.width * e, ranks=tensor, times=stack.num_blocks * sums
            )
        # The embedding: its sum over the tensor group, and its gradient where it trains.
        first = stacks[0]
        traffic += links.all_reduce(first.rows * first.width * e, ranks=tensor)
        if first.bias_trains:
            compute += 4 * decoder.vocabulary * first.width * e / tensor / rates.elementwise
        for inner, outer in layer_sizes(part.connector, part.encoder.width, decoder.width):
            compute += 3 * rates.product_seconds(spans.vectors, inner, outer)
    return Cost(compute, traffic)


def _last(task: Task, layout: LayoutConfig, links: Links, rates: Rates, load: Load) -> Cost:
    """The head and its loss."""
    decoder, tensor = task.model.decoder, layout.tensor
    rows = decoder.vocabulary / tensor
    chunk = min(decoder.loss_chunk_tokens, load.scored)
    num_chunks = load.scored / chunk
    products = 3 * num_chunks * rates.product_seconds(chunk, decoder.width, rows)
    moved = head_moves(load.scored, decoder.width, rows, num_chunks=num_chunks)
    activation = load.slots * decoder.width * task.element_bytes
    traffic = links.all_reduce(activation, ranks=tensor)
    # Maxima, then sums and chosen logits, of each chunk.
    traffic += math.ceil(num_chunks) * links.all_reduce(chunk * FP32, ranks=tensor, times=2)
    if layout.sequence_parallel:
        traffic += links.all_gather(activation, ranks=tensor)
    return Cost(products + moved / rates.logits, traffic)


def head_moves(scored: float, width: int, vocabulary: float, *, num_chunks: float) -> float:
    """Bytes that the head's loss moves, forward and backward, besides its products."""
    weight = vocabulary * width * FP32
    # The weight's gradient: cleared, added to by each chunk, scaled.
    return LOGIT_MOVES * scored * vocabulary * FP32 + (4 + 2 * num_chunks) * weight


def _pipeline(task: Task, candidate: Candidate, machine: Machine) -> float:
    """What a stage sends on and back, every microbatch and chunk."""
    layout = candidate.layout
    if layout.pipeline == 1:
        return 0.0
    links = machine.links(span=layout.model_ranks)
    rows = candidate.micro_sequences * task.sequence_tokens
    num_bytes = rows * task.model.decoder.width * task.element_bytes
    if layout.sequence_parallel:
        num_bytes /= layout.tensor
    return 2 * candidate.num_microbatches * layout.chunks * links.send.seconds(num_bytes)


def _data(task: Task, candidate: Candidate, machine: Machine, share: Share) -> float:
    """Gradients over data ranks, parameters gathered, and the tied embedding over its two ends."""
    layout, data = candidate.layout, candidate.data
    links = machine.links(span=candidate.ranks, stride=layout.model_ranks)
    gradients = share.trained * task.state_bytes
    weights = share.elements * task.element_bytes
    seconds = 0.0
    if data > 1 and candidate.stage == 3:
        # Three times a microbatch, in about six messages a layer.
        messages = 6 * (share.layers + 1)
        seconds += candidate.num_microbatches * (
            links.all_gather(weights, ranks=data, times=2)
            + links.all_gather(gradients, ranks=data)
            + 3 * messages * links.gather.latency_seconds
        )
    elif data > 1:
        times = candidate.num_microbatches if candidate.stage == 2 else 1
        seconds += links.all_reduce(gradients, ranks=data, times=times)
        if candidate.stage > 0 or task.precision == "bf16":
            seconds += links.all_gather(weights, ranks=data)
    is_end = share.is_first or share.is_last
    if layout.pipeline > 1 and is_end and task.model.decoder.tied_head:
        table = share.vocabulary_rows * task.model.decoder.width * task.state_bytes
        held = 1 if candidate.stage == 0 else data
        seconds += machine.links(span=layout.model_ranks).all_reduce(table / held, ranks=2)
    return seconds
