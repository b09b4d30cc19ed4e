"""Cost of training on a corpus: epochs, steps, bytes, hours, money."""

import math
from dataclasses import dataclass

from tools.corpus.finished import Corpus
from tools.corpus.words import counted, significant
from train.errors import DataError

GIGABYTE = 1e9
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is meant to be trained.

    Attributes:
        tokens: budget; None to make it of `epochs`.
        epochs: passes over the corpus.
        sequence_tokens: S.
        batch_sequences: sequences in a step.
        tokens_per_second: of all GPUs together; None to leave out hours.
        hosts: each downloads the shards once.
        price_per_gb_month: of storage.
        price_per_gb_egress: of downloading.
    """

    tokens: float | None = None
    epochs: float = 1.0
    sequence_tokens: int = 2048
    batch_sequences: int = 256
    tokens_per_second: float | None = None
    hosts: int = 1
    price_per_gb_month: float | None = None
    price_per_gb_egress: float | None = None


def cost(path: str, training: Training) -> list[tuple[str, str]]:
    """Names and values, as they are shown.

    Raises:
        DataError: there is no corpus with a training split.
    """
    corpus = Corpus.at(path)
    split = "train" if "train" in corpus.splits else next(iter(corpus.splits))
    store = corpus.store(split)
    corpus_tokens = int(store.totals[:, 0].sum())
    if corpus_tokens <= 0:
        raise DataError(f"{path} has no tokens in {split}; build the corpus again.")
    corpus_bytes = sum(store.shard_bytes)
    tokens = corpus_tokens * training.epochs if training.tokens is None else training.tokens
    epochs = tokens / corpus_tokens
    sequences = math.ceil(tokens / training.sequence_tokens)
    steps = math.ceil(sequences / training.batch_sequences)
    # Every host keeps what it has fetched, so further epochs download nothing.
    download = corpus_bytes * min(1.0, epochs) * training.hosts
    found = [
        ("documents", f"{len(store):,}"),
        ("tokens", f"{corpus_tokens:,}"),
        ("bytes", f"{corpus_bytes:,} in {counted(len(store.shard_sizes), 'shard')}"),
        ("bytes a token", f"{corpus_bytes / corpus_tokens:.2f}"),
        ("tokens to train on", f"{tokens:,.0f}"),
        ("epochs", significant(epochs)),
        (f"sequences of {training.sequence_tokens:,}", f"{sequences:,}"),
        (f"steps of {training.batch_sequences:,}", f"{steps:,}"),
        ("to download", f"{_size(download)} by {counted(training.hosts, 'host')}"),
    ]
    if training.tokens_per_second:
        hours = tokens / training.tokens_per_second / 3600
        found.append(
            ("hours", f"{_at_least(hours, 1)} at {training.tokens_per_second:,.0f} tokens/s")
        )
    if training.price_per_gb_month is not None:
        stored = corpus_bytes / GIGABYTE * training.price_per_gb_month
        found.append(("storage a month", _at_least(stored, 2)))
    if training.price_per_gb_egress is not None:
        fetched = download / GIGABYTE * training.price_per_gb_egress
        found.append(("egress", _at_least(fetched, 2)))
    return found


def _size(num_bytes: float) -> str:
    if num_bytes >= GIGABYTE:
        return f"{num_bytes / GIGABYTE:,.2f} GB"
    return f"{_at_least(num_bytes / MEGABYTE, 2)} MB"


def _at_least(value: float, decimals: int) -> str:
    """A number with some decimals, and with more where these would hide it."""
    return f"{value:,.{decimals}f}" if value >= 1 or value == 0 else significant(value)
