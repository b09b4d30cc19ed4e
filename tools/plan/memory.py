"""Memory of a rank at its fullest moment, by kind.

The moments looked at are those that can be the fullest: the start, the restoring of a checkpoint, a
forward of which nothing is kept, the end of the last forward, the backward of the head, the first
gradient of a weight, the end of a backward, the reduction of gradients, the update. At the start a
rank's part is whole, whatever ZeRO makes of it then. A checkpoint is restored into state that is
all there, without activations. ZeRO's terms are those of DeepSpeed 0.19 as `parallel.zero` drives
it, read off its allocations. Its bucket has room for all parameters, trained or not, of a small
model. With P trained elements on a rank, D data ranks and b elements in a bucket they are, in
bytes:

- 0: gradients 4 P, their sum over ranks once more.
- 0 and 1 in bf16: gradient sums 4 P; one bf16 gradient at a time, or without
  `zero.immediate_gradients` all of them, 2 P, during a backward; of the optimiser's largest group
  this rank's part of the sum over ranks, and in bf16 what is sent and received.
- 1: gradients 4 P, then a bucket, from a step's first gradient to its last, or this rank's part; in
  the update a flat group of gradients.
- 2: this rank's part 4 P / D and a few buckets, twice over from the second microbatch on.
- 3: a part of everything, a bucket, copies of the gradients in it, and gathered parameters; these
  are nearly twice the live ones, because the backward prefetches while those of the forward still
  stand. A rank alone gathers nothing.
"""

import operator
from dataclasses import dataclass, replace
from typing import NamedTuple

from model.decoder import TIED_NAME
from tools.plan.activations import FP32, HEAD_NAME, Head, head_bytes, kept
from tools.plan.machines import Machine
from tools.plan.task import Candidate, Task
from tools.plan.weights import Share
from train.checkpoint.chunks import SLICE_BYTES
from train.checkpoint.local.exchange import BLOCK_BYTES

REDUCED_AT_ONCE = 500_000_000
"""Elements that DeepSpeed reduces in one call where it shards no gradients."""

LIBRARY_BYTES = 2 * 32 * 2**20
"""What torch gives cuBLAS and cuBLASLt to work in, on Hopper, from their first product on."""

FP64 = 8
SLOT_BYTES = 60
"""Of the batch itself, a slot: tokens, labels, which are scored."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by kind at the fullest moment.

    Attributes:
        parameters: weights that are multiplied with, and position tables.
        gradients: of the parameters, summed or being summed.
        optimizer: master weights and moments.
        activations: of the decoder.
        encoder: activations of encoders and connectors.
        workspace: buckets, gathered parameters, logits, what comes and goes.
    """

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    encoder: float = 0.0
    workspace: float = 0.0

    @property
    def total(self) -> float:
        """All kinds."""
        return sum(vars(self).values())


class Moments(NamedTuple):
    """Memory of a rank at the fullest moment of each part of a run."""

    training: Memory
    """A step."""
    start: Memory
    """Before anything is cut or used."""
    restoring: Memory
    """While a checkpoint is read, wherever it lies."""

    @property
    def fullest(self) -> Memory:
        """Of all of them."""
        return max(self, key=lambda memory: memory.total)

    def too_large(self, room_bytes: float) -> str | None:
        """The part of a run that there is no room for, a step if that is one; None if it fits."""
        parts = zip(self._fields, self, strict=True)
        return next((name for name, memory in parts if memory.total > room_bytes), None)


def fullest_moments(task: Task, candidate: Candidate, machine: Machine) -> Moments:
    """Memory at each part of a run of the rank that needs most then."""
    stages = range(candidate.layout.pipeline)
    ranks = [rank_moments(task, candidate, machine, pipeline_rank=s) for s in stages]
    if len(ranks) == 1:
        return ranks[0]
    parts = zip(*ranks, strict=True)
    return Moments(*(max(part, key=lambda memory: memory.total) for part in parts))


def fullest_rank(task: Task, candidate: Candidate, machine: Machine) -> Memory:
    """Memory of the rank that needs most."""
    return fullest_moments(task, candidate, machine).fullest


def rank_memory(
    task: Task, candidate: Candidate, machine: Machine, *, pipeline_rank: int
) -> Memory:
    """Memory of one rank, of this stage, at its fullest moment."""
    return rank_moments(task, candidate, machine, pipeline_rank=pipeline_rank).fullest


