"""Loss over fixed samples, spread over the ranks."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

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
    """This rank's microbatches of the samples, as many on every rank and all of one shape.

    Where the samples do not divide, samples with nothing scored fill up: every rank must run every
    forward, and a pipeline wants equal shapes.
    """
    per_round = ranks * micro_sequences
    for first in range(0, len(ids), per_round):
        mine = ids[first + rank * micro_sequences :][:micro_sequences]
        chosen = [samples[index] for index in mine]
        if len(chosen) < micro_sequences:
            chosen += [unscored(samples[ids[0]])] * (micro_sequences - len(chosen))
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
    on_device = (batch.to(device) for batch in batches)
    while run := list(islice(on_device, LONGEST_RUN)):
        losses = forward(run)
        if counts:
            for batch, loss in zip(run, losses, strict=True):
                tally.add(batch, loss)
    return tally.over_ranks()
