"""`make parity`: every layout computes the losses and gradient norms of one process.

Writes out/parity.json, one row for each cell, and out/lora-parity.json for those that train a part
of the model; fails if a cell does, or if a planned one was not run. Where the rows come from:
`plan`.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from tests import warm
from tests.distributed.parity.plan import planned_cells
from tests.distributed.parity.results import (
    Result,
    against,
    compared,
    problems,
    tolerances,
)
from tests.distributed.semicausal_runs import Cell, History, Part, trained_on_ranks
from tools.arguments import Parser, output_file
from tools.command import command_line
from tools.ranks import RankPool

OUT = Path("out/parity.json")
TUNED_NAME = "lora-parity.json"
TABLE_COLUMNS = 112


def run_cells(cells: Sequence[Cell], console: Console) -> list[Result]:
    """Runs cells, the fewest ranks first: ranks are started once for each number of them."""
    results: list[Result] = []
    references: dict[Cell, tuple[History, list[Part]]] = {}
    with Progress(console=console) as progress:
        bar = progress.add_task("one process", total=len(cells))
        in_bf16 = {cell.alone() for cell in cells if against(cell) == "one in bf16"}
        if in_bf16:
            with RankPool(1, context=warm.context()) as pool:
                references = {cell: pool.run(trained_on_ranks, cell)[0] for cell in in_bf16}
        for num_ranks, group in groupby(sorted(cells, key=_ranks), key=_ranks):
            with RankPool(num_ranks, context=warm.context()) as pool:
                for layout, members in groupby(group, key=_layout):
                    done = len(results)
                    for cell in members:
                        progress.update(bar, description=f"{layout}, ZeRO-{cell.zero}")
                        results.append(result := compared(pool, cell, references))
                        progress.advance(bar)
                        if fault := result.fault():
                            message = escape(f"{cell}: {fault}")
                            progress.console.print(f"[red]{message}", soft_wrap=True)
                    if not console.is_terminal:
                        seconds = sum(result.seconds for result in results[done:])
                        console.print(f"{layout}: {len(results) - done} cells, {seconds:.0f} s")
    return results


def table(results: Iterable[Result]) -> Table:
    """Largest differences, layout by layout."""
    shown = Table(title="Largest relative difference over a layout's cells", box=SIMPLE)
    for column in ("layout", "compared with"):
        shown.add_column(column, no_wrap=True)
    for column in ("cells", "refused", "loss", "norm", "weights", "allowed", "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        layout = result.cell.layout + (" tuned" if result.cell.tuned else "")
        groups.setdefault((layout, against(result.cell)), []).append(result)
    for (layout, reference), members in sorted(
        groups.items(), key=lambda item: item[0][1], reverse=True
    ):
        limits = dict.fromkeys(f"{limit:.1e}" for limit in tolerances(members[0].cell))
        failed = any(member.fault() for member in members)
        shown.add_row(
            layout,
            reference,
            str(len(members)),
            str(sum(member.status == "refused" for member in members)),
            _largest(member.loss_difference for member in members),
            _largest(member.gradient_norm_difference for member in members),
            _largest(member.weight_difference for member in members),
            " / ".join(limits),
            f"{sum(member.seconds for member in members):.0f}",
            style="red" if failed else None,
        )
    return shown


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the table; 0 if every planned cell was run and none has failed."""
    parser = Parser(prog="python -m tests.distributed.parity", description=__doc__)
    parser.add_argument(
        "--layout",
        nargs="*",
        help="look at these alone, such as tp2+sp; the rest counts as missing",
    )
    parser.add_argument(
        "--tuned",
        action="store_true",
        help="look at cells that train a part of the model alone; the rest counts as missing",
    )
    parser.add_argument("--out", type=output_file, default=str(OUT), help=f"default: {OUT}")
    options = parser.parse_args(arguments)
    console, started = Console(), time.monotonic()
    if not console.is_terminal:
        console.width = TABLE_COLUMNS
    planned = planned_cells()
    chosen = [
        cell
        for cell in planned
        if (options.layout is None or cell.layout in options.layout)
        and (cell.tuned or not options.tuned)
    ]
    results = run_cells(chosen, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for out, rows in (
        (options.out, [result.row() for result in results if not result.cell.tuned]),
        (options.out.parent / TUNED_NAME, [r.row() for r in results if r.cell.tuned]),
    ):
        if rows:
            out.write_text(json.dumps(rows, indent=1) + "\n")
    console.print(table(results))
    for reason in dict.fromkeys(r.reason for r in results if r.status == "refused"):
        console.print(f"refused: {reason}", markup=False, soft_wrap=True)
    faults = problems(planned, results)
    for fault in faults:
        console.print(fault, style="red", markup=False, soft_wrap=True)
    minutes = (time.monotonic() - started) / 60
    console.print(f"{len(results)} cells in {minutes:.1f} minutes; rows in {options.out}")
    return 1 if faults else 0


def _ranks(cell: Cell) -> int:
    return cell.ranks


def _layout(cell: Cell) -> str:
    return cell.layout


def _largest(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.1e}" if known else ""


if __name__ == "__main__":
    sys.exit(main())
