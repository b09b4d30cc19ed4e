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


def random_samples(
    *, vocabulary: int, sequence_tokens: int, count: int, documents: int = 1
) -> list[Sample]:
    """Random tokens, in so many documents each, all about as long."""
    random = np.random.default_rng(SEED)
    bounds = np.linspace(0, sequence_tokens + 1, documents + 1).astype(np.int64)
    samples: list[Sample] = []
    for number in range(count):
        tokens = random.integers(FIRST_WORD, vocabulary, sequence_tokens + 1)
        if documents == 1:
            samples.append(Sample(id=number, tokens=tokens))
            continue
        tokens[bounds[:-1]] = SpecialTokens().start
        ranges = np.stack([bounds[:-1], bounds[1:]], axis=1)
        samples.append(Sample(id=number, tokens=tokens, documents=ranges))
    return samples


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
