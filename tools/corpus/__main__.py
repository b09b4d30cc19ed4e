"""`python -m tools.corpus build OUT` and `python -m tools.corpus instruct OUT --corpus CORPUS`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.corpus import build, instruct
from tools.corpus.packages import package_cache
from tools.corpus.sources import PACKAGES
from train.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status: 0, or 2 where the user has something to mend.
    """
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    started = time.monotonic()
    try:
        manifest = options.action(options, console)
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    _describe(options.out, manifest, time.monotonic() - started)
    return 0


def _build(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    order = build.Order(
        sources=tuple(options.sources),
        vocabulary=options.vocabulary,
        sequence_tokens=options.sequence_tokens,
        tokenizer=options.tokenizer,
        limit_megabytes=options.limit_megabytes,
    )
    return build.build(options.out, order, cache=options.cache, console=console)


def _instruct(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    order = instruct.Order(
        corpus=options.corpus,
        num_train=options.samples,
        num_validation=options.validation_samples,
        passage_tokens=options.passage_tokens,
    )
    return instruct.build(options.out, order, cache=options.cache, console=console)


def _describe(out: str, manifest: dict[str, Any], seconds: float) -> None:
    lines = [f"{out}: {manifest['kind']} corpus, {seconds:.1f} s"]
    for split, numbers in manifest["splits"].items():
        told = ", ".join(f"{value:,} {name}" for name, value in numbers.items())
        lines.append(f"  {split}: {told}")
    for source in manifest["sources"]:
        licences = " and ".join(source["licences"]) or "licence not stated"
        lines.append(f"  from {source['name']} {source.get('version', '')} ({licences})")
    sys.stdout.write("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.corpus", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    text = commands.add_parser("build", help="a corpus of English prose for pretraining")
    text.set_defaults(action=_build)
    text.add_argument("out", metavar="OUT", help="directory, or s3://bucket/path")
    text.add_argument(
        "--sources",
        nargs="+",
        default=list(PACKAGES),
        metavar="SOURCE",
        help=f"directories of .rst, .txt or .md files, or packages: {', '.join(PACKAGES)}",
    )
    text.add_argument("--vocabulary", type=int, help="entries of the tokenizer (default 8192)")
    text.add_argument("--sequence-tokens", type=int, default=256, help="default 256")
    text.add_argument("--tokenizer", type=Path, metavar="FILE", help="use this tokenizer.json")
    text.add_argument("--limit-megabytes", type=float, help="of training text (default: all)")

    task = commands.add_parser("instruct", help="a small instruction task for finetuning")
    task.set_defaults(action=_instruct)
    task.add_argument("out", metavar="OUT", help="directory, or s3://bucket/path")
    task.add_argument("--corpus", required=True, help="whose tokenizer and documents to use")
    task.add_argument("--samples", type=int, default=4000, help="for training (default 4000)")
    task.add_argument("--validation-samples", type=int, default=300, help="default 300")
    task.add_argument(
        "--passage-tokens", type=int, help="longest passage (default: a quarter of a sequence)"
    )
    for command in (text, task):
        command.add_argument(
            "--cache", type=Path, default=package_cache(), help="keeps downloaded packages"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
