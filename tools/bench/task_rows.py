"""Batches of rows as tasks have them: an input that the encoder reads, and a short answer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from model.batch import Batch
from tools.bench.shapes import Shape
from tools.random_batches import FIRST_WORD, SEED
from train.data.collate import Attend, Collator
from train.data.sample import Sample
from train.data.spans.given import StoredSpansConfig
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import TextReader
from train.data.tokens import SpecialTokens

LENGTHS: Final = (6, 17, 20, 24, 28, 32, 38, 48, 58, 74, 254)
"""Tokens of the 78,000 documents that `make tasks` trains on: the shortest, each decile, the
longest."""
MEAN_TOKENS: Final = 40
"""Which a row takes of a batch's slots, on the average, packed."""
ANSWER: Final = 0.22
"""Share of a document behind its input."""


def rows_of(shape: Shape, *, count: int) -> list[list[Sample]]:
    """So many batches of rows, each a sample of its own."""
    random = np.random.default_rng(SEED)
    longest = shape.sequence_tokens
    batches: list[list[Sample]] = []
    for _ in range(count):
        places = random.uniform(0, len(LENGTHS) - 1, max(4, shape.tokens // MEAN_TOKENS))
        lengths = np.interp(places, np.arange(len(LENGTHS)), LENGTHS).astype(int)
        batches.append([_row(random, shape, min(int(n), longest)) for n in lengths])
    return batches


def _row(random: np.random.Generator, shape: Shape, length: int) -> Sample:
    tokens = random.integers(FIRST_WORD, shape.vocabulary, length)
    tokens[0] = SpecialTokens().start
    spans = np.array([[1, max(2, int(length * (1 - ANSWER)))]])
    return Sample(id=0, tokens=tokens, spans=spans, documents=np.array([[0, length]]))


def packed(rows: Sequence[Sample], shape: Shape) -> list[Sample]:
    """Rows put into sequences, the longest first, each where it fits first."""
    bins: list[list[Sample]] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        for found in bins:
            if sum(len(each.tokens) for each in found) + len(row.tokens) <= shape.sequence_tokens:
                found.append(row)
                break
        else:
            bins.append([row])
    return [_joined(each) for each in bins]


def _joined(rows: Sequence[Sample]) -> Sample:
    starts = np.cumsum([0, *(len(row.tokens) for row in rows)])
    return replace(
        rows[0],
        tokens=np.concatenate([row.tokens for row in rows]),
        spans=np.concatenate(
            [row.spans + start for row, start in zip(rows, starts, strict=False)]  # pyright: ignore[reportOptionalOperand]
        ),
        documents=np.stack([starts[:-1], starts[1:]], axis=1),
    )


def batch_of(samples: Sequence[Sample], *, attend: Attend) -> Batch:
    """One batch, padded to its longest sample."""
    longest = max(len(sample.tokens) for sample in samples)
    capacity = SpanCapacity(tokens=longest, spans=longest // 2 + 1, longest_tokens=longest)
    reader = TextReader(kind=StoredSpansConfig(kind="stored"), seed=SEED, capacity=capacity)
    collate = Collator(
        sequence_tokens=longest,
        readers={"text": reader},
        padding=SpecialTokens().padding,
        attend=attend,
    )
    return collate([(0, sample) for sample in samples])
