"""Loss over fixed samples, spread over the ranks."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from torch import Tensor

from model.batch import Batch
from parallel.agreement import on_all_ranks
from parallel.forward import Engine
from parallel.pipeline import forward
from train.config import RunConfig
from train.data.collate import Collator
from train.data.sample import Sample
from train.data.sources import Source, Sources
from train.errors import DataError
from train.step import Averages, averaged, sums_of
from train.watch.metrics import ValidationRecord, WholeValidationRecord

LONGEST_RUN = 32
"""Microbatches that a pipeline is filled for once."""

VALIDATION_EPOCH = 0
"""Spans of validation samples are those of this epoch, always: the same tokens are scored."""


def validation_batches(
    source: Source,
    collate: Collator,
    *,
    sequences: int | None,
    micro_sequences: int,
    rank: int = 0,
    ranks: int = 1,
    change: Callable[[Sample], Sample] = lambda sample: sample,
) -> Iterator[Batch]:
    """This rank's microbatches of a validation split, as many on every rank and all of one shape.

    Where the samples do not divide, samples with nothing scored fill up: every rank must run every
    forward, and a pipeline wants equal shapes.

    Args:
        source: what to read the split of.
        collate: makes batches of samples.
        sequences: the first this many; None for all.
        micro_sequences: sequences in a microbatch.
        rank: this one among those that share the work.
        ranks: how many they are.
        change: made to each sample before.

    Raises:
        DataError: a shard is missing or damaged.
    """
    samples = source.validation
    count = len(samples) if sequences is None else samples.up_to(sequences)
    for begin in range(0, count, ranks * micro_sequences):
        mine = range(count)[begin + rank * micro_sequences :][:micro_sequences]
        chosen = [samples[number] for number in mine]
        if len(chosen) < micro_sequences:
            nothing = np.zeros(len(samples[0].tokens), dtype=np.bool_)
            filling = replace(samples[0], scored=nothing)
            chosen += [filling] * (micro_sequences - len(chosen))
        yield collate([(VALIDATION_EPOCH, change(sample)) for sample in chosen])


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Losses over the validation splits of all sources.

    Attributes:
        averages: over all of them.
        by_source: of each source, by name.
        sequences: how many were read.
    """

    averages: Averages
    by_source: dict[str, Averages]
    sequences: int


def evaluate(
    engine: Engine,
    sources: Sources,
    collate: Collator,
    *,
    sequences: int | None,
    micro_sequences: int,
    change: Callable[[Sample], Sample] = lambda sample: sample,
) -> Evaluation:
    """What training and `tools.evaluate` call the validation loss; every rank must call it.

    Args:
        engine: the model, or this rank's part of it.
        sources: whose validation splits are read.
        collate: makes batches.
        sequences: the first this many of each source; None for all.
        micro_sequences: sequences in a microbatch.
        change: made to each sample before.

    Raises:
        DataError: some rank cannot read its part.
    """
    sums: dict[str, list[Tensor]] = {}
    read = 0
    for source in sources.all:
        count = on_all_ranks(lambda source=source: _count(source, sequences), DataError)
        read += count
        batches = validation_batches(
            source,
            collate,
            sequences=count,
            micro_sequences=micro_sequences,
            rank=engine.mesh.data_rank,
            ranks=engine.mesh.data_size,
            change=change,
        )
        sums[source.name] = _sums(engine, batches)
    averages = averaged(list(chain.from_iterable(sums.values())))
    by_source = {name: averaged(own) for name, own in sums.items()}
    return Evaluation(averages=averages, by_source=by_source, sequences=read)


def _count(source: Source, sequences: int | None) -> int:
    samples = source.validation
    return len(samples) if sequences is None else samples.up_to(sequences)


def _sums(engine: Engine, batches: Iterator[Batch]) -> list[Tensor]:
    """Sums of the losses of this rank's batches, which are as many on every rank."""
    mesh = engine.mesh
    sums: list[Tensor] = []

    def read() -> list[Batch]:
        return list(islice(batches, LONGEST_RUN))

    # A run is read before it is computed: a rank that fails must not leave the others inside a
    # collective.
    while run := on_all_ranks(read, DataError):
        run = [batch.to(mesh.world.device) for batch in run]
        with engine.evaluating():
            losses = forward(engine, run)
        # Of the ranks that hold one copy of the model, those of one count.
        sums += map(sums_of, run, losses) if mesh.speaks_for_sample else ()
    return sums


def validate(
    config: RunConfig,
    sources: Sources,
    collate: Collator,
    engine: Engine,
    *,
    step: int,
) -> ValidationRecord:
    """Losses over the first sequences of each source's validation split; every rank must call it.

    Raises:
        DataError: some rank cannot read its part.
    """
    found = _measured(config, sources, collate, engine, sequences=config.validation.sequences)
    return ValidationRecord(step=step, **found)


def validate_whole(
    config: RunConfig,
    sources: Sources,
    collate: Collator,
    engine: Engine,
    watched: ValidationRecord,
) -> WholeValidationRecord:
    """Losses over all of the validation splits, after the same step; every rank must call it.

    Args:
        config: of the run.
        sources: of the run.
        collate: makes batches.
        engine: the model.
        watched: what `validate` has found; where it has read all, nothing is read again.

    Raises:
        DataError: some rank cannot read its part.
    """
    count = on_all_ranks(lambda: sum(len(source.validation) for source in sources.all), DataError)
    if watched.sequences == count:
        return WholeValidationRecord(**watched.model_dump(exclude={"kind"}))
    found = _measured(config, sources, collate, engine, sequences=None)
    return WholeValidationRecord(step=watched.step, **found)


def _measured(
    config: RunConfig,
    sources: Sources,
    collate: Collator,
    engine: Engine,
    *,
    sequences: int | None,
) -> dict[str, Any]:
    started = time.perf_counter()
    found = evaluate(
        engine, sources, collate, sequences=sequences, micro_sequences=config.micro_sequences
    )
    by_source = {name: averages.loss for name, averages in found.by_source.items()}
    return {
        **asdict(found.averages),
        "seconds": time.perf_counter() - started,
        "by_source": by_source if len(by_source) > 1 else None,
        "sequences": found.sequences,
    }
