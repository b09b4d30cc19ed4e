"""`python -m tools.ledger check RUN`, `show RUN --step N`: what a run has read, and the proof."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tools.arguments import Parser, local_path, output_file, whole
from tools.command import command_line, write_json
from train.build import build_plan
from train.checkpoint.directory import latest
from train.checkpoint.restore import read_state
from train.claim import stored_config
from train.config import RunConfig
from train.data.ledger import read_ledger
from train.data.ledger_check import SHOWN, Findings, check
from train.data.plan import StepPlan, identities
from train.errors import DataError
from train.prepare import RunState, Saved, find_left_out
from train.run_directory import RunDirectory


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status: 0, 1 where the ledger and the plan part, 2 where the user has something to
        mend.
    """
    parser = Parser(prog="python -m tools.ledger", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    proof = commands.add_parser("check", help="prove that every batch was read once, in order")
    proof.set_defaults(action=_check)
    proof.add_argument("run", type=local_path, metavar="RUN", help="run directory")
    proof.add_argument("--out", type=output_file, help="write the findings as JSON")
    shown = commands.add_parser("show", help="what a step was made of")
    shown.set_defaults(action=_show)
    shown.add_argument("run", type=local_path, metavar="RUN", help="run directory")
    shown.add_argument("--step", type=whole(least=1), required=True)
    for command in (proof, shown):
        command.add_argument(
            "--corpus", help="where the data lie now, if they were moved (one source only)"
        )
    options = parser.parse_args(arguments)
    return options.action(options, Console())


def check_run(run: Path, *, corpus: str | None = None, progress: bool = False) -> Findings:
    """Hold a run's ledger against its configuration and its data.

    Raises:
        DataError: there is no ledger, or it was damaged or changed; the data cannot be read.
    """
    directory = RunDirectory(run)
    ledger = read_ledger(directory.ledger)
    config = stored_config(directory)
    plan = _plan(config, corpus)
    path = latest(config.checkpoints_of(directory))
    saved = None if path is None else Saved(path=path, state=read_state(path, RunState))
    return check(
        ledger,
        plan,
        saved_step=0 if saved is None else saved.step,
        left_out=find_left_out(config, saved),
        watch=(lambda steps: track(steps, "comparing")) if progress else iter,
    )


def _check(options: argparse.Namespace, console: Console) -> int:
    findings = check_run(options.run, corpus=options.corpus, progress=console.is_terminal)
    if options.out is not None:
        write_json(options.out, asdict(findings))
    total = max(1, sum(share.entries for share in findings.shares))
    rows = {
        "steps made before, with another run directory": f"{findings.begun:,}",
        "global batches read": f"{findings.steps:,}",
        "steps left out": _listed(findings.left_out),
        "sequences": f"{findings.entries:,}",
        "data ranks, start by start": " → ".join(map(str, findings.starts)),
        "steps made again after a crash": f"{findings.steps_again:,}",
        "sequences lost": f"{findings.entries_lost:,}",
        "sequences repeated": f"{findings.entries_repeated:,}",
    } | {
        f"from {share.name}": f"{share.entries:,} ({share.entries / total:.4%} where "
        f"{share.due / total:.4%} were due)"
        for share in findings.shares
    }
    table = Table("what", "value", title=f"ledger of {options.run}", title_justify="left")
    for row in rows.items():
        table.add_row(*row)
    console.print(table)
    for fault in findings.faults[:SHOWN]:
        console.print(f"✗ {fault}", style="red", markup=False, highlight=False)
    if len(findings.faults) > SHOWN:
        console.print(f"… and {len(findings.faults) - SHOWN:,} more", style="red")
    if not findings.faults:
        but = ", but for those left out" if findings.left_out else ""
        console.print(f"✓ every global batch was read once, in order{but}", style="green")
    return 1 if findings.faults else 0


def _show(options: argparse.Namespace, console: Console) -> int:
    directory = RunDirectory(options.run)
    ledger = read_ledger(directory.ledger)
    plan = _plan(stored_config(directory), options.corpus)
    found = {
        start: sorted(mine, key=lambda record: record.first)
        for start, ranks in ledger.items()
        if (mine := [r for _, made in ranks.values() for r in made if r.step == options.step])
    }
    if not found:
        raise DataError(f"{options.run} has no record of step {options.step}")
    if len(found) > 1:
        console.print(f"made at starts {', '.join(map(str, found))}; the last one counts")
    names = [source.name for source in plan.sources.all]
    table = Table("entry", "source", "epoch", "number", "tokens", title=f"step {options.step}")
    counted = found[max(found)]
    if any(record.is_left_out for record in counted):
        console.print(f"step {options.step} is left out: what was read of it counts for nothing")
    for record in counted:
        parts = record.identities
        if parts is None:  # beyond the file's limit there is a digest only
            stop = record.first + record.entries
            parts = identities(plan.step(options.step, first=record.first, stop=stop))
        for place, source, epoch, number, begin, end in parts.tolist():
            tokens = "all" if end < 0 else f"{begin} to {end - 1}"
            table.add_row(str(place), names[source], str(epoch), str(number), tokens)
    console.print(table)
    return 0


def _listed(steps: Sequence[int]) -> str:
    """How many steps, and the first of them."""
    shown = ", ".join(map(str, steps[:SHOWN])) + (", …" if len(steps) > SHOWN else "")
    return f"{len(steps):,} ({shown})" if steps else "0"


def _plan(config: RunConfig, corpus: str | None) -> StepPlan:
    if corpus is not None and len(config.data.mixed) > 1:
        raise DataError("--corpus is for runs of one source: this one mixes several")
    return build_plan(config.on_corpus(corpus))


if __name__ == "__main__":
    sys.exit(main())
