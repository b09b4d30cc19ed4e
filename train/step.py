"""One optimiser step: forward and backward of each microbatch, checks, update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.batch import Batch
from parallel.agreement import raise_first
from parallel.launch import total
from parallel.mesh import Mesh
from parallel.pipeline import forward_backward
from parallel.zero.engine import ZeroEngine
from train.errors import DataError, DivergedError
from train.tally import Averages, Tally


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did.

    Attributes:
        averages: losses over the global batch, before the update.
        gradient_norm: global norm before clipping.
        stop: some rank was asked to stop after this step.
    """

    averages: Averages
    gradient_norm: float
    stop: bool


def reseed(seed: int, *, step: int, mesh: Mesh) -> None:
    """Set torch's generators from (seed, step, place), so that no state has to be saved.

    The ranks of a tensor group drop the same elements of what they hold in common; stages and
    samples differ.
    """
    entropy = [seed, step, mesh.data_rank, mesh.pipeline_rank]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)


def train_step(
    engine: ZeroEngine,
    batches: Sequence[Batch] | Exception,
    *,
    stop: bool = False,
) -> StepResult:
    """Minimise the sum of losses over scored tokens divided by their global count.

    Every rank must call it, with as many microbatches; the ranks of one model copy with the same.

    Args:
        engine: the model under ZeRO.
        batches: this rank's microbatches, or why it has none.
        stop: whether this rank was told to stop after the step.

    Raises:
        DataError: some rank has no microbatches: on every rank, with the reason of the first; or no
            token of the global batch is scored.
        DivergedError: loss or gradient is not finite; parameters and moments are unchanged.
    """
    # The count comes before the first backward: a mean of ranks' or microbatches' means would
    # weigh tokens unevenly. Asking about preemption and failed reads in the same exchange costs
    # nothing, and no rank is left waiting for one that has nothing to compute.
    mesh = engine.mesh
    failed = isinstance(batches, Exception)
    scored = 0 if failed else sum(batch.num_scored for batch in batches)
    count, stops, failures = total(
        scored if mesh.speaks_for_sample else 0, float(stop), float(failed)
    )
    if failures:
        raise_first(batches if failed else None, DataError)
    assert not isinstance(batches, Exception)
    if count == 0:
        raise DataError("no token of this batch is scored: check the corpus and the spans")
    batches = [batch.to(mesh.world.device) for batch in batches]
    losses = forward_backward(engine, batches, scale=1 / count)
    tally = Tally()
    if mesh.speaks_for_sample:
        for batch, loss in zip(batches, losses, strict=True):
            tally.add(batch, loss)
    averages = tally.over_ranks()
    if not math.isfinite(averages.loss):
        raise DivergedError(
            f"the loss is {averages.loss}: nothing was stepped; lower optim.lr, or look at the data"
        )
    try:
        gradient_norm = engine.step()
    except FloatingPointError as error:
        raise DivergedError(
            f"{error}: nothing was stepped; lower optim.lr, or look at the data"
        ) from None
    return StepResult(averages=averages, gradient_norm=gradient_norm, stop=stops > 0)
