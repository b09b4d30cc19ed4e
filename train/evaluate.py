"""Loss over fixed samples, spread over the ranks."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from model.batch import Batch
from model.loss import Loss
from parallel.agreement import on_all_ranks
from parallel.pipeline import forward
from parallel.zero.engine import ZeroEngine
from train.data.collate import Collator
from train.data.sample import Sample
from train.data.sources import Sources, ValidationSequences
from train.errors import DataError
from train.step import Tally
from train.watch.metrics import ValidationRecord

LONGEST_RUN = 32
"""Microbatches that a pipeline is filled for once."""

VALIDATION_EPOCH = 0
"""Spans of validation samples are those of this epoch, always: the same tokens are scored."""


class Samples(Protocol):
    """Random access to samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Sample:
        """One sample; raises DataError where its shard is missing or damaged."""
        ...


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
    return replace(sample, scored=nothing)


def first_samples(samples: Samples, count: int | None) -> Sequence[int]:
    """Numbers of the first samples of a split, or of all."""
    if count is not None and isinstance(samples, ValidationSequences):
        return range(samples.up_to(count))
    length = len(samples)
    return range(length if count is None else min(count, length))


def evaluate(
    forward: Callable[[list[Batch]], list[Loss]],
    batches: Iterable[Batch],
    *,
    device: torch.device,
    counts: bool = True,
) -> Tally:
    """Losses over batches; call it in evaluation mode, on every rank.

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
    return tally


def validate(
    sources: Sources,
    collate: Collator,
    engine: ZeroEngine,
    *,
    sequences: int,
    micro_sequences: int,
    step: int,
) -> ValidationRecord:
    """Losses over the first sequences of each source's validation split; every rank must call it.

    Raises:
        DataError: some rank cannot read its part.
    """
    started = time.perf_counter()
    mesh = engine.mesh

    def read(samples: Samples) -> list[Batch]:
        return list(
            validation_batches(
                samples,
                collate,
                ids=first_samples(samples, sequences),
                micro_sequences=micro_sequences,
                rank=mesh.data_rank,
                ranks=mesh.data_size,
            )
        )

    tallies: dict[str, Tally] = {}
    for source in sources.all:
        # All is read before anything is computed: a rank that fails must not leave the others
        # inside a collective.
        batches = on_all_ranks(lambda source=source: read(source.validation), DataError)
        with engine.evaluating():
            tallies[source.name] = evaluate(
                lambda run: forward(engine, run),
                batches,
                device=mesh.world.device,
                counts=mesh.speaks_for_sample,
            )
    averages = Tally.of_all(tallies.values()).over_ranks()
    by_source = {name: tally.over_ranks().loss for name, tally in tallies.items()}
    return ValidationRecord(
        step=step,
        loss=averages.loss,
        first_of_span_loss=averages.first_of_span,
        other_loss=averages.other,
        scored_tokens=averages.scored_tokens,
        seconds=time.perf_counter() - started,
        by_source=by_source if len(by_source) > 1 else None,
    )
