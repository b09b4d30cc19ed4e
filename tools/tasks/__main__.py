"""`python -m tools.tasks build [NAME…]`: real tasks, made of packages that are downloaded once.

`verify [NAME…]` looks whether training tells what test asks; `corpus OUT --corpus CORPUS` makes
documents of tasks, for finetuning; `outcome PRETRAINED FINETUNED` says what it has brought.
"""

from train.preemption import quiet_until_asked

if __name__ == "__main__":
    quiet_until_asked()  # what is imported next takes seconds

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tools.arguments import Parser, local_path, output_file, whole
from tools.command import command_line, write_json
from tools.corpus.documentation import VALIDATION_SHARE
from tools.corpus.finished import Corpus
from tools.corpus.request import Request
from tools.corpus.tokenizer import TOKENIZER_NAME, CorpusTokenizer
from tools.corpus.told import built
from tools.packages.kept import package_cache
from tools.packages.used import Packages
from tools.tasks.build import SPLITS, build
from tools.tasks.documents import TaskDocuments
from tools.tasks.outcome import OTHERS, outcome
from tools.tasks.recipes import RECIPES
from tools.tasks.verify import faults
from train.asked import item_vectors, text_encoder
from train.checkpoint.directory import resolve
from train.config import RunConfig
from train.config_files import load
from train.errors import DataError
from train.run_directory import RunDirectory
from train.scores.going import Setting
from train.storage.place import Place
from train.tasks.fitting import Fitting
from train.tasks.protocol import PROTOCOLS
from train.tasks.reader import TaskReader
from train.tasks.task import load_tasks

DEFAULT_OUT: Final = "data/tasks"
_SHOWN_FAULTS: Final = 10
_SPAN_TOKENS: Final = 128
_SEQUENCE_TOKENS: Final = 256


@command_line
def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    return options.action(options)


def _build(options: argparse.Namespace) -> None:
    names = _named(options)
    console = Console(stderr=True)

    def report(told: str) -> None:
        console.print(told, markup=False, highlight=False, soft_wrap=True)

    most = dict(zip(SPLITS, (options.records, options.held_out, options.held_out), strict=True))
    for name in names:
        packages = Packages(cache=options.cache or package_cache(), report=report)
        manifest = build(name, RECIPES[name], options.out, packages, most=most)
        counts = ", ".join(f"{n['records']:,} {split}" for split, n in manifest["splits"].items())
        licences = sorted({each for source in manifest["sources"] for each in source["licences"]})
        sys.stdout.write(
            f"{options.out / name}: {counts} ({', '.join(licences) or 'see licences'})\n"
        )


def _verify(options: argparse.Namespace) -> int:
    num_faulty = 0
    for task in load_tasks(_named(options)):
        found = [*faults(TaskReader(task, directory=options.out / task.name))]
        num_faulty += bool(found)
        told = f"{len(found):,} faults" if found else "sound"
        sys.stdout.write("".join(f"{line}\n" for line in found[:_SHOWN_FAULTS]))
        sys.stdout.write(f"{task.name}: {told}\n")
    return 1 if num_faulty else 0


