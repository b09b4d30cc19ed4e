"""`python -m tools.evaluate CHECKPOINT`: loss and perplexity on the validation split."""

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from model.batch import Batch
from model.loss import Loss
from model.semicausal import SemiCausal
from tools.arguments import Parser, output_file, whole
from tools.command import command_line, write_json
from train.build import build_collator, open_sources
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.config import RunConfig
from train.data.sample import Sample
from train.data.sources import Sources
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.scoring import scored_tokens
from train.data.spans.text import TextSpansConfig
from train.evaluate import VALIDATION_EPOCH, evaluate, validation_batches
from train.loading import load_config, load_model
from train.microbatch import settled
from train.prepare import RunState, refuse_other_corpus
from train.step import Averages, averaged
from train.storage.place import Place
from train.watch.metrics import perplexity

REFERENCE_SEED = 0


def evaluate_checkpoint(
    config: RunConfig,
    model: SemiCausal,
    sources: Sources,
    *,
    sequences: int | None,
    device: torch.device,
) -> dict[str, Averages]:
    """Losses with the model's own spans (`overall`) and on the fixed set (`fixed`).

    Which tokens a model scores depends on its spans: losses of models of different ratio are not
    of the same tokens. The fixed set is what the paper's 25 % with a seed of its own leaves scored.
    A model with an encoder reads those very spans; a GPT reads plain text.
    """
    special = sources.special

    def of_reference(sample: Sample) -> Sample:
        spans = RandomSpansConfig().choose(
            sample, seed=REFERENCE_SEED, epoch=VALIDATION_EPOCH, choice=0, special=special
        )
        return replace(sample, spans=spans, scored=scored_tokens(sample, spans))

    def forward(run: list[Batch]) -> list[Loss]:
        with torch.no_grad():
            return [model(batch) for batch in run]

    def averages(config: RunConfig, change: Callable[[Sample], Sample]) -> Averages:
        collate = build_collator(config, special)
        batches = (
            batch
            for source in sources.all
            for batch in validation_batches(
                source,
                collate,
                sequences=sequences,
                micro_sequences=settled(config, ranks=1).micro_sequences,
                change=change,
            )
        )
        return averaged(evaluate(forward, batches, device=device))

    found = {"overall": averages(config, lambda sample: sample)}
    longest = RandomSpansConfig().load(config.data.sequence_tokens).longest
    encoders = config.built_model.encoders
    # Else an encoder cannot read the reference spans.
    if all(longest <= encoders[name].encoder.longest_span for name in text_of(config)):
        found["fixed"] = averages(with_stored_spans(config), of_reference)
    return found


def text_of(config: RunConfig) -> list[str]:
    """Modalities whose spans are tokens of the sequence, of those that have an encoder."""
    encoders = config.built_model.encoders
    return [name for name in encoders if isinstance(config.spans[name], TextSpansConfig)]


def with_stored_spans(config: RunConfig) -> RunConfig:
    """The configuration, but reading the spans that samples bring, with room for any."""
    tree = config.model_dump(mode="json")
    tree["spans"] |= {modality: {"kind": "stored"} for modality in text_of(config)}
    # The samples are there already: how they were packed is past.
    tree["data"] |= {"span_capacity": {}, "pack": "fit"}
    return RunConfig.model_validate(tree)


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Print losses and write them to `out/evaluate.json`."""
    parser = Parser(prog="python -m tools.evaluate", description=__doc__)
    parser.add_argument("checkpoint", help="run directory or one of its checkpoints")
    parser.add_argument("--corpus", help="default: the corpus the run was trained on")
    parser.add_argument(
        "--sequences", type=whole(least=1), help="default: the whole validation split"
    )
    parser.add_argument("--out", type=output_file, default="out/evaluate.json")
    options = parser.parse_args(arguments)
    path = resolve(Place.parse(options.checkpoint))
    config = load_config(path).on_corpus(options.corpus)
    sources = open_sources(config)
    if options.corpus is not None:
        refuse_other_corpus(sources, read_state(path, RunState), path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(path, device=device)
    results = evaluate_checkpoint(
        config, model, sources, sequences=options.sequences, device=device
    )
    table = Table("scored tokens", "count", "loss (nats)", "perplexity", "first of span", "other")
    document: dict[str, object] = {"checkpoint": str(path)}
    for name, averages in results.items():
        table.add_row(
            name,
            f"{averages.scored_tokens:,}",
            f"{averages.loss:.4f}",
            f"{perplexity(averages.loss):.2f}",
            _number(averages.first_of_span_loss),
            _number(averages.other_loss),
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
