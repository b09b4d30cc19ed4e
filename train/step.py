"""One optimiser step: forward and backward of each microbatch, checks, update; sums of losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.batch import Batch
from model.loss import Loss
from parallel.agreement import raise_first
from parallel.launch import total
from parallel.mesh import Mesh
from parallel.pipeline import forward_backward
from parallel.zero.engine import ZeroEngine
from train.errors import DivergedError, UserError


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Mean losses in nats a scored token, under the names of the records.

    Attributes:
        loss: over all scored tokens.
        first_of_span_loss: over first tokens of spans; None if there were none.
        other_loss: over the other tokens; None if there were none.
        scored_tokens: how many were scored.
    """

    loss: float
    first_of_span_loss: float | None
    other_loss: float | None
    scored_tokens: int


def sums_of(batch: Batch, loss: Loss) -> Tensor:
    """[4] sums of the losses of all scored tokens and of first ones of spans, and both counts.

    They stay on the device: nothing waits for them.
    """
    first = batch.first_of_span[: batch.num_scored]
    terms = loss.terms[: batch.num_scored].double()
    count = terms.new_tensor(batch.num_scored)
    return torch.stack([terms.sum(), (terms * first).sum(), count, first.sum()])


def averaged(sums: Sequence[Tensor]) -> Averages:
    """Means over the microbatches of all ranks; every rank must call it.

    Args:
        sums: those of this rank's microbatches, as `sums_of` gives them.

    Returns:
        The means; of the loss NaN where nothing was scored.
    """
    own = torch.stack(list(sums)).sum(dim=0).tolist() if sums else [0.0] * 4
    loss, first_loss, count, first_count = total(*own)
    other_count, other_loss = count - first_count, loss - first_loss
    return Averages(
        loss=loss / count if count else math.nan,
        first_of_span_loss=first_loss / first_count if first_count else None,
        other_loss=other_loss / other_count if other_count else None,
        scored_tokens=int(count),
    )


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

    Returns:
        What was done; where no token of the global batch is scored, nothing, and the loss is NaN.

    Raises:
        UserError: some rank has no microbatches: on every rank, with the reason of the first.
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
        raise_first(batches if failed else None, UserError)
    assert not isinstance(batches, Exception)
    if count == 0:
        return StepResult(averages=averaged([]), gradient_norm=0.0, stop=stops > 0)
    batches = [batch.to(mesh.world.device) for batch in batches]
    losses = forward_backward(engine, batches, scale=1 / count)
    sums = list(map(sums_of, batches, losses)) if mesh.speaks_for_sample else []
    averages = averaged(sums)
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
