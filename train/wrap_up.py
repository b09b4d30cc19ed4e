"""The first rank's work around the loop: baseline, samples, summary, report, adapter."""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.semicausal import parameter_counts
from train import adapter
from train.config import RunConfig
from train.errors import UserError
from train.evaluate import first_samples, validation_batches
from train.loading import load_model
from train.prepare import Run
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.text import Speaker, plain
from train.watch.metrics import read_metrics
from train.watch.monitor import Monitor
from train.watch.report import write_report


def look_at_data(config: RunConfig, directory: RunDirectory, run: Run) -> float:
    """Keep the tokenizer; what a model that knows only token frequencies would score.

    Returns:
        Cross-entropy of the sources' token frequencies on the scored tokens of validation.
    """
    run.sources.copy_tokenizer(directory.tokenizer)
    targets = [
        batch.labels.reshape(-1)[batch.scored[: batch.num_scored]].numpy()
        for source in run.sources.all
        for samples in [source.validation]
        for batch in validation_batches(
            samples,
            run.collate,
            ids=first_samples(samples, config.validation.sequences),
            micro_sequences=1,
            rank=0,
            ranks=1,
        )
    ]
    counts = run.sources.token_counts(run.plan.mixture.mean)
    return unigram_cross_entropy(counts, np.concatenate(targets))


def unigram_cross_entropy(
    train_counts: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> float:
    """Cross-entropy, in nats a token, of the training corpus's unigram distribution on `targets`.

    The counts are smoothed by adding one, so that a token unseen in training has a finite cost.

    Args:
        train_counts: [V] how often each token occurs in the training corpus.
        targets: [n] tokens to predict, such as the scored targets of the validation set.

    Raises:
        ValueError: there is no target, or one lies outside the vocabulary.
    """
    if targets.size == 0:
        raise ValueError("no target tokens: the validation set scores nothing")
    vocabulary = train_counts.size
    if targets.min() < 0 or targets.max() >= vocabulary:
        raise ValueError(
            f"target tokens range over {targets.min()}…{targets.max()}, outside the vocabulary of "
            f"{vocabulary}: the counts are of another tokenizer"
        )
    smoothed = train_counts.astype(np.float64) + 1.0
    log_probabilities = np.log(smoothed) - np.log(smoothed.sum())
    target_counts = np.bincount(targets, minlength=vocabulary)
    return -float(target_counts @ log_probabilities) / targets.size


def write_samples(
    config: RunConfig, path: Place, monitor: Monitor, *, step: int, device: torch.device
) -> None:
    """Let the model of a checkpoint continue the configured prompts."""
    if not config.samples.prompts:
        return
    speaker = Speaker.load(
        load_model(path, device=device), RunDirectory(Path(config.run_directory)).tokenizer
    )
    for number, prompt in enumerate(config.samples.prompts):
        if not config.built_model.encoders:
            prompt = plain(prompt)
        try:
            text = speaker.speak(
                prompt,
                max_new_tokens=config.samples.max_new_tokens,
                top_p=config.samples.top_p,
                seed=config.seed + number,
            )
        except UserError as error:  # no reason to end a run
            monitor.note(f"no sample for {prompt!r}: {error}")
        else:
            monitor.sample(step, prompt, text)


def wrap_up(
    config: RunConfig,
    directory: RunDirectory,
    latest: Place,
    *,
    seconds_to_first_step: float | None,
) -> None:
    """Write the report, a LoRA run's adapter, and `summary.json` with the run's numbers."""
    if config.lora is not None:
        adapter.export(latest, config.lora, directory.adapter)
    report = write_report(directory)
    metrics = read_metrics(directory.metrics)
    seconds = [record.step_seconds for record in metrics.train]
    waits = [record.data_wait_seconds for record in metrics.train]
    summary = {
        "steps": config.steps,
        "validation_loss_first": metrics.validation[0].loss if metrics.validation else None,
        "validation_loss_last": metrics.validation[-1].loss if metrics.validation else None,
        "vocabulary": config.model.decoder.vocabulary,
        "unigram_entropy": metrics.baseline.unigram_entropy if metrics.baseline else None,
        "tokens_per_second": statistics.median(
            record.tokens / record.step_seconds for record in metrics.train
        ),
        "data_wait_fraction": sum(waits) / sum(seconds),
        "seconds_training": sum(seconds),
        "seconds_to_first_step": seconds_to_first_step,
        "parameters": sum(parameter_counts(config.built_model).values()),
        "checkpoint": str(latest),
        "report": str(report),
    }
    directory.summary.write_text(json.dumps(summary, indent=2) + "\n")


def say_complete(config: RunConfig, directory: RunDirectory, latest: Place) -> None:
    """Say that nothing is left to do, and finish what a run that was killed on its last steps left.

    A run that is started with another run directory has its checkpoints, and nothing else of it.
    """
    if directory.metrics.exists() and not directory.summary.exists():
        wrap_up(config, directory, latest, seconds_to_first_step=None)
    sys.stdout.write(f"{directory} is complete: {latest} is its last checkpoint\n")
