"""What a step tells of its losses: by source, whatever the rows and slots."""

import numpy as np
import torch

from model.batch import Batch
from model.loss import Loss
from train.data.collate import Collator
from train.data.sample import Sample
from train.step import _sums_by_source

S = 6


def batch_of(sources: list[int], lengths: list[int], *, num_sources: int) -> Batch:
    collate = Collator(sequence_tokens=S, readers={}, padding=3, num_sources=num_sources)
    samples = [
        Sample(id=row, tokens=np.arange(10, 10 + length), source=source)
        for row, (source, length) in enumerate(zip(sources, lengths, strict=True))
    ]
    return collate([(0, sample) for sample in samples])


def loss_of(batch: Batch) -> Loss:
    """A loss of its own in each scored slot, and nothing behind them."""
    generator = torch.Generator().manual_seed(1)
    terms = torch.rand(len(batch.scored), generator=generator)
    terms[batch.num_scored :] = 0
    return Loss(total=terms.sum(), terms=terms)


def test_losses_are_added_up_by_source() -> None:
    sources, lengths = [2, 0, 2, 0], [7, 4, 1, 3]
    batch = batch_of(sources, lengths, num_sources=4)
    loss = loss_of(batch)
    expected = np.zeros((2, 4))
    for slot, term in list(zip(batch.scored.tolist(), loss.terms.tolist(), strict=True))[:11]:
        expected[:, sources[slot // S]] += term, 1
    assert batch.num_scored == 11
    assert expected[1].tolist() == [5, 0, 6, 0], "a sequence of one token predicts nothing"
    np.testing.assert_allclose(_sums_by_source(batch, loss), expected.reshape(-1), rtol=1e-12)


def test_one_source_is_not_told_apart() -> None:
    batch = batch_of([0, 0], [7, 2], num_sources=1)
    assert _sums_by_source(batch, loss_of(batch)).shape == (0,)


def test_where_nothing_is_scored() -> None:
    batch = batch_of([1], [1], num_sources=2)
    assert _sums_by_source(batch, loss_of(batch)).tolist() == [0.0] * 4
