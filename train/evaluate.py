"""Loss over fixed samples, spread over the ranks."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from model.batch import Batch
from model.loss import Loss
from parallel.agreement import on_all_ranks
from parallel.pipeline import forward
from parallel.zero.engine import ZeroEngine
from train.config import RunConfig
from train.data.collate import Collator
from train.data.sample import Sample
from train.data.sources import Source, Sources
from train.errors import DataError
from train.step import averaged, sums_of
from train.watch.metrics import ValidationRecord

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


def evaluate(
    forward: Callable[[list[Batch]], list[Loss]],
    batches: Iterable[Batch],
    *,
    device: torch.device,
    counts: bool = True,
) -> list[Tensor]:
    """Sums of losses of batches; call it in evaluation mode, on every rank.

    Args:
        forward: losses of microbatches of one shape.
        batches: this rank's.
        device: where they are computed.
        counts: whether this rank's losses count; of the ranks that hold one copy of the model,
            those of one do.
    """
    sums: list[Tensor] = []
    on_device = (batch.to(device) for batch in batches)
    while run := list(islice(on_device, LONGEST_RUN)):
        losses = forward(run)
        sums += map(sums_of, run, losses) if counts else ()
    return sums


def validate(
    config: RunConfig, sources: Sources, collate: Collator, engine: ZeroEngine, *, step: int
) -> ValidationRecord:
    """Losses over the first sequences of each source's validation split; every rank must call it.

    Raises:
        DataError: some rank cannot read its part.
    """
    started = time.perf_counter()
    mesh = engine.mesh

    def read(source: Source) -> list[Batch]:
        return list(
            validation_batches(
                source,
                collate,
                sequences=config.validation.sequences,
                micro_sequences=config.micro_sequences,
                rank=mesh.data_rank,
                ranks=mesh.data_size,
            )
        )

    sums: dict[str, list[Tensor]] = {}
    for source in sources.all:
        # All is read before anything is computed: a rank that fails must not leave the others
        # inside a collective.
        batches = on_all_ranks(lambda source=source: read(source), DataError)
        with engine.evaluating():
            sums[source.name] = evaluate(
                lambda run: forward(engine, run),
                batches,
                device=mesh.world.device,
                counts=mesh.speaks_for_sample,
            )
    averages = averaged(list(chain.from_iterable(sums.values())))
    by_source = {name: averaged(own).loss for name, own in sums.items()}
    return ValidationRecord(
        step=step,
        seconds=time.perf_counter() - started,
        by_source=by_source if len(by_source) > 1 else None,
        **asdict(averages),
    )
