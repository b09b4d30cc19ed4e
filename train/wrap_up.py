"""The first rank's work around the loop: baseline, summary, report, adapter."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parallel.agreement import on_all_ranks
from parallel.zero.engine import ZeroEngine
from train import adapter
from train.build import parameters_by_part
from train.config import RunConfig
from train.data.collate import Collator
from train.data.plan import StepPlan
from train.errors import DataError, RunDirectoryError, UserError
from train.evaluate import validation_batches
from train.mirror import Mirror
from train.prepare import Saved
from train.storage.place import Place
from train.watch.metrics import read_metrics
from train.watch.report import write_report


def look_at_data(config: RunConfig, plan: StepPlan, collate: Collator) -> float | None:
    """Keep the tokenizer; what a model that knows only token frequencies would score.

    Returns:
        Cross-entropy of the sources' token frequencies on the scored tokens of validation; None
        where an encoder trains alone, and predicts none.

    Raises:
        DataError: there are none, or the data cannot be read.
    """
    plan.sources.copy_tokenizer(config.directory.tokenizer)
    if config.objective is not None:
        return None
    count = config.validation.sequences
    targets = [
        batch.labels.reshape(-1)[batch.scored[: batch.num_scored]].numpy()
        for source in plan.sources.all
        for batch in validation_batches(source, collate, sequences=count, micro_sequences=1)
    ]
    scored = np.concatenate(targets)
    if not scored.size:
        raise DataError(
            f"validation.sequences: the first {count} of {plan.sources.places} hold no token that "
            "is scored: raise it, lower the ratio of spans, or build the corpus again with a "
            "larger --validation"
        )
    return unigram_cross_entropy(plan.sources.token_counts(plan.mixture.mean), scored)


def unigram_cross_entropy(
    train_counts: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> float:
    """Cross-entropy, in nats a token, of the training corpus's unigram distribution on `targets`.

    The counts are smoothed by adding one, so that a token unseen in training has a finite cost.

    Args:
        train_counts: [V] how often each token occurs in the training corpus.
        targets: [n] tokens to predict, such as the scored targets of the validation set.

    Raises:
        ValueError: there is no target.
    """
    if targets.size == 0:
        raise ValueError("no target tokens: the validation set scores nothing")
    smoothed = train_counts.astype(np.float64) + 1.0
    log_probabilities = np.log(smoothed) - np.log(smoothed.sum())
    return -float(log_probabilities[targets].mean())


def write_adapter(config: RunConfig, latest: Place) -> None:
    """Write the adapters of a run that has some, on one rank.

    Raises:
        CheckpointError: what is read back is not what was written.
        RunDirectoryError: they cannot be written.
    """
    out = config.directory.adapter
    if not config.tuning.has_adapters:
        return
    try:
        adapter.write(latest, out, config=config.lora, bottleneck=config.bottleneck)
    except OSError as error:
        raise RunDirectoryError(
            f"{out} cannot be written ({error.strerror or error}), but the run is saved: make "
            "room there, and run again to write it"
        ) from None


def finish_adapter(config: RunConfig, latest: Place, engine: ZeroEngine, *, is_main: bool) -> None:
    """Write the adapters of a run that has some, and see that they are what was trained.

    Every rank must call it, before the engine is closed.

    Raises:
        UserError: as `write_adapter`; or they are not what the ranks hold.
    """
    on_all_ranks(lambda: write_adapter(config, latest) if is_main else None, UserError)
    if config.tuning.has_adapters:
        adapter.compare(engine, config.directory.adapter)


def wrap_up(config: RunConfig, latest: Place, *, seconds_to_first_step: float | None) -> None:
    """Write the report, and `summary.json` with the run's numbers."""
    directory = config.directory
    try:
        report = write_report(directory)
        summary = summarise(config, latest, report, seconds_to_first_step=seconds_to_first_step)
        directory.summary.write_text(json.dumps(summary, indent=2) + "\n")
    except (OSError, UserError) as error:  # they only tell of the run, which is saved
        sys.stderr.write(
            f"the report and {directory.summary} are not written ({error}), but the run is "
            "saved: run again to write them\n"
        )


def summarise(
    config: RunConfig, latest: Place, report: Path, *, seconds_to_first_step: float | None
) -> dict[str, Any]:
    """The numbers of a complete run."""
    metrics = read_metrics(config.directory.metrics)
    whole = metrics.whole_validation
    return {
        "steps": config.steps,
        "validation_loss_first": metrics.validation[0].loss if metrics.validation else None,
        "validation_loss_last": metrics.validation[-1].loss if metrics.validation else None,
        "validation_loss_whole": None if whole is None else whole.loss,
        "validation_sequences_whole": None if whole is None else whole.sequences,
        "vocabulary": config.model.decoder.vocabulary,
        "unigram_entropy": metrics.baseline.unigram_entropy if metrics.baseline else None,
        "tokens_per_second": metrics.tokens_per_second if metrics.train else None,
        "data_wait_fraction": metrics.data_wait_fraction,
        "seconds_training": metrics.training_seconds,
        "seconds_to_first_step": seconds_to_first_step,
        "parameters": sum(parameters_by_part(config).values()),
        "checkpoint": str(latest),
        "report": str(report),
    }


def say_complete(config: RunConfig, stored: Saved, mirror: Mirror | None) -> None:
    """Say that nothing is left to do, and finish what a run that was killed on its last steps left.

    A run that is started with another run directory has its checkpoints, and nothing else of it.

    Raises:
        UserError: something cannot be written, or is of another run.
    """
    directory, latest = config.directory, stored.path
    if not directory.config.exists():
        mirror = None  # there is nobody who would write there
    if mirror is not None:
        mirror.bring()
    if directory.metrics.exists() and not directory.summary.exists():
        write_adapter(config, latest)
        wrap_up(config, latest, seconds_to_first_step=None)
    if mirror is not None:
        mirror.finish()
    sys.stdout.write(f"{directory} is complete: {latest} is its last checkpoint\n")
    there, here = (
        [source.corpus for source in each.data.mixed.values()] for each in (stored.config, config)
    )
    if there != here:
        sys.stdout.write(
            f"it has read {', '.join(there)}, and nothing of {', '.join(here)}: to read on there, "
            "raise steps, or choose another run_directory\n"
        )
