"""Loss over fixed samples, spread over the ranks."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from model.batch import Batch
from model.loss import Loss
from train.data.collate import Collator
from train.data.feed import Samples
from train.data.sample import Sample
from train.tally import Averages, Tally

LONGEST_RUN = 32
"""Microbatches that a pipeline is filled for once."""

VALIDATION_EPOCH = 0
"""Spans of validation samples are those of this epoch, always: the same tokens are scored."""


def validation_batches(
    samples: Samples,
    collate: Collator,
    *,
    ids: Sequence[int],
    micro_sequences: int,
    rank: int,
    ranks: int,
) -> Iterator[Batch]:
    """This rank's microbatches of the samples, as many on every rank.

    Where the samples do not divide, a rank gets a sample with nothing scored, since every rank
    must run every forward.
    """
    per_round = ranks * micro_sequences
    for first in range(0, len(ids), per_round):
        mine = ids[first + rank * micro_sequences :][:micro_sequences]
        chosen = [samples[index] for index in mine] or [unscored(samples[ids[0]])]
        yield collate([(VALIDATION_EPOCH, sample) for sample in chosen])


def unscored(sample: Sample) -> Sample:
    """The sample with no targets."""
    nothing = np.zeros(len(sample.tokens), dtype=np.bool_)
    return Sample(id=sample.id, tokens=sample.tokens, spans=sample.spans, scored=nothing)


def evaluate(
    forward: Callable[[list[Batch]], list[Loss]],
    batches: Iterator[Batch],
    *,
    device: torch.device,
    counts: bool = True,
) -> Averages:
    """Mean losses over batches and ranks; call it in evaluation mode, on every rank.

    Args:
        forward: losses of microbatches of one shape.
        batches: this rank's.
        device: where they are computed.
        counts: whether this rank's losses count; of the ranks that hold one copy of the model,
            those of one do.
    """
    tally = Tally()
    for run in runs_of_one_shape(batch.to(device) for batch in batches):
        losses = forward(run)
        if counts:
            for batch, loss in zip(run, losses, strict=True):
                tally.add(batch, loss)
    return tally.over_ranks()


def runs_of_one_shape(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Batches in runs of one shape, as a pipeline wants them, none longer than `LONGEST_RUN`."""
    run: list[Batch] = []
    for batch in batches:
        if run and (run[0].tokens.shape != batch.tokens.shape or len(run) == LONGEST_RUN):
            yield run
            run = []
        run.append(batch)
    if run:
        yield run
