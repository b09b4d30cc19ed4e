"""`python -m tools.evaluate CHECKPOINT`: loss and perplexity on the validation split."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from model.batch import Batch
from model.loss import Loss
from model.semicausal import SemiCausal
from tools.command import command_line, write_json
from train.build import build_collator, open_sources
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.config import RunConfig
from train.data.collate import Collator
from train.data.sample import Sample
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.scoring import scored_tokens
from train.data.tokens import SpecialTokens
from train.evaluate import (
    VALIDATION_EPOCH,
    Samples,
    evaluate,
    first_samples,
    validation_batches,
)
from train.loading import load_config, load_model
from train.prepare import refuse_other_corpus
from train.step import Averages, Tally
from train.storage.place import Place
from train.watch.metrics import perplexity

REFERENCE_SEED = 0


class ReferenceScored:
    """Samples in which only what a reference layout of spans leaves scored is scored.

    Which tokens a model scores depends on its spans: losses of models of different ratio are not
    of the same tokens. Here the layout is the paper's 25 % with a seed of its own. A model with
    an encoder reads those very spans; a GPT reads plain text; both are scored on the same tokens.

    Args:
        samples: the stored samples.
        special: of its corpus.
    """

    def __init__(self, samples: Samples, special: SpecialTokens):
        self.samples = samples
        self.special = special

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, sample_id: int, /) -> Sample:
        """The sample with its reference spans and targets."""
        sample = self.samples[sample_id]
        spans = RandomSpansConfig().choose(
            sample, seed=REFERENCE_SEED, epoch=VALIDATION_EPOCH, choice=0, special=self.special
        )
        return replace(sample, spans=spans, scored=scored_tokens(sample, spans))


def evaluate_checkpoint(
    config: RunConfig, model: SemiCausal, *, sequences: int | None, device: torch.device
) -> dict[str, Averages]:
    """Losses with the model's own spans (`overall`) and on the fixed set (`fixed`)."""
    sources = open_sources(config)

    def losses(collate: Collator, *, of_reference: bool = False) -> Tally:
        return Tally.of_all(
            evaluate(forward, batches(samples, collate), device=device)
            for source in sources.all
            for own in [source.validation]
            for samples in [ReferenceScored(own, sources.special) if of_reference else own]
        )

    def batches(samples: Samples, collate: Collator) -> Iterator[Batch]:
        return validation_batches(
            samples,
            collate,
            ids=first_samples(samples, sequences),
            micro_sequences=config.batch.micro_sequences,
            rank=0,
            ranks=1,
        )

    def forward(run: list[Batch]) -> list[Loss]:
        with torch.no_grad():
            return [model(batch) for batch in run]

    collate = build_collator(config, sources.special)
    found = {"overall": losses(collate).over_ranks()}
    longest = RandomSpansConfig().longest(config.data.sequence_tokens)
    if config.built_model.encoders:
        if longest > config.model.encoders["text"].encoder.longest_span:
            return found  # its encoder cannot read the reference spans
        collate = build_collator(with_stored_spans(config), sources.special)
    found["fixed"] = losses(collate, of_reference=True).over_ranks()
    return found


def with_stored_spans(config: RunConfig) -> RunConfig:
    """The configuration, but reading the spans that samples bring, with room for any."""
    tree = config.model_dump(mode="json")
    tree["spans"] = {modality: {"kind": "stored"} for modality in config.spans}
    # The samples are there already: how they were packed is past.
    tree["data"] |= {"span_capacity": {}, "pack": "fit"}
    return RunConfig.model_validate(tree)


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Print losses and write them to `out/evaluate.json`."""
    parser = argparse.ArgumentParser(prog="python -m tools.evaluate", description=__doc__)
    parser.add_argument("checkpoint", help="run directory or one of its checkpoints")
    parser.add_argument("--corpus", help="default: the corpus the run was trained on")
    parser.add_argument("--sequences", type=int, help="default: the whole validation split")
    parser.add_argument("--out", type=Path, default=Path("out/evaluate.json"))
    options = parser.parse_args(arguments)
    if options.sequences is not None and options.sequences < 1:
        parser.error("--sequences must be at least 1")
    path = resolve(Place.parse(options.checkpoint))
    config = load_config(path)
    if options.corpus is not None:
        data = config.data.model_copy(update={"corpus": options.corpus, "sources": {}})
        config = config.model_copy(update={"data": data})
        refuse_other_corpus(open_sources(config), read_state(path), path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(path, device=device)
    results = evaluate_checkpoint(config, model, sequences=options.sequences, device=device)
    table = Table("scored tokens", "count", "loss (nats)", "perplexity", "first of span", "other")
    document: dict[str, object] = {"checkpoint": str(path)}
    for name, averages in results.items():
        table.add_row(
            name,
            f"{averages.scored_tokens:,}",
            f"{averages.loss:.4f}",
            f"{perplexity(averages.loss):.2f}",
            _number(averages.first_of_span),
            _number(averages.other),
        )
        document[name] = {
            "loss": averages.loss,
            "perplexity": perplexity(averages.loss),
            "scored_tokens": averages.scored_tokens,
        }
    Console().print(table)
    write_json(options.out, document)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