def rank_moments(
    task: Task, candidate: Candidate, machine: Machine, *, pipeline_rank: int
) -> Moments:
    """Memory of one rank, of this stage, at each part of a run."""
    share = task.share(candidate, pipeline_rank)
    on_cpu = machine.kind == "cpu"
    state = _state(task, candidate, share, on_cpu=on_cpu)
    acts = kept(task, candidate, share, fused=machine.has_fused_span_attention, padded=not on_cpu)

    def held(counts: tuple[int, ...]) -> tuple[float, float]:
        return sum(map(operator.mul, counts, acts.pieces)), counts[0] * acts.encoder

    fullest = max(candidate.in_flight(pipeline_rank), key=lambda counts: sum(held(counts)))
    # A backward has just ended: the last piece holds one microbatch less.
    after = (*fullest[:-1], fullest[-1] - 1)
    load = task.load(candidate.micro_sequences)
    row_bytes = task.model.decoder.width * task.element_bytes
    batch = candidate.num_microbatches * load.slots * SLOT_BYTES
    if candidate.layout.sequence_parallel:
        # Megatron keeps one buffer of whole rows for all gathers.
        batch += load.slots * row_bytes
    head = Head()
    waiting = 0.0
    if share.is_last:
        tied = task.model.decoder.tied_head
        head = head_bytes(
            task,
            load=load,
            vocabulary_rows=share.vocabulary_rows,
            on_gpu=not on_cpu,
            trains=task.trains(TIED_NAME if tied else HEAD_NAME),
        )
        waiting = head.left if share.is_first and task.model.decoder.tied_head else 0.0
    tables = share.is_first * share.vocabulary_rows * row_bytes * task.trains(TIED_NAME)
    # Of microbatches done, gradients stay; while none is done, there are none before a backward.
    several = candidate.num_microbatches * len(fullest) > sum(fullest)
    summed, between = several * state.summed, several * state.between + state.gathered
    begun = 0.0 if several and state.stays else state.begun
    between += state.begun - begun
    transient = max(acts.block_transient, acts.encoder_transient)
    head_backward = max(head.backward, head.left + transient)
    first_gradient = begun + head.left + (acts.first_gradient or 0.0)
    if acts.first_gradient is None:
        head_backward += begun
    last_backward = state.gathered + waiting + max(tables, acts.block_transient)
    nothing = (0,) * len(fullest)
    # Microbatches held, gradients, workspace.
    moments = [
        (after, summed, between + acts.forward_transient),
        (fullest, summed, between + head.forward),
        (fullest, summed, between + head_backward),
        (fullest, summed, between + first_gradient),
        (after, state.growing, state.backward + last_backward),
        (nothing, state.growing, state.reduction),
        (nothing, state.left, state.update),
    ]
    kept_then = {counts: held(counts) for counts in (after, fullest, nothing)}
    counts, gradients, workspace = max(moments, key=lambda m: sum(kept_then[m[0]]) + m[1] + m[2])
    activations, encoder = kept_then[counts]
    running = replace(
        state.always,
        activations=activations,
        encoder=encoder,
        gradients=state.always.gradients + gradients,
        workspace=state.always.workspace + batch + workspace + LIBRARY_BYTES * (not on_cpu),
    )
    return Moments(
        training=running,
        start=_start(task, candidate, share, on_cpu=on_cpu),
        restoring=_restoring(task, candidate, share, state, on_cpu=on_cpu),
    )


def _start(task: Task, candidate: Candidate, share: Share, *, on_cpu: bool) -> Memory:
    """Before anything is cut or used: the whole part, and one parameter being cast or cut.

    It is built in fp32 in the host's memory and handed on in the run's precision. There stages 1
    and 2 lay what trains out flat besides; on GPUs they do so in the host's memory too.
    """
    e = task.element_bytes
    parameters = (FP32 if on_cpu else e) * share.elements
    if on_cpu and candidate.stage in (1, 2):
        parameters = max(parameters, e * (share.elements + share.trained))
    return Memory(parameters=parameters + _tables(task, share), workspace=e * share.largest_held)


def _restoring(
    task: Task, candidate: Candidate, share: Share, state: "_State", *, on_cpu: bool
) -> Memory:
    """With all state there, whether a step was made or not, and what passes through.

    On a GPU numbers come from buffers of the host.
    """
    passing = 0.0
    if on_cpu:
        # A stored slice, where it was cut otherwise; before that, blocks to and from other nodes.
        # What is fixed is stored as it is held, and has no masters.
        largest = max(task.state_bytes * share.largest, task.element_bytes * share.largest_held)
        passing = min(SLICE_BYTES, largest)
        passing = max(passing, task.saves_nearby * 2 * BLOCK_BYTES)
    always = state.always
    return Memory(
        parameters=always.parameters,
        gradients=always.gradients,
        optimizer=always.optimizer,
        workspace=always.workspace + max(passing, state.published),
    )


def _tables(task: Task, share: Share) -> int:
    """Bytes of the table of sinusoids, which is no parameter and stays in fp32."""
    decoder = task.model.decoder
    if decoder.positions != "sinusoidal":
        return 0
    return share.is_first * decoder.max_tokens * decoder.width * FP32


