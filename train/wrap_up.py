"""What rank 0 does around the loop: baseline, samples, summary, report, adapter."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model.semicausal import parameter_counts
from train import adapter
from train.baseline import unigram_cross_entropy
from train.config import RunConfig
from train.data.collate import Collator
from train.data.sources import Sources
from train.errors import UserError
from train.evaluate import first_samples, validation_batches
from train.loading import load_model
from train.run_directory import SUMMARY, TOKENIZER
from train.storage.place import Place
from train.text import Speaker, plain
from train.watch.metrics import FILE_NAME, read_metrics
from train.watch.monitor import Monitor
from train.watch.report import write_report


def unigram_baseline(
    config: RunConfig, sources: Sources, collate: Collator, shares: Sequence[float]
) -> float:
    """Cross-entropy of the sources' token frequencies on the scored tokens of validation."""
    targets = [
        batch.labels.reshape(-1)[batch.scored[: batch.num_scored]].numpy()
        for source in sources.all
        for samples in [source.validation]
        for batch in validation_batches(
            samples,
            collate,
            ids=first_samples(samples, config.validation.sequences),
            micro_sequences=1,
            rank=0,
            ranks=1,
        )
    ]
    return unigram_cross_entropy(sources.token_counts(shares), np.concatenate(targets))


def write_samples(
    config: RunConfig, path: Place, monitor: Monitor, *, step: int, device: torch.device
) -> None:
    """Let the model of a checkpoint continue the configured prompts."""
    if not config.samples.prompts:
        return
    speaker = Speaker.load(load_model(path, device=device), Path(config.run_directory) / TOKENIZER)
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
    config: RunConfig, directory: Path, latest: Place, *, seconds_to_first_step: float | None
) -> Path:
    """Write the report, a LoRA run's adapter, and `summary.json` with the run's numbers."""
    if config.lora is not None:
        adapter.export(latest, config.lora, directory / "adapter")
    report = write_report(directory)
    metrics = read_metrics(directory / FILE_NAME)
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
    path = directory / SUMMARY
    path.write_text(json.dumps(summary, indent=2) + "\n")
    return path
