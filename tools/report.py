"""Writes the report of a run, over or not: `python -m tools.report RUN [--out report.html]`."""

import sys
from collections.abc import Sequence

from tools.arguments import Parser, local_path, output_file
from tools.command import command_line
from train.run_directory import RunDirectory
from train.watch.report import write_report


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report and prints its path."""
    parser = Parser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("run", type=local_path, help="directory of the run")
    parser.add_argument("--out", type=output_file, help="file to write (default: RUN/report.html)")
    options = parser.parse_args(arguments)
    sys.stdout.write(f"{write_report(RunDirectory(options.run), out=options.out)}\n")


if __name__ == "__main__":
    sys.exit(main())
