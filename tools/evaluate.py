"""`python -m tools.evaluate CHECKPOINT`: loss on the validation split, or `--tasks`' scores."""

import argparse
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from parallel.agreement import on_all_ranks
from parallel.forward import Engine
from parallel.launch import World
from parallel.mesh import LayoutConfig
from tools.arguments import Parser, local_path, output_file, whole
from tools.command import command_line, write_json
from tools.launched import together
from tools.progress import busy
from tools.speaker import tell_untrained
from tools.task_scores import evaluate_tasks
from train.build import build_collator, open_sources
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.config import RunConfig
from train.data.sample import Sample
from train.data.sources import Sources
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.scoring import scored_tokens
from train.data.spans.text import TextSpansConfig
from train.errors import UserError
from train.evaluate import VALIDATION_EPOCH, Evaluation, evaluate
from train.loading import load_config, load_engine
from train.microbatch import settled
from train.prepare import FirstState, refuse_other_tokenizer
from train.storage.place import Place
from train.watch.metrics import perplexity

REFERENCE_SEED = 0


def evaluate_checkpoint(
    config: RunConfig, engine: Engine, sources: Sources, *, sequences: int | None
) -> dict[str, Evaluation]:
    """Losses with the model's own spans (`overall`) and on the fixed set (`fixed`).

    Which tokens a model scores depends on its spans: losses of models of different ratio are not
    of the same tokens. The fixed set is what the paper's 25 % with a seed of its own leaves scored.
    A model with an encoder reads those very spans; a GPT reads plain text.

    Every rank must call it.

    Raises:
        DataError: some rank cannot read its part.
    """
    special = sources.special
    alone = config.model_copy(update={"layout": LayoutConfig()})
    read = partial(
        evaluate,
        engine,
        sources,
        sequences=sequences,
        micro_sequences=settled(alone, ranks=1).micro_sequences,
    )

    def of_reference(sample: Sample) -> Sample:
        spans = RandomSpansConfig().choose(
            sample, seed=REFERENCE_SEED, epoch=VALIDATION_EPOCH, choice=0, special=special
        )
        return replace(sample, spans=spans, scored=scored_tokens(sample, spans))

    found = {"overall": read(build_collator(config, special))}
    longest = RandomSpansConfig().load(config.data.sequence_tokens).longest
    encoders = config.built_model.encoders
    # Else an encoder cannot read the reference spans.
    if all(longest <= encoders[name].encoder.longest_span for name in text_of(config)):
        collate = build_collator(with_stored_spans(config), special)
        found["fixed"] = read(collate, change=of_reference)
    return found


def text_of(config: RunConfig) -> list[str]:
    """Modalities whose spans are tokens of the sequence, of those that have an encoder."""
    encoders = config.built_model.encoders
    return [name for name in encoders if isinstance(config.spans[name], TextSpansConfig)]


def with_stored_spans(config: RunConfig) -> RunConfig:
    """The configuration, but reading the spans that samples bring, with room for any."""
    tree = config.model_dump(mode="json")
    text = text_of(config)
    tree["spans"] |= {modality: {"kind": "stored"} for modality in text}
    # The samples are there already: how they were packed is past.
    kept = {name: room for name, room in tree["data"]["span_capacity"].items() if name not in text}
    tree["data"] |= {"span_capacity": kept, "pack": "fit"}
    return RunConfig.model_validate(tree)


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Print losses or scores, and write them down."""
    parser = Parser(prog="python -m tools.evaluate", description=__doc__)
    parser.add_argument("checkpoint", help="run directory or one of its checkpoints")
    parser.add_argument("--corpus", help="default: the corpus the run was trained on")
    parser.add_argument(
        "--sequences", type=whole(least=1), help="default: the whole validation split"
    )
    parser.add_argument("--tasks", help="score these instead: all, names or files, with commas")
    parser.add_argument("--split", choices=["train", "validation", "test"], default="test")
    parser.add_argument("--template", type=whole(), default=0, help="number of the template")
    parser.add_argument("--rows", type=whole(least=1), help="of each task; default: all")
    parser.add_argument(
        "--demonstrations", type=whole(most=1024), default=0, help="shown before each row"
    )
    parser.add_argument(
        "--shuffled",
        action="store_true",
        help="ask each row with another row's context, or with its pictures",
    )
    parser.add_argument("--blind", action="store_true", help="ask each row without its pictures")
    parser.add_argument(
        "--controls",
        action="store_true",
        help="ask --blind (where rows show items) and --shuffled too: by how much it is above each",
    )
    parser.add_argument(
        "--leave-out-long", action="store_true", help="pass over rows without room in the model"
    )
    parser.add_argument(
        "--batch", type=whole(least=1, most=2**16), default=16, help="contexts read at once"
    )
    parser.add_argument(
        "--baseline",
        type=local_path,
        help="a run whose scores to compare with, or a directory that holds them",
    )
    parser.add_argument("--scores", type=local_path, help="default: scores/ in the run directory")
    degree = whole(least=1, most=2**17)
    parser.add_argument("--tensor", type=degree, default=1, help="ranks that share each layer")
    parser.add_argument("--pipeline", type=degree, default=1, help="stages of layers")
    parser.add_argument(
        "--out", type=output_file, help="default: out/evaluate.json, of tasks out/scores.json"
    )
    options = parser.parse_args(arguments)
    if options.controls and (options.blind or options.shuffled or options.baseline):
        parser.error(
            "--controls: asks --blind and --shuffled itself, beside no --baseline: leave these out"
        )
    path = resolve(Place.parse(options.checkpoint))
    layout = LayoutConfig(tensor=options.tensor, pipeline=options.pipeline)
    with together() as world:
        if world.is_main:
            tell_untrained(path)
        if options.tasks is None:
            document = _losses(options, path, layout, world)
        else:
            document = evaluate_tasks(options, path, layout, world)
    if world.is_main:
        name = "evaluate" if options.tasks is None else "scores"
        write_json(options.out or Path(f"out/{name}.json"), document)


def _losses(
    options: argparse.Namespace, path: Place, layout: LayoutConfig, world: World
) -> dict[str, object]:
    config = load_config(path).on_corpus(options.corpus)

    def opened() -> Sources:
        sources = open_sources(config)
        if options.corpus is not None:
            refuse_other_tokenizer(sources, read_state(path, FirstState), path)
        return sources

    sources = on_all_ranks(opened, UserError)
    engine = load_engine(path, layout=layout, world=world)
    said = busy(Console(stderr=True), "reading the validation split")
    with said if world.is_main else nullcontext():
        results = evaluate_checkpoint(config, engine, sources, sequences=options.sequences)
    if world.is_main:
        _show(results)
    return {"checkpoint": str(path)} | _document(results)


def _show(results: dict[str, Evaluation]) -> None:
    table = Table(
        *("scored tokens", "count", "sequences", "loss (nats)", "perplexity", "first of span"),
        "other",
    )
    for name, found in results.items():
        averages = found.averages
        table.add_row(
            name,
            f"{averages.scored_tokens:,}",
            f"{found.sequences:,}",
            f"{averages.loss:.4f}",
            f"{perplexity(averages.loss):.2f}",
            _number(averages.first_of_span_loss),
            _number(averages.other_loss),
        )
    Console().print(table)


def _document(results: dict[str, Evaluation]) -> dict[str, object]:
    return {
        name: {
            "loss": found.averages.loss,
            "perplexity": perplexity(found.averages.loss),
            "scored_tokens": found.averages.scored_tokens,
            "sequences": found.sequences,
        }
        for name, found in results.items()
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
