"""Batches of random tokens, for what is timed or measured: what they say does not matter."""

import numpy as np

from model.batch import Batch
from train.data.collate import Collator, SpanCapacity
from train.data.sample import Sample
from train.data.spans.kinds import RandomSpans, RandomSpansConfig
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


def random_batches(
    *, vocabulary: int, sequence_tokens: int, sequences: int, ratio: float, count: int
) -> list[Batch]:
    """Fixed batches of the same tokens whatever the ratio of slots in random spans."""
    samples = random_samples(
        vocabulary=vocabulary, sequence_tokens=sequence_tokens, count=count * sequences
    )
    config = RandomSpansConfig(ratio=ratio)
    policies = {"text": RandomSpans(config, seed=SEED, special=SpecialTokens())} if ratio else {}
    room_tokens, room_spans = config.room(sequence_tokens)
    capacity = SpanCapacity(
        tokens=room_tokens, spans=room_spans, longest_tokens=config.longest(sequence_tokens)
    )
    collate = Collator(
        sequence_tokens=sequence_tokens,
        policies=dict(policies),
        capacities={"text": capacity},
        start_tokens={"text": 0},
        padding=0,
    )
    return [
        collate([(0, sample) for sample in samples[i : i + sequences]])
        for i in range(0, len(samples), sequences)
    ]
