"""Seconds of a training step by part, from a machine's rates.

A stage's time for a microbatch is that of its products, attention, element-wise work and calls, and
of the tensor group's traffic. With m microbatches, c chunks and stages of T_s seconds, a step takes
m max(T) for the slowest stage and (sum(T) - max(T)) / c of bubble: at equal stages the usual
(p - 1) / (m c). Then come gradients over data ranks, and the update. Nothing overlaps unless a
candidate's `wire` says so: DeepSpeed hides traffic behind the backward at ZeRO-3 alone, and on CPUs
not at all; so predictions for ZeRO-3 on GPUs are on the safe side.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from model.decoder import TIED_NAME
from parallel.costs import Load
from parallel.mesh import LayoutConfig
from tools.plan.activations import HEAD_NAME
from tools.plan.block_time import (
    beside_seconds,
    block_seconds,
    connector_seconds,
    connector_traffic,
    encoder_seconds,
)
from tools.plan.machines import Links, Machine, Rates
from tools.plan.task import PRECISION_BYTES, Candidate, Task
from tools.plan.weights import Share

FP32 = 4
UPDATE_BYTES = 28
"""AdamW reads weight, gradient and two moments, and writes three of them, in fp32."""

LOGIT_MOVES = 10
"""Passes over fp32 logits: maximum, shift, exponential, sum, division, casts."""
FUSED_LOGIT_MOVES = 3
"""Passes of a kernel over logits in their own type: read, read again, written over."""
CONTENTION = 0.7
"""Of the time of a message that travels while the device computes, what it costs all the same:
NCCL's kernels have processors and memory meanwhile, and layers wait for each other's."""


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
        first: what the first stage does besides.
        last: what the last stage does besides.
    """

    layer: Cost
    first: Cost
    last: Cost

    def of(self, share: Share) -> Cost:
        """What a stage takes."""
        parts = (
            (share.layers, self.layer),
            (share.is_first, self.first),
            (share.is_last, self.last),
        )
        compute = sum(count * cost.compute for count, cost in parts)
        return Cost(compute, sum(count * cost.traffic for count, cost in parts))


