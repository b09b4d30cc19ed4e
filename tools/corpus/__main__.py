"""`python -m tools.corpus build [SOURCE…] OUT`; `verify`, `inspect`, `stats` and `cost` CORPUS.

`python -m tools.corpus instruct OUT --corpus CORPUS` builds a small task for finetuning.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from tools.corpus import build, cost, show, stats, verify
from tools.corpus.documentation import (
    PACKAGES,
    VALIDATION_SHARE,
    Documentation,
    is_documentation,
)
from tools.corpus.duplicates import Dedup, Method
from tools.corpus.entries import Fields
from tools.corpus.finished import Corpus
from tools.corpus.instruct import Task
from tools.corpus.packages import package_cache
from train.errors import DataError, UserError

_TASK = {"samples": 4000, "validation-samples": 300, "passage-tokens": 64}
_SOURCES = """\
Without a SOURCE, the corpus is English documentation: the Debian packages linux-doc-6.1 and
python3.11-doc, reduced to prose. prose:DIRECTORY reduces .rst, .txt and .md files likewise.
Any other source is a file, a directory, a pattern or an s3:// URL, perhaps as name=path. Known are
.txt and .md (a document each); .jsonl, .jsonl.zst, .jsonl.gz, .csv and .parquet (a document a row:
`text`; or `image`, `audio`, `video` with `text` or `caption`; or `segments`, a list of
{"text": ..., "span": ..., "scored": ...} and {"image": path}); pictures, sound and video with a
.txt of the same name beside them.
A build that is called again goes on where it was, or says that the corpus is there, while its
arguments and the files of its sources are the same. Whether files changed is told by name, size and
content (above 1 MiB by samples of the content and the time of the change; in a store by its ETag).
Files that rows name by path are not looked at for this.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status: 0; 1 where a corpus is faulty; 2 where the user has something to mend;
        130 where the user interrupted it.
    """
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        return options.action(options, console)
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; what is finished of a build stays", style="red")
        return 130


def _build(options: argparse.Namespace, console: Console) -> int:
    prose = tuple(filter(is_documentation, options.sources))
    sources = tuple(source for source in options.sources if not is_documentation(source))
    made = None
    if prose or not sources:
        made = Documentation(
            sources=prose or tuple(PACKAGES),
            cache=options.cache or package_cache(),
            limit_megabytes=options.limit_megabytes,
        )
    elif options.limit_megabytes is not None:
        raise DataError("--limit-megabytes is for documentation; leave it out, or name less")
    validation, mebibytes = options.validation, options.shard_mebibytes
    if validation is None:
        validation = build.DEFAULT_VALIDATION if sources else VALIDATION_SHARE
    if mebibytes is None:
        mebibytes = 64 if sources else 4
    part_mebibytes = options.part_mebibytes
    request = build.Request(
        sources=sources,
        made=made,
        licences=tuple(options.licence),
        tokenizer=options.tokenizer,
        tokenizer_of=options.tokenizer_of,
        vocabulary=options.vocabulary,
        fields=Fields(text=options.text_field, id=options.id_field),
        validation=validation,
        shard_bytes=int(mebibytes * 2**20),
        part_bytes=None if part_mebibytes is None else int(part_mebibytes * 2**20),
        has_media=options.media,
        skip_bad=options.skip_bad,
        workers=options.workers,
        dedup=Dedup(
            method=options.dedup,
            threshold=options.dedup_threshold,
            permutations=options.dedup_permutations,
        ),
    )
    return _built(options.out, request, console)


def _instruct(options: argparse.Namespace, console: Console) -> int:
    task = Task(
        corpus=Corpus.at(options.corpus),
        num_train=options.samples,
        num_validation=options.validation_samples,
        passage_tokens=options.passage_tokens,
        cache=options.cache or package_cache(),
    )
    request = build.Request(
        made=task,
        tokenizer_of=options.corpus,
        validation=VALIDATION_SHARE,
        workers=options.workers,
    )
    return _built(options.out, request, console)


def _built(out: str, request: build.Request, console: Console) -> int:
    """Build, and say what was built."""
    started = time.monotonic()
    manifest = build.build(out, request, console=console)
    lines = [f"{out}: {time.monotonic() - started:.1f} s"]
    for split, numbers in manifest["splits"].items():
        told = ", ".join(
            f"{value:,} {name.replace('_', ' ')}"
            for name, value in numbers.items()
            if value and name != "samples"  # which are the documents
        )
        if told:
            lines.append(f"  {split}: {told}")
    for source in manifest["sources"]:
        licences = " and ".join(source["licences"]) or "licence not stated"
        lines.append(f"  from {source['name']}: {source['tokens']:,} tokens ({licences})")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _verify(options: argparse.Namespace, console: Console) -> int:
    faults = verify.verify(options.corpus, workers=options.workers, console=console)
    for fault in faults:
        console.print(fault, style="red", markup=False, highlight=False, soft_wrap=True)
    told = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
    sys.stdout.write(f"{options.corpus}: {told if faults else 'sound'}\n")
    return 1 if faults else 0


def _inspect(options: argparse.Namespace, console: Console) -> int:
    corpus = Corpus.at(options.corpus)
    split = options.split or next(iter(corpus.splits))
    printer = show.Printer(corpus, split, console=Console(highlight=False))
    for number in show.chosen_numbers(printer, options):
        printer.print(number)
    return 0


def _stats(options: argparse.Namespace, console: Console) -> int:
    written = stats.write_stats(options.corpus, options.out)
    sys.stdout.write(f"{written}\n")
    return 0


def _cost(options: argparse.Namespace, console: Console) -> int:
    names = [field.name for field in dataclasses.fields(cost.Training)]
    training = cost.Training(**{name: getattr(options, name) for name in names})
    found = cost.cost(options.corpus, training)
    width = max(len(name) for name, _ in found)
    sys.stdout.write("".join(f"{name:<{width}}  {value}\n" for name, value in found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.corpus", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_build(commands)
    command = _add_reader(commands, "verify", _verify, "check every byte of a corpus")
    _add_workers(command)
    _add_inspect(_add_reader(commands, "inspect", _inspect, "print documents as people read them"))
    command = _add_reader(commands, "stats", _stats, "write a page of what a corpus holds")
    command.add_argument("--out", type=Path, default=Path("stats.html"), help="default stats.html")
    _add_cost(_add_reader(commands, "cost", _cost, "what training on a corpus takes"))
    _add_instruct(commands)
    return parser


def _add_build(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("build", help="a corpus from files", epilog=_SOURCES)
    command.set_defaults(action=_build)
    command.add_argument("sources", nargs="*", metavar="SOURCE", help="see below")
    command.add_argument("out", metavar="OUT", help="directory, or s3://bucket/path")
    command.add_argument(
        "--licence", action="append", default=[], metavar="NAME=SPDX", help="of a source"
    )
    tokenizer = command.add_mutually_exclusive_group()
    tokenizer.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json")
    tokenizer.add_argument("--tokenizer-of", metavar="CORPUS", help="take a corpus's tokenizer")
    command.add_argument(
        "--vocabulary", type=int, metavar="N", help="train a tokenizer of N entries (default 8192)"
    )
    command.add_argument("--text-field", default="text", metavar="NAME", help="default text")
    command.add_argument("--id-field", metavar="NAME", help="default: file and row")
    command.add_argument(
        "--validation",
        type=float,
        metavar="SHARE",
        help=f"of documents (default {build.DEFAULT_VALIDATION}; documentation is always split by "
        f"{VALIDATION_SHARE})",
    )
    command.add_argument(
        "--limit-megabytes", type=float, metavar="N", help="of training text of documentation"
    )
    command.add_argument(
        "--dedup",
        choices=get_args(Method),
        help="leave out documents that are like an earlier one: equal but for case and space, or "
        "nearly equal",
    )
    command.add_argument(
        "--dedup-threshold",
        type=float,
        default=Dedup.threshold,
        metavar="SHARE",
        help=f"of five-word sequences in common, for minhash (default {Dedup.threshold})",
    )
    command.add_argument(
        "--dedup-permutations",
        type=int,
        default=Dedup.permutations,
        metavar="N",
        help=f"of minhash (default {Dedup.permutations})",
    )
    command.add_argument(
        "--skip-bad", type=int, default=0, metavar="N", help="leave out up to N bad documents"
    )
    command.add_argument(
        "--media", action="store_true", help="store payloads whatever the first rows show"
    )
    command.add_argument(
        "--shard-mebibytes", type=float, metavar="N", help="default 64; 4 for documentation alone"
    )
    command.add_argument(
        "--part-mebibytes", type=float, metavar="N", help="input that a process handles at once"
    )
    _add_cache(command)
    _add_workers(command)


def _add_reader(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    action: Callable[[argparse.Namespace, Console], int],
    about: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about)
    command.set_defaults(action=action)
    command.add_argument("corpus", metavar="CORPUS", help="directory, or s3://bucket/path")
    return command


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument("--split", metavar="NAME", help="default: the first, train")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--number", type=int, metavar="N", help="from 0 (default 0)")
    which.add_argument("--id", metavar="ID", help="of a document; reads all before it")
    which.add_argument("--random", type=int, metavar="K", help="as many, drawn at random")
    command.add_argument("--seed", type=int, default=0, help="of --random (default 0)")


def _add_cost(command: argparse.ArgumentParser) -> None:
    budget = command.add_mutually_exclusive_group()
    budget.add_argument("--tokens", type=float, metavar="N", help="budget, such as 30e9")
    budget.add_argument("--epochs", type=float, metavar="N", help="default 1")
    command.add_argument("--sequence-tokens", type=int, default=2048, metavar="S")
    command.add_argument("--batch-sequences", type=int, default=256, metavar="N")
    command.add_argument("--tokens-per-second", type=float, metavar="N", help="of all GPUs")
    command.add_argument("--hosts", type=int, default=1, metavar="N", help="that download")
    command.add_argument("--price-per-gb-month", type=float, metavar="PRICE")
    command.add_argument("--price-per-gb-egress", type=float, metavar="PRICE")


def _add_instruct(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("instruct", help="a small instruction task for finetuning")
    command.set_defaults(action=_instruct)
    command.add_argument("out", metavar="OUT", help="directory, or s3://bucket/path")
    command.add_argument("--corpus", required=True, help="whose tokenizer and documents to use")
    for name, what in (
        ("samples", "for training"),
        ("validation-samples", "for validation"),
        ("passage-tokens", "longest passage"),
    ):
        default = _TASK[name]
        command.add_argument(
            f"--{name}", type=int, default=default, help=f"{what} (default {default})"
        )
    _add_cache(command)
    _add_workers(command)


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cache", type=Path, metavar="DIRECTORY", help="keeps downloaded packages"
    )


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes (default: one for each core)",
    )


if __name__ == "__main__":
    sys.exit(main())