@dataclass(frozen=True, kw_only=True)
class _State:
    """Training state of a rank under ZeRO, in bytes.

    Attributes:
        always: what is there at every moment.
        summed: gradients between the microbatches of a step.
        growing: gradients at the end of a backward.
        left: gradients during the update.
        between: workspace between the microbatches of a step.
        begun: workspace that the first gradient of a backward brings.
        stays: whether it stays until the step's end.
        gathered: parameters that are gathered for use.
        backward: workspace at the end of a backward.
        reduction: workspace while gradients are reduced over ranks.
        update: workspace of the update.
        published: workspace while weights become those of the masters.
    """

    always: Memory
    summed: float = 0.0
    growing: float = 0.0
    left: float = 0.0
    between: float = 0.0
    begun: float = 0.0
    stays: bool = False
    gathered: float = 0.0
    backward: float = 0.0
    reduction: float
    update: float
    published: float = 0.0


def _state(task: Task, candidate: Candidate, share: Share, *, on_cpu: bool) -> _State:
    e, s, stage, data = task.element_bytes, task.state_bytes, candidate.stage, candidate.data
    # Gloo gathers into a copy.
    published = (data > 1) * on_cpu * e * share.largest_group
    norm = FP64 * share.largest
    # Gradients in the masters' type: of all, of this rank's part, of the optimiser's largest group.
    whole, part, group = s * share.trained, s * share.trained / data, s * share.largest_group
    # Where parameters and states have one type, parameters are their own masters; but stages 1 and
    # 2 flatten parameters that are whole, and need a part's master beside them.
    keeps_masters = e != s or (stage in (1, 2) and task.precision == "fp32")
    copies = 2 + keeps_masters
    always = Memory(parameters=e * share.elements + _tables(task, share), optimizer=copies * part)
    # A rank alone reduces nothing.
    reduced = min(share.trained, REDUCED_AT_ONCE) * s if data > 1 else 0
    if stage == 0 and task.precision == "fp32":
        return _State(
            always=replace(always, optimizer=copies * whole),
            summed=whole,
            growing=whole,
            left=whole,
            reduction=reduced,
            update=norm,
        )
    if stage <= 1 and task.precision == "bf16":
        begun = e * (share.largest if task.zero.immediate_gradients else share.trained)
        always = replace(always, gradients=whole)
        # Gloo reduces a copy.
        reduced = (data > 1) * (group / data + group * on_cpu)
        if data > 1 and task.wire(candidate).reduce_in == "bf16":
            reduced = group / data + 2 * e * share.largest_group
        return _State(
            always=always,
            growing=begun,
            left=begun,
            reduction=reduced,
            update=norm,
            published=published,
        )
    bucket_elements = min(task.zero.bucket_elements, share.elements)
    bucket = bucket_elements * s
    if stage == 1:
        return _State(
            always=always,
            summed=whole,
            growing=whole,
            left=part,
            begun=bucket,
            stays=True,
            backward=bucket,
            reduction=max(bucket, part),
            update=max(group, norm),
            published=published,
        )
    if stage == 2:
        # Buckets alive at the end of a backward: the one being filled, copies being sent, and
        # those whose slices are kept; with the first microbatch's sums, more from the second on.
        num_buckets = share.elements / bucket_elements
        twice = candidate.num_microbatches > 1 and e == s
        buckets, leftover = 1.0 + twice, 0.0
        if data > 1:
            most = 5.0 if twice else 3.0
            buckets = min(most if e == s else 2.0, 1 + num_buckets)
            leftover = min(most - 2 + (not twice), num_buckets - 1) * bucket
        casts = 0.0 if e == s else bucket_elements * 2 * e
        backward = reduction = buckets * bucket + casts
        if data > 1 and num_buckets <= 1:
            # All gradients lie in the one bucket, in bf16 beside those it was filled from; the
            # ranks' parts are then reduced in turn, and gloo reduces a copy.
            backward = bucket + casts / 2
            reduction = backward + on_cpu * bucket / data
        return _State(
            always=always,
            summed=part,
            growing=(1 + twice) * part,
            left=part,
            between=leftover,
            begun=bucket,
            backward=backward,
            reduction=reduction,
            update=max(group if e == s else group / data, norm) + leftover,
            published=published,
        )
    # A rank alone has all parameters in its part.
    live = e * min(share.elements, task.zero.live_elements) * (data > 1)
    again = 2.0 if candidate.num_microbatches > 1 else 1.75
    # Buckets are as long as all parameters; only gradients come into them, and are copied.
    reduced = min(task.zero.bucket_elements, share.trained) * s
    at_once = min(task.zero.bucket_elements * s, part)
    below = task.zero.persist_parameters_below
    small = sum(size * count for size, count in share.sizes.items() if size <= below)
    offloads = task.zero.offload_directory is not None
    return _State(
        always=Memory(
            parameters=e * (share.elements / data + small) + _tables(task, share),
            gradients=part,
            optimizer=copies * (at_once if offloads else part),
            workspace=bucket,
        ),
        gathered=again * live,
        backward=reduced,
        reduction=2 * reduced + 0.5 * live,
        update=0.5 * live + max(at_once, norm / data),
    )