def _named(options: argparse.Namespace) -> list[str]:
    """The tasks that a user names, of those that can be built."""
    for name in options.names:
        if name not in RECIPES:
            near = get_close_matches(name, RECIPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
            raise DataError(f"there is no task {name} to build: {hint}")
    return options.names or [*RECIPES]


def _corpus(options: argparse.Namespace) -> None:
    corpus = Corpus.at(options.corpus)
    tokenizer = corpus.tokenizer()
    protocol = PROTOCOLS[options.protocol]
    readers = [TaskReader(task) for task in load_tasks(options.tasks or ["all"])]
    protocol = replace(protocol, **_caps(options.records, [read.task.name for read in readers]))
    if options.demonstrations is not None:
        protocol = replace(protocol, demonstrations=options.demonstrations)
    if options.evenly and protocol.most_records is None:
        raise DataError("--evenly: as many of each task as --records says: say how many")
    protocol = replace(protocol, held_out=frozenset(options.hold_out), is_even=options.evenly)
    if options.protocol == "single" and len(readers) != 1:
        raise DataError(f"--protocol single: is of one task, not of {len(readers)}: name it")
    documents = TaskDocuments(
        readers=protocol.trained(readers),
        protocol=protocol,
        fitting=_fitting(options, tokenizer),
        tokenizer_sha256=tokenizer.sha256,
        validation_records=options.validation_records,
        leaves_out_long=options.leave_out_long,
        seed=options.seed,
    )
    request = Request(
        made=documents,
        tokenizer=corpus.place / TOKENIZER_NAME,
        validation=VALIDATION_SHARE,
        workers=options.workers,
        has_media=any(reader.has_media for reader in documents.readers),
    )
    built(options.out, request, Console(stderr=True))


def _fitting(options: argparse.Namespace, tokenizer: CorpusTokenizer) -> Fitting:
    """What the model has room for: as told, else as the experiment has it, else the defaults."""
    span_tokens, sequence_tokens, vectors = _SPAN_TOKENS, _SEQUENCE_TOKENS, {}
    if options.experiment:
        config = load(RunConfig, options.experiment)
        encoder = text_encoder(config.model)
        span_tokens = None if encoder is None else encoder[1].longest_span
        sequence_tokens = config.data.sequence_tokens
        vectors = item_vectors(config.model)
    return Fitting(
        tokenizer=tokenizer.tokenizer,
        span_tokens=options.span_tokens or span_tokens,
        sequence_tokens=options.sequence_tokens or sequence_tokens,
        vectors=vectors,
    )


def _caps(told: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
    """How many records `--records` wants: `N` of each task, `TASK=N` of one."""
    most: dict[str, Any] = {}
    most_of: dict[str, int] = {}
    for each in told:
        name, is_of_one, number = each.rpartition("=")
        if is_of_one and name not in tasks:
            near = get_close_matches(name, tasks, n=1)
            raise DataError(
                f"--records {each}: {name or 'nothing'} is none of the tasks: "
                f"{f'did you mean {near[0]}?' if near else ', '.join(tasks)}"
            )
        if not number.isdecimal() or int(number) < 1:
            raise DataError(f"--records {each}: say N, of each task, or TASK=N, of one")
        if is_of_one:
            most_of[name] = int(number)
        else:
            most["most_records"] = int(number)
    return most | {"most_of": most_of}


def _outcome(options: argparse.Namespace) -> None:
    left = Setting(split=options.split, most_rows=options.rows)
    rows = [
        outcome(
            TaskReader(task),
            pretrained=_predictions(options.pretrained, left),
            finetuned=_predictions(options.finetuned, left),
            shuffled=_predictions(options.finetuned, replace(left, is_shuffled=True)),
        )
        for task in load_tasks(options.names or ["all"])
    ]
    table = Table("task", "metric", *OTHERS, "finetuned", "above the best of three [95 %]")
    for row in rows:
        numbers = [f"{row[name]:.3f}" for name in (*OTHERS, "finetuned")]
        interval = "unknown"
        if row["difference_low"] is not None:
            interval = f"{row['difference_low']:+.3f} to {row['difference_high']:+.3f}"
        name = row["task"] + " (recall)" * (row["kind"] == "recall")
        table.add_row(name, row["metric"], *numbers, interval)
    Console().print(table)
    write_json(options.out, rows)


def _predictions(run: str, setting: Setting) -> Path:
    """Where `tools.evaluate --tasks` has left those of a run's last checkpoint."""
    path = resolve(Place.parse(run))
    return RunDirectory(Path(str(path.parent.parent))).scores / path.name / setting.name


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tools.tasks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("build", help="records of tasks, from packages")
    command.set_defaults(action=_build)
    command.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    command.add_argument("--out", type=local_path, default=Path(DEFAULT_OUT), metavar="DIRECTORY")
    command.add_argument("--cache", type=local_path, metavar="DIRECTORY", help="keeps downloads")
    for flag, default, about in (
        ("--records", 30_000, "of training at most"),
        ("--held-out", 1_000, "records of validation and of test at most"),
    ):
        command.add_argument(
            flag, type=whole(least=1), default=default, metavar="N", help=f"{about} ({default})"
        )
    command = commands.add_parser("verify", help="that no split tells what another asks")
    command.set_defaults(action=_verify)
    command.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    command.add_argument("--out", type=local_path, default=Path(DEFAULT_OUT), metavar="DIRECTORY")
    command = commands.add_parser("corpus", help="documents of tasks, to finetune a model on")
    command.set_defaults(action=_corpus)
    command.add_argument("out", metavar="OUT", help="directory, or s3://bucket/path")
    command.add_argument(
        "--tasks", nargs="+", metavar="NAME", help="in configs/task, or files (default: all)"
    )
    command.add_argument("--corpus", required=True, help="that the model was trained on")
    command.add_argument(
        "--protocol", choices=[*PROTOCOLS], default="multitask", help="default multitask"
    )
    command.add_argument(
        "--hold-out", nargs="+", default=[], metavar="CLUSTER", help="train on none of its tasks"
    )
    command.add_argument(
        "--experiment",
        nargs="+",
        default=[],
        metavar="FILE|key=value",
        help="that will read them: spans and sequences are as long as it has them",
    )
    command.add_argument("--leave-out-long", action="store_true", help="what has no room")
    command.add_argument(
        "--records",
        nargs="+",
        default=[],
        metavar="N|TASK=N",
        help="of each task at most, or of one (default: as the protocol has it)",
    )
    command.add_argument(
        "--evenly", action="store_true", help="go through small tasks again, up to --records"
    )
    for flag, least, default, about in (
        ("--validation-records", 1, 100, "of a task at most (default 100)"),
        ("--demonstrations", 0, None, "before each record (default: as the protocol has it)"),
        ("--sequence-tokens", 8, None, f"that hold input and answer (default {_SEQUENCE_TOKENS})"),
        (
            *("--span-tokens", 1, None),
            f"longest span; longer ones become several (default {_SPAN_TOKENS})",
        ),
        ("--seed", 0, 0, "of what is drawn (default 0)"),
        ("--workers", 1, len(os.sched_getaffinity(0)), "processes (default: one for each core)"),
    ):
        command.add_argument(
            flag, type=whole(least=least), default=default, metavar="N", help=about
        )
    command = commands.add_parser("outcome", help="scores before and after tuning, as a table")
    command.set_defaults(action=_outcome)
    command.add_argument("pretrained", help="run, evaluated with --tasks")
    command.add_argument("finetuned", help="run, evaluated with --tasks, and with --shuffled too")
    command.add_argument(
        "--tasks", nargs="+", default=[], dest="names", metavar="NAME", help="default: all"
    )
    command.add_argument("--split", choices=SPLITS, default="test", help="default test")
    command.add_argument("--rows", type=whole(least=1), help="as tools.evaluate was told")
    command.add_argument("--out", type=output_file, default="out/tasks.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
