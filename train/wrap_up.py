"""The first rank's work around the loop: baseline, summary, report, adapter."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.semicausal import parameter_counts
from train import adapter
from train.config import RunConfig
from train.data.collate import Collator
from train.data.plan import StepPlan
from train.errors import DataError, RunDirectoryError, UserError
from train.evaluate import validation_batches
from train.storage.place import Place
from train.watch.metrics import read_metrics
from train.watch.report import write_report


def look_at_data(config: RunConfig, plan: StepPlan, collate: Collator) -> float:
    """Keep the tokenizer; what a model that knows only token frequencies would score.

    Returns:
        Cross-entropy of the sources' token frequencies on the scored tokens of validation.

    Raises:
        DataError: there are none, or the data cannot be read.
    """
    plan.sources.copy_tokenizer(config.directory.tokenizer)
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


def wrap_up(config: RunConfig, latest: Place, *, seconds_to_first_step: float | None) -> None:
    """Write a LoRA run's adapter, the report, and `summary.json` with the run's numbers.

    Raises:
        RunDirectoryError: the adapter cannot be written.
    """
    directory = config.directory
    if config.lora is not None:
        try:
            adapter.export(latest, config.lora, directory.adapter)
        except OSError as error:
            raise RunDirectoryError(
                f"{directory.adapter} cannot be written ({error.strerror or error}), but the run "
                "is saved: make room there, and run again to write it"
            ) from None
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
        "parameters": sum(parameter_counts(config.built_model).values()),
        "checkpoint": str(latest),
        "report": str(report),
    }


def say_complete(config: RunConfig, latest: Place) -> None:
    """Say that nothing is left to do, and finish what a run that was killed on its last steps left.

    A run that is started with another run directory has its checkpoints, and nothing else of it.
    """
    directory = config.directory
    if directory.metrics.exists() and not directory.summary.exists():
        wrap_up(config, latest, seconds_to_first_step=None)
    sys.stdout.write(f"{directory} is complete: {latest} is its last checkpoint\n")
