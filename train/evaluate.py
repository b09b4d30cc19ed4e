"""Loss over fixed samples, spread over the ranks."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from model.batch import Batch
from model.loss import Loss
from train.data.collate import Collator
from train.data.feed import Samples
from train.data.sample import Sample
from train.tally import Averages, Tally

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
    forward: Callable[[Batch], Loss], batches: Iterator[Batch], *, device: torch.device
) -> Averages:
    """Mean losses over batches and ranks; call it in evaluation mode, on every rank."""
    tally = Tally()
    for batch in batches:
        batch = batch.to(device)
        tally.add(batch, forward(batch))
    return tally.over_ranks()
