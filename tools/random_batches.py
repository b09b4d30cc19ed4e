"""Batches of random tokens, for what is timed or measured: what they say does not matter."""

import numpy as np

from model.batch import Batch
from train.data.collate import Collator
from train.data.sample import Sample
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import TextReader
from train.data.tokens import SpecialTokens

SEED = 1
FIRST_WORD = 5


def random_samples(*, vocabulary: int, sequence_tokens: int, count: int) -> list[Sample]:
    """Random tokens, one document each."""
    random = np.random.default_rng(SEED)
    return [
        Sample(id=i, tokens=random.integers(FIRST_WORD, vocabulary, sequence_tokens + 1))
        for i in range(count)
    ]


def random_spans(sequence_tokens: int, *, ratio: float) -> Collator:
    """Collates with this ratio of slots in the paper's random spans."""
    kind = RandomSpansConfig(ratio=ratio)
    tokens, spans = kind.room(sequence_tokens)
    capacity = SpanCapacity(tokens=tokens, spans=spans, longest_tokens=tokens)
    return Collator(
        sequence_tokens=sequence_tokens,
        readers={"text": TextReader(kind=kind, seed=SEED, capacity=capacity)} if ratio else {},
        padding=SpecialTokens().padding,
    )


def random_batches(
    *, vocabulary: int, sequence_tokens: int, sequences: int, ratio: float, count: int
) -> list[Batch]:
    """Fixed batches of the same tokens whatever the ratio of slots in random spans."""
    samples = random_samples(
        vocabulary=vocabulary, sequence_tokens=sequence_tokens, count=count * sequences
    )
    collate = random_spans(sequence_tokens, ratio=ratio)
    return [
        collate([(0, sample) for sample in samples[i : i + sequences]])
        for i in range(0, len(samples), sequences)
    ]
