"""Those who read in the bench of loading: our feeds, mosaicml-streaming, and a plain array."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, count, repeat
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from model import torchvision_free
from tools.bench.shapes import RATIO
from tools.random_batches import random_spans
from tools.ranks import RankPool
from train.data.collate import Collator
from train.data.corpus import Corpus
from train.data.feed import Feed
from train.data.mixture import Mixture
from train.data.pack import Pack
from train.data.plan import StepPlan
from train.data.sources import Laying, Source, Sources

SEQUENCE_TOKENS: Final = 2048
BATCH: Final = 64
"""Sequences that a rank takes for each step."""
MICROBATCH: Final = 8
"""Sequences that it computes at a time; a larger one would fit no GPU beside the 1.3B."""
TIMEOUT_SECONDS: Final = 120.0
SHARED_MEMORY: Final = Path("/dev/shm")
ENDLESS_STEPS: Final = 1_000_000

Read = Callable[[int], float]
"""Reads so many batches; seconds that its process spent on a processor."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How we read.

    Attributes:
        root: of the corpus.
        sequence_tokens: S.
        has_spans: whether the paper's random spans are chosen and packed.
        pack: how sequences are made.
        cache: where files of a remote corpus go.
        steps: at most so many.
    """

    root: str
    sequence_tokens: int = SEQUENCE_TOKENS
    has_spans: bool = False
    pack: Pack = "fit"
    cache: Path | None = None
    steps: int = ENDLESS_STEPS

    def plan(self, *, ranks: int = 1) -> StepPlan:
        """Batches of `BATCH` sequences for each rank."""
        corpus = Corpus(self.root, cache=self.cache)
        laying = Laying(sequence_tokens=self.sequence_tokens, pack=self.pack)
        source = Source("corpus", 0, corpus, laying)
        rows = BATCH * ranks
        mixture = Mixture(np.ones((self.steps, 1)), sequences=rows, seed=0)
        return StepPlan(Sources([source]), mixture, entries=rows)

    def collator(self) -> Collator:
        """As a run builds it."""
        return random_spans(self.sequence_tokens, ratio=RATIO if self.has_spans else 0)

    def feed(self, *, rank: int = 0, ranks: int = 1) -> Feed:
        """This rank's microbatches."""
        return Feed(
            self.plan(ranks=ranks),
            self.collator(),
            micro_sequences=MICROBATCH,
            rank=rank,
            ranks=ranks,
            timeout_seconds=TIMEOUT_SECONDS,
            last_step=self.steps,
        )


def shared(pool: RankPool, reading: Reading) -> Read:
    """What the ranks of a pool read together, each an equal part.

    They are processes of their own, where no other's threads ask for the interpreter. In each, one
    thread reads while its caller waits, as it would for a GPU.
    """
    pool.run(_read, reading, 0)  # opens it
    return lambda batches: sum(pool.run(_read, reading, batches))


def _read(reading: Reading, batches: int) -> float:
    ranks = dist.get_world_size()
    assert batches % ranks == 0, "shared evenly"
    return _of_this_rank(reading)(batches // ranks)


@cache
def _of_this_rank(reading: Reading) -> Read:
    feed = reading.feed(rank=dist.get_rank(), ranks=dist.get_world_size())
    return _from(map(feed.step, count(1)))


class Streaming:
    """A `StreamingDataset` as its manual says; what it leaves in shared memory goes with it.

    Args:
        root: of a corpus.
        local: where files of a remote corpus go.
    """

    def __init__(self, root: str, *, local: Path | None = None) -> None:
        torchvision_free.install()
        from streaming import StreamingDataset

        self.dataset: Any = StreamingDataset(
            remote=f"{root}/train" if local else None,
            local=f"{local or root}/train",
            shuffle=True,
            batch_size=BATCH,
        )
        for stream in self.dataset.streams:
            # Forked workers would share the connection that brought the index, and each read
            # parts of the other's shards as its own.
            stream._downloader.clean_up()

    def endless(self, *, workers: int) -> Read:
        """Epoch after epoch; workers start at once."""
        loader = self.loader(workers=workers)
        first = iter(loader)
        return _from(chain(first, chain.from_iterable(repeat(loader))))

    def loader(self, *, workers: int) -> Iterable[Tensor]:
        """Batches [B, S + 1] of one epoch."""
        return DataLoader(
            self.dataset,
            batch_size=BATCH,
            num_workers=workers,
            collate_fn=_stacked,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
        )

    def cut_documents(self, sequence_tokens: int) -> Read:
        """Documents one after the other, cut into sequences where they come to it."""
        return _from(self._cut(sequence_tokens))

    def _cut(self, sequence_tokens: int) -> Iterator[Tensor]:
        size = BATCH * (sequence_tokens + 1)
        waiting: list[npt.NDArray[Any]] = []
        length = 0
        for document in chain.from_iterable(repeat(self.dataset)):
            waiting.append(document["tokens"])
            length += len(waiting[-1])
            if length >= size:
                line = np.concatenate(waiting).astype(np.int64)
                yield torch.from_numpy(line[:size].reshape(BATCH, -1))
                waiting, length = [line[size:]], length - size

    def close(self) -> None:
        """Take its names out of shared memory and out of the temporary directory."""
        prefix = f"{self.dataset._shm_prefix_int:06}_"
        for path in SHARED_MEMORY.glob(f"{prefix}*"):
            path.unlink()
            # Or it would be missed when this process ends.
            resource_tracker.unregister(f"/{path.name}", "shared_memory")
        for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            path.unlink()


def _stacked(samples: list[dict[str, npt.NDArray[Any]]]) -> Tensor:
    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))


def gathered(path: Path) -> Read:
    """Random rows of one array in a memory map: what no format in shards could beat."""
    rows = np.load(path, mmap_mode="r")
    random = np.random.default_rng(0)

    def batches() -> Iterator[Tensor]:
        while True:
            order = random.permutation(len(rows))
            for start in range(0, len(rows) - BATCH + 1, BATCH):
                chosen = rows[order[start : start + BATCH]]
                yield torch.from_numpy(chosen.astype(np.int64))

    return _from(batches())


def _from(batches: Iterator[object]) -> Read:
    def read(number: int) -> float:
        started = time.process_time()
        for _ in range(number):
            next(batches)
        return time.process_time() - started

    return read