def pieces_seconds(task: Task, candidate: Candidate, machine: Machine) -> Pieces:
    """What layers and ends take, which splits are balanced by."""
    rates = machine.rates_for(task.precision, ranks=candidate.ranks)
    layout, e = candidate.layout, task.element_bytes
    links = machine.links(span=layout.tensor)
    load = task.load(candidate.micro_sequences)
    stack = task.decoder_layer(candidate.micro_sequences)
    block = partial(
        block_seconds,
        rates,
        tensor=layout.tensor,
        products=task.layer_products(tensor=layout.tensor),
        moved_bytes=task.layer_moves(layout),
        attention_rate=rates.attention,
        again=task.again(layout),
        attention_again=layout.recompute == "selective",
        weights_train=task.trains_decoder,
    )
    layer = block(stack)
    if (reach := task.reach) is not None:
        # Of the mean layer: through the first ones no gradient goes.
        num_layers, first = task.model.decoder.num_layers, reach.first_decoder_layer
        fixed = first * block(replace(stack, trains=False))
        adapters = beside_seconds(rates, task, stack.rows, "decoder.blocks.", layout)
        layer = (fixed + (num_layers - first) * layer + adapters) / num_layers
    activation = load.slots * task.model.decoder.width * e
    sums = 4 + 2 * (layout.recompute == "full")
    layer_traffic = links.all_reduce(activation, ranks=layout.tensor, times=sums)
    if layout.sequence_parallel:
        # An all-reduce becomes two halves, and inputs are gathered again for weights' gradients.
        layer_traffic = links.all_gather(activation, ranks=layout.tensor, times=2 * sums + 2)
    return Pieces(
        layer=Cost(layer, layer_traffic),
        first=_first(task, layout, links, rates, load),
        last=_last(task, layout, links, rates, load, on_gpu=machine.kind != "cpu"),
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
        cost = pieces.of(share)
        updating = share.trained / owned * UPDATE_BYTES / rates.update
        handling = rates.microbatch_seconds
        if not task.wire(candidate).by_layer:  # else neither is DeepSpeed's
            handling += (
                share.trained * rates.microbatch_element_seconds[stage]
                + num_blocks * rates.microbatch_block_seconds[stage]
            )
            updating += (
                share.trained * rates.step_element_seconds[stage]
                + num_blocks * rates.step_block_seconds[stage]
            )
        stages.append(Cost(cost.compute + handling, cost.traffic))
        update = max(update, updating)
        data = max(data, _data(task, candidate, machine, share, compute=cost.compute))
    slowest = max(stages, key=lambda cost: cost.total)
    return Seconds(
        compute=candidate.num_microbatches * slowest.compute,
        tensor=candidate.num_microbatches * slowest.traffic,
        bubble=(sum(cost.total for cost in stages) - slowest.total) / layout.chunks,
        pipeline=_pipeline(task, candidate, machine),
        data=data,
        update=update,
    )


def _first(task: Task, layout: LayoutConfig, links: Links, rates: Rates, load: Load) -> Cost:
    """Embedding, encoders and connectors."""
    decoder, tensor, e = task.model.decoder, layout.tensor, task.element_bytes
    activation = load.slots * decoder.width * e
    # The embedding's gradient is dense: made, filled, and added to what is there.
    table = decoder.vocabulary * decoder.width * e / tensor
    compute = (5 * activation + 4 * table * task.trains(TIED_NAME)) / rates.elementwise
    traffic = links.all_reduce(activation, ranks=tensor)
    for modality, part in task.model.encoders.items():
        spans = load.spans[modality]
        stacks = part.encoder.stacks(spans)
        compute += encoder_seconds(task, layout, rates, modality, stacks)
        for stack in stacks:
            sums = (4 + 2 * (layout.recompute == "full")) if stack.trains else 2
            traffic += links.all_reduce(
                stack.rows * stack.width * e, ranks=tensor, times=stack.num_blocks * sums
            )
        # The embedding: its sum over the tensor group, and its gradient where it trains.
        first = stacks[0]
        traffic += links.all_reduce(first.rows * first.width * e, ranks=tensor)
        if first.bias_trains:
            compute += 4 * decoder.vocabulary * first.width * e / tensor / rates.elementwise
        compute += connector_seconds(task, layout, rates, modality, spans)
        traffic += connector_traffic(task, layout, links, modality, spans)
    return Cost(compute, traffic)


def _last(
    task: Task, layout: LayoutConfig, links: Links, rates: Rates, load: Load, *, on_gpu: bool
) -> Cost:
    """The head and its loss."""
    decoder, tensor = task.model.decoder, layout.tensor
    rows = decoder.vocabulary / tensor
    chunk = min(task.loss_chunk(num_rows=rows, on_gpu=on_gpu), load.scored)
    num_chunks = load.scored / chunk
    trains = task.trains(TIED_NAME if decoder.tied_head else HEAD_NAME)
    products = (2 + trains) * num_chunks * rates.product_seconds(chunk, decoder.width, rows)
    moved = head_moves(
        load.scored,
        decoder.width,
        rows,
        num_chunks=num_chunks,
        fused_bytes=task.element_bytes if task.loss_is_fused(on_gpu=on_gpu) else None,
    )
    activation = load.slots * decoder.width * task.element_bytes
    traffic = links.all_reduce(activation, ranks=tensor)
    # Maxima, then sums and chosen logits, of each chunk.
    traffic += math.ceil(num_chunks) * links.all_reduce(chunk * FP32, ranks=tensor, times=2)
    if layout.sequence_parallel:
        traffic += links.all_gather(activation, ranks=tensor)
    return Cost(products + moved / rates.logits, traffic)


def head_moves(
    scored: float,
    width: int,
    vocabulary: float,
    *,
    num_chunks: float,
    fused_bytes: int | None = None,
) -> float:
    """Bytes that the head's loss moves, forward and backward, besides its products.

    Args:
        scored: slots.
        width: of a state.
        vocabulary: rows of the weight on a rank.
        num_chunks: in which the slots come.
        fused_bytes: of a logit, where a kernel passes over it once; None where torch does.
    """
    if fused_bytes is None:
        logits = LOGIT_MOVES * scored * vocabulary * FP32
    else:
        logits = FUSED_LOGIT_MOVES * scored * vocabulary * fused_bytes
    # The weight's gradient: made, added to by each chunk, scaled.
    return logits + (4 + 2 * num_chunks) * vocabulary * width * FP32


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


def _data(
    task: Task, candidate: Candidate, machine: Machine, share: Share, *, compute: float
) -> float:
    """Gradients over data ranks, parameters gathered, and the tied embedding over its two ends.

    Args:
        task: the run.
        candidate: how it is spread.
        machine: what it runs on.
        share: what the rank holds.
        compute: seconds of a microbatch, forward and backward.
    """
    layout, data, wire = candidate.layout, candidate.data, task.wire(candidate)
    links = machine.links(span=candidate.ranks, stride=layout.model_ranks)
    reduce_bytes = task.state_bytes if wire.reduce_in is None else PRECISION_BYTES[wire.reduce_in]
    gradients = share.trained * reduce_bytes
    weights = share.elements * task.element_bytes
    # What is gathered for forwards, and what for backwards or reduced after them.
    forward = backward = 0.0
    times, messages = candidate.num_microbatches, share.layers + 1
    if data == 1:
        pass
    elif wire.by_layer:
        gathered = links.all_gather(weights / messages, ranks=data, times=messages)
        reduced = links.all_gather(gradients / messages, ranks=data, times=messages)
        forward, backward = gathered, reduced + gathered * (candidate.stage == 3)
    elif candidate.stage == 3:
        # About six messages a layer each time.
        latency = 6 * messages * links.gather.latency_seconds
        forward = links.all_gather(weights, ranks=data) + latency
        backward = forward + links.all_gather(gradients, ranks=data) + latency
    else:
        messages = math.ceil(share.trained / task.zero.bucket_elements)
        reduce = links.all_gather if wire.scatters else links.all_reduce
        backward = reduce(gradients, ranks=data, times=times if candidate.stage == 2 else 1)
        if candidate.stage > 0 or task.precision == "bf16":
            forward = links.all_gather(weights, ranks=data)
        if candidate.stage == 2:
            # Weights once a step, gradients in every microbatch.
            forward, backward = forward / times, backward / times
        else:
            times = 1
    seconds = forward + backward
    if wire.overlaps:
        seconds = _exposed(forward, behind=compute / 3, messages=messages)
        seconds += _exposed(backward, behind=2 * compute / 3, messages=messages)
    seconds *= times
    is_end = share.is_first or share.is_last
    if layout.pipeline > 1 and is_end and task.model.decoder.tied_head:
        table = share.vocabulary_rows * task.model.decoder.width * task.state_bytes
        held = 1 if candidate.stage == 0 else data
        seconds += machine.links(span=layout.model_ranks).all_reduce(table / held, ranks=2)
    return seconds


def _exposed(seconds: float, *, behind: float, messages: int) -> float:
    """What traffic costs that travels while the device computes for so long.

    The last message, or the first, has nothing to hide behind.
    """
    return max(seconds - behind, seconds / messages, CONTENTION * seconds)
