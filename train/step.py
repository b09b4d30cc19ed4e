"""One optimiser step: forward and backward of each microbatch, update, what came of it.

The host launches all of it without waiting for the device. What came of a step is best asked for
when the next one's backward has been launched, before its update: the device then has work while
the host waits, and a step that failed is found before anything is built on it.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.batch import Batch
from model.loss import Loss
from parallel.agreement import failing_together, raise_first
from parallel.compiled import will_compile
from parallel.launch import total
from parallel.mesh import Mesh
from parallel.named import Part, named
from parallel.pipeline import forward_backward
from parallel.zero.engine import Update, ZeroEngine
from train.errors import DivergedError, UserError, end_at_once


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

    fp64, on the device: nothing waits for them.
    """
    first = batch.first_of_span[: batch.num_scored]
    terms = loss.terms[: batch.num_scored].double()
    count = torch.full_like(loss.total, batch.num_scored, dtype=torch.float64)
    return torch.stack([terms.sum(), (terms * first).sum(), count, first.sum()])


def _sums_by_source(batch: Batch, loss: Loss) -> Tensor:
    """[2 n] sums of the losses of the scored tokens of each source, then their counts; [0] of one.

    Products, and no index_add: on GPUs that adds in an order of its own.
    """
    terms = loss.terms[: batch.num_scored].double()
    if batch.of_source is None:
        return terms.new_zeros(0)
    rows = batch.scored[: batch.num_scored] // batch.tokens.shape[1]
    chosen = batch.of_source[:, rows].double()
    return torch.cat([chosen @ terms, chosen.sum(dim=1)])


def averaged(sums: Sequence[Tensor]) -> Averages:
    """Means over the microbatches of all ranks; every rank must call it.

    Args:
        sums: those of this rank's microbatches, as `sums_of` gives them.

    Returns:
        The means; of the loss NaN where nothing was scored.
    """
    return averages_of(total(*torch.stack(list(sums)).sum(dim=0).tolist() if sums else [0.0] * 4))


def averages_of(sums: Sequence[float]) -> Averages:
    """Means of the four sums over all ranks."""
    loss, first_loss, count, first_count = sums
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
        by_source: nats a scored token of each source, None of those without any; empty if there is
            one source.
        gradient_norm: global norm before clipping.
        gradient_norms: those of the parts of the model, by name.
        stop: some rank was asked to stop after this step.
    """

    averages: Averages
    by_source: list[float | None]
    gradient_norm: float
    gradient_norms: dict[str, float]
    stop: bool


def reseed(seed: int, *, step: int, mesh: Mesh) -> None:
    """Set torch's generators from (seed, step, place), so that no state has to be saved.

    The ranks of a tensor group drop the same elements of what they hold in common; stages and
    samples differ.
    """
    entropy = [seed, step, mesh.data_rank, mesh.pipeline_rank]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What the microbatches of a step have added up to, as far as the device has come.

    Attributes:
        sums: [4 + 2 n] this rank's, as `sums_of` gives them, and of each source; None where no
            token of the global batch is scored, and there is no gradient.
        stop: some rank was asked to stop after this step.
    """

    sums: Tensor | None
    stop: bool


@dataclass(frozen=True, kw_only=True)
class PendingStep:
    """A step that was launched.

    Attributes:
        update: of the parameters; None where there was nothing to do.
        gradients: by which; None likewise.
        stop: some rank was asked to stop after this step.
    """

    update: Update | None
    gradients: Gradients | None = None
    stop: bool

    @property
    def is_passed_over(self) -> bool:
        """Whether no token of the global batch is scored."""
        return self.update is None

    @property
    def is_done(self) -> bool:
        """Whether the host has made the step itself; the same on every rank."""
        return self.update is None or self.update.told.is_here

    def result(self) -> StepResult:
        """What was done, the same on every rank; waits for the device where it must.

        Raises:
            FloatingPointError: one of both is not finite: parameters and moments are unchanged.
        """
        if self.update is None:
            averages = averages_of([0.0] * 4)
            return StepResult(
                averages=averages,
                by_source=[],
                gradient_norm=0.0,
                gradient_norms={},
                stop=self.stop,
            )
        told = self.update.read()
        overall, each = told.sums[:4], told.sums[4:]
        losses, counts = each[: len(each) // 2], each[len(each) // 2 :]
        return StepResult(
            averages=averages_of(overall),
            by_source=[
                loss / count if count else None for loss, count in zip(losses, counts, strict=True)
            ],
            gradient_norm=told.norm,
            gradient_norms=told.norms,
            stop=self.stop,
        )


def accumulate(
    engine: ZeroEngine, batches: Sequence[Batch] | Exception, *, stop: bool = False
) -> Gradients:
    """Forward and backward of a step: the sum of losses over their global count of scored tokens.

    Every rank must call it, with as many microbatches; the ranks of one model copy with the same.
    The host waits for the other ranks, not for the device.

    Args:
        engine: the model under ZeRO.
        batches: this rank's microbatches, or why it has none.
        stop: whether this rank was told to stop after the step.

    Raises:
        UserError: some rank has no microbatches: on every rank, with the reason of the first.
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
        return Gradients(sums=None, stop=stops > 0)
    batches = [batch.to(mesh.world.device) for batch in batches]
    # Blocks may fail to compile on one rank alone, in the middle of what others wait in.
    compiles = will_compile(engine.module)
    with failing_together(UserError, end=end_at_once) if compiles else nullcontext():
        losses = forward_backward(engine, batches, scale=1 / count)
    if mesh.speaks_for_sample:
        overall, each = (
            torch.stack(list(map(summed, batches, losses))).sum(dim=0)
            for summed in (sums_of, _sums_by_source)
        )
        sums = torch.cat([overall, each])
    else:
        num_sources = 0 if batches[0].of_source is None else len(batches[0].of_source)
        sums = torch.zeros(4 + 2 * num_sources, dtype=torch.float64, device=mesh.world.device)
    return Gradients(sums=sums, stop=stops > 0)


def update(engine: ZeroEngine, gradients: Gradients) -> PendingStep:
    """Launches the update by what was accumulated; every rank must call it.

    Where loss or gradient turn out not to be finite it changes nothing.
    """
    if gradients.sums is None:
        return PendingStep(update=None, stop=gradients.stop)
    with named(Part.UPDATE):
        launched = engine.step(gradients.sums)
    return PendingStep(update=launched, gradients=gradients, stop=gradients.stop)


def train_step(
    engine: ZeroEngine, batches: Sequence[Batch] | Exception, *, stop: bool = False
) -> StepResult:
    """`accumulate`, `update`, and what came of it; every rank must call it.

    Raises:
        UserError: as `accumulate` says.
        DivergedError: loss or gradient is not finite: parameters and moments are unchanged.
    """
    try:
        return update(engine, accumulate(engine, batches, stop=stop)).result()
    except FloatingPointError as error:
        raise DivergedError(
            f"{error}: nothing was stepped; lower optim.lr, or look at the data"
        ) from None
