"""Writes the report of a run, over or not: `python -m tools.report RUN [--out report.html]`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.arguments import Parser, local_path, output_file
from tools.command import command_line
from tools.keep.attempt import ATTEMPTS_NAME, read_attempts
from train.run_directory import RunDirectory
from train.watch.report import Trouble, write_report


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report and prints its path."""
    parser = Parser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("run", type=local_path, help="directory of the run")
    parser.add_argument("--out", type=output_file, help="file to write (default: RUN/report.html)")
    options = parser.parse_args(arguments)
    run = RunDirectory(options.run)
    written = write_report(run, out=options.out, troubles=list(troubles_of(options.run)))
    sys.stdout.write(f"{written}\n")


def troubles_of(run: Path) -> Iterator[Trouble]:
    """What ended starts of a run before their time, as far as a keeper saw it.

    Raises:
        DataError: its file is damaged.
    """
    for number, attempt in enumerate(read_attempts(run / ATTEMPTS_NAME), start=1):
        verdict = attempt.verdict
        if verdict.kind in ("complete", "stopped by a signal"):
            continue
        on = "" if verdict.node is None else f" on {verdict.node}"
        who = "" if verdict.rank is None else f": rank {verdict.rank}{on}"
        step = attempt.last_step if verdict.step is None else verdict.step
        yield Trouble(step, f"{verdict.kind}{who}", f"start {number}: {verdict.sentence}")


if __name__ == "__main__":
    sys.exit(main())
