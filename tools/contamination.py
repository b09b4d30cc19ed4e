"""`python -m tools.contamination RUN TASK`: which rows of a task a run has read, and when."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.arguments import Parser, local_path, output_file
from tools.command import command_line, write_json
from train.build import build_plan
from train.claim import stored_config
from train.data.ledger import read_ledger
from train.data.tokens import TOKENIZER_BYTES_AT_MOST, read_tokenizer
from train.errors import DataError
from train.run_directory import RunDirectory
from train.scores.contamination import FEWEST_WORDS, WORDS, Contamination, contamination
from train.storage.record import content_of
from train.tasks.filling import RECORD
from train.tasks.reader import TaskReader
from train.tasks.task import Split, load_tasks

SHOWN = 30
"""Overlaps that are told one by one."""


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status: 0, 1 where a row was read, 2 where the user has something to mend.
    """
    parser = Parser(prog="python -m tools.contamination", description=__doc__)
    parser.add_argument("run", type=local_path, metavar="RUN", help="run directory")
    parser.add_argument("task", metavar="TASK", help="name of a task, or its YAML")
    parser.add_argument("--split", choices=["train", "validation", "test"], default="test")
    parser.add_argument(
        "--corpus", help="where the data lie now, if they were moved (one source only)"
    )
    parser.add_argument("--out", type=output_file, help="write what was found as JSON")
    options = parser.parse_args(arguments)
    found = look(options.run, options.task, split=options.split, corpus=options.corpus)
    if options.out is not None:
        write_json(options.out, asdict(found))
    _show(found, Console(), run=options.run, task=options.task)
    return 1 if found.overlaps else 0


def look(
    run: Path, task: str, *, split: Split = "test", corpus: str | None = None
) -> Contamination:
    """Hold the rows of a task against what a run has read.

    Raises:
        DataError: run, data or task cannot be read, or there are several tasks.
    """
    tasks = load_tasks([task])
    if len(tasks) != 1:
        raise DataError(f"{task} is {len(tasks)} tasks: name one")
    reader = TaskReader(tasks[0])
    directory = RunDirectory(run)
    ledger = read_ledger(directory.ledger)
    config = stored_config(directory)
    if corpus is not None and len(config.data.mixed) > 1:
        raise DataError("--corpus is for runs of one source: this one mixes several")
    plan = build_plan(config.on_corpus(corpus))
    try:
        content = content_of(directory.tokenizer, limit_bytes=TOKENIZER_BYTES_AT_MOST)
    except FileNotFoundError:
        raise DataError(
            f"{directory.tokenizer} is not there: put the tokenizer.json of the corpus there"
        ) from None
    tokenizer = read_tokenizer(content, name=str(directory.tokenizer))
    # Columns that the task adds are made of the others, and tell of no data.
    rows = (
        (f"{tasks[0].name}/{split}:{each.number}", each.values[RECORD])
        for each in reader.records(split)
    )
    found = contamination(rows, ledger, plan, tokenizer)
    if config.init_from is not None:
        found.note = f"what {config.init_from} has read before is not in this run's ledger"
    return found


def _show(found: Contamination, console: Console, *, run: Path, task: str) -> None:
    table = Table("row", "document", "steps", "share of the row", "first words that are shared")
    for overlap in found.overlaps[:SHOWN]:
        steps = ", ".join(map(str, overlap.steps[:5])) + (", …" if len(overlap.steps) > 5 else "")
        name = f"{overlap.document} ({overlap.number} of {overlap.source})"
        table.add_row(overlap.row, name, steps, f"{overlap.share:.0%}", overlap.shared)
    if found.overlaps:
        console.print(table)
    if len(found.overlaps) > SHOWN:
        console.print(f"… and {len(found.overlaps) - SHOWN:,} more")
    rows = len({overlap.row for overlap in found.overlaps})
    lines = [
        f"{run} has read {found.documents:,} documents in {found.steps:,} steps: {rows:,} of "
        f"{found.rows:,} rows of {task} share {WORDS} words in a row with one, or hold a shorter "
        "text of it whole"
    ]
    if found.silent:
        lines.append(
            f"{found.silent:,} rows have no text of {FEWEST_WORDS} words and were not looked for"
        )
    if found.note:
        lines.append(found.note)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
