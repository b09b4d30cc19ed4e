"""Shows where the time of a profiled step went: `python -m tools.trace RUN [--step N]`.

A table of its parts by kind of work, for each stage, and of what the stages waited; a page with the
timeline of the pipeline as it was, over the one that its schedule allows.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from parallel.named import Part
from tools.arguments import Parser, local_path, output_file, whole
from tools.command import command_line
from tools.trace.timeline import Work, from_zero, idle_share, planned, read_work
from train.errors import DataError
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.storage.record import content_of, parse
from train.watch.profiling import KINDS, OTHER, TRACE_SUFFIX, Profiled
from train.watch.report import Number, render_page

PAGE: Final = "timeline.html"
_LEAST_COLUMNS: Final = 120
_MOST_BYTES: Final = 1 << 20
_SHADES: Final = 8
"""Shades that tell neighbouring microbatches apart."""


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Shows a step, and writes its page."""
    parser = Parser(prog="python -m tools.trace", description=__doc__)
    parser.add_argument("run", type=local_path, help="directory of the run")
    parser.add_argument("--step", type=whole(least=1), help="which; default: the last profiled")
    parser.add_argument("--out", type=output_file, help=f"default: {PAGE} beside the traces")
    options = parser.parse_args(arguments)
    directory = _directory(RunDirectory(options.run), options.step)
    ranks = _ranks(directory)
    console = Console()
    console.width = max(console.width, _LEAST_COLUMNS)
    console.print(_table(ranks))
    measured = from_zero([work for rank in ranks for work in _work(directory, rank)])
    if ranks[0].stages > 1:
        laid = planned(measured)
        console.print(_waiting(measured, laid))
        out = options.out or directory / PAGE
        Place.of(out).write(_page(options.run, ranks[0], measured, laid).encode())
        console.print(f"{out}", soft_wrap=True)
    for rank in ranks:
        trace = directory / f"rank_{rank.rank:05d}{TRACE_SUFFIX}"
        console.print(f"{trace}: for ui.perfetto.dev", soft_wrap=True)


def _directory(run: RunDirectory, step: int | None) -> Path:
    there = sorted(
        int(match[1])
        for path in (run.profile.iterdir() if run.profile.is_dir() else ())
        if (match := re.fullmatch(r"step_(\d+)", path.name))
    )
    if not run.path.is_dir():
        raise DataError(f"{run} does not exist: name the directory of a run")
    if not there:
        raise DataError(f"{run}: no step was profiled: train with profile='{{steps: [10]}}'")
    if step is not None and step not in there:
        shown = ", ".join(map(str, there))
        raise DataError(f"{run}: step {step} was not profiled: name one of {shown}")
    return run.profile / f"step_{there[-1] if step is None else step:08d}"


def _ranks(directory: Path) -> list[Profiled]:
    """The first rank of each tensor group, by stage."""
    found = [
        parse(
            Profiled,
            content_of(path, limit_bytes=_MOST_BYTES),
            name=str(path),
            error=DataError,
            remedy="profile another step",
        )
        for path in sorted(directory.glob("rank_*.json"))
    ]
    ranks = sorted((rank for rank in found if rank.tensor_rank == 0), key=lambda rank: rank.stage)
    if not ranks or [rank.stage for rank in ranks] != list(range(ranks[0].stages)):
        raise DataError(f"{directory} lacks files of some stages: profile another step")
    return ranks


def _work(directory: Path, rank: Profiled) -> list[Work]:
    trace = directory / f"rank_{rank.rank:05d}{TRACE_SUFFIX}"
    return read_work(trace, stage=rank.stage, stages=rank.stages)


def _table(ranks: Sequence[Profiled]) -> Table:
    device = "processor" if ranks[0].device == "cpu" else "GPU"
    table = Table(title=f"step {ranks[0].step}: milliseconds of {device} by kind of work")
    for name in ("stage", "part"):
        table.add_column(name)
    for name in (*KINDS, "all"):
        table.add_column(name, justify="right")
    for rank in ranks:
        for part in (*Part, OTHER):
            kinds = rank.seconds.get(part)
            if kinds:
                cells = [kinds.get(kind, 0.0) for kind in KINDS]
                shown = (f"{1e3 * seconds:,.1f}" for seconds in (*cells, sum(cells)))
                table.add_row(str(rank.stage), part, *shown)
    return table


def _waiting(measured: Sequence[Work], laid: Sequence[Work]) -> Table:
    table = Table(title="pipeline: time without forward or backward")
    for name in ("stage", "busy ms", "idle", "by the schedule alone"):
        table.add_column(name, justify="right")
    for stage in sorted({work.stage for work in measured}):
        busy = sum(work.seconds for work in measured if work.stage == stage)
        idle, least = (f"{idle_share(work, stage=stage):.1%}" for work in (measured, laid))
        table.add_row(str(stage), f"{1e3 * busy:,.1f}", idle, least)
    return table


def _page(run: Path, rank: Profiled, measured: Sequence[Work], laid: Sequence[Work]) -> str:
    seconds = max(work.end for work in measured)
    least = max(work.end for work in laid)
    stages = sorted({work.stage for work in measured})
    idle, bubble = (
        sum(idle_share(work, stage=stage) for stage in stages) / len(stages)
        for work in (measured, laid)
    )
    return render_page(
        Path(__file__).with_name("timeline.html.jinja"),
        title=f"Step {rank.step}",
        facts=[f"{run}: {rank.stages} stages of {rank.pieces} pieces, microbatches by number"],
        numbers=[
            Number("Forward and backward", f"{1e3 * seconds:,.1f} ms"),
            Number("By the schedule alone", f"{1e3 * least:,.1f} ms", "each piece at its median"),
            Number("Idle", f"{idle:.1%}", "mean over the stages"),
            Number("Bubble of the schedule", f"{bubble:.1%}"),
        ],
        lanes=[
            {"title": title, "rows": [_row(work, stage, seconds) for stage in stages]}
            for title, work in (("As it was", measured), ("By the schedule alone", laid))
        ],
        milliseconds=f"{1e3 * seconds:,.1f}",
        shades=_SHADES,
    )


def _row(work: Sequence[Work], stage: int, seconds: float) -> dict[str, Any]:
    bars = [
        {
            "left": 100 * each.start / seconds,
            "width": 100 * each.seconds / seconds,
            "direction": each.direction.value,
            "shade": each.microbatch % _SHADES,
            "label": each.microbatch,
            "hover": f"{each.direction.value} of microbatch {each.microbatch}, piece {each.piece}: "
            f"{1e3 * each.start:,.2f} to {1e3 * each.end:,.2f} ms",
        }
        for each in work
        if each.stage == stage
    ]
    return {"stage": stage, "bars": bars}


if __name__ == "__main__":
    sys.exit(main())
