"""Brings W&B up to date with runs: `python -m tools.wandb_sync RUN...`, as often as one likes.

What a run has recorded becomes one W&B run, each step once, however often it was started and
whether it was offline, without a server or cut short. Steps that the server has are not sent again.
The run need not be over, unless it tells the server itself: of two that write one W&B run, each
would overwrite what the other has sent. W&B's own variables say where to and as whom
(WANDB_BASE_URL, WANDB_API_KEY, ...). `wandb sync` would send each file under RUN/wandb as it is,
with the steps that two starts have made.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.arguments import Parser, local_path
from tools.command import command_line
from tools.plan.__main__ import write_overlay
from tools.plan.given import given_plan
from tools.plan.machines import KINDS, MachineKind, machine_for
from train.claim import stored_config
from train.config import RunConfig, batch_fault
from train.errors import RunDirectoryError, UserError
from train.run_directory import RunDirectory
from train.storage.holder import Holder
from train.storage.lease import held_by
from train.storage.place import Place
from train.watch.config import WatchConfig
from train.watch.metrics import Metrics, read_metrics
from train.watch.wandb_run.rows import Row, Rows, recorded
from train.watch.wandb_run.session import Session, describe, end_services
from train.watch.wandb_run.switches import mode_of

INIT_SECONDS: Final = 60.0


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Uploads run after run, and prints where each is."""
    parser = Parser(prog="python -m tools.wandb_sync", description=__doc__)
    parser.add_argument("runs", nargs="+", type=local_path, metavar="RUN", help="its directory")
    options = parser.parse_args(arguments)
    mode, _ = mode_of(WatchConfig(wandb="online"))
    if mode != "online":
        raise UserError(
            f"W&B is {mode} here, says a variable of yours: unset WANDB_MODE and WANDB_DISABLED to "
            "upload"
        )
    if len(options.runs) > 1 and os.environ.get("WANDB_RUN_ID"):
        raise UserError("WANDB_RUN_ID: names one run for all of these: unset it, or give one RUN")
    faults: list[str] = []
    for run in options.runs:
        try:
            sys.stdout.write(f"{uploaded(RunDirectory(run))}\n")
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))


def uploaded(directory: RunDirectory) -> str:
    """Sends the server what it lacks of a run; says what that was.

    Raises:
        UserError: there is no such run, it tells the server itself, or W&B does not take it.
    """
    metrics = read_metrics(directory.metrics)
    if metrics.wandb_mode == "online" and (holder := writer_of(directory)) is not None:
        raise UserError(
            f"{directory} is being written, {holder}, and tells W&B itself: wait until it ends, "
            "and upload then what W&B may lack"
        )
    update = {"run_directory": str(directory.path)}
    config = stored_config(directory).model_copy(update=update)
    run_id = run_id_in(directory.path, metrics)
    try:
        session = Session(config, run_id=run_id, mode="online", init_seconds=INIT_SECONDS)
        known, sent = session.known_step, 0
        rows = Rows(after=known, left_out=session.known_left_out)
        for record in recorded(metrics):
            sent += logged(session, rows.add(record))
        # Of the last step of a run that lives more may come.
        if not lives(directory):
            sent += logged(session, rows.rest())
        with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
            files = [directory.config, directory.report, planned(config, metrics, Path(scratch))]
            session.keep(path for path in files if path.exists())
            session.finish(exit_code=0)
    except Exception as error:
        raise UserError(
            f"{directory} is not uploaded, or not all of it ({describe(error)}): see that "
            "WANDB_BASE_URL and WANDB_API_KEY are right, then give the same command"
        ) from None
    finally:
        end_services()
    after = f" after step {known:,}" if known >= 0 else ""
    return f"{directory}: {sent:,} steps sent{after}: {session.url}"


def planned(config: RunConfig, metrics: Metrics, directory: Path) -> Path:
    """What the planner says of the run's last start; not there if it knows nothing of such runs."""
    file, last = directory / "plan.yaml", metrics.runs[-1]
    words = last.machine.lower()
    kind: MachineKind | None = next((each for each in KINDS if each in words), None)
    if kind is None and ("nvidia" in words or "instinct" in words):
        return file
    with contextlib.suppress(UserError):
        if batch_fault(config, ranks=last.num_ranks) is None:
            machine, source = machine_for(kind or "cpu", None)
            plan = given_plan(config, machine, ranks=last.num_ranks)
            title = f"{config.name} on {last.num_ranks} x {machine.device}, rates: {source}"
            write_overlay(file, plan, title=title)
    return file


def logged(session: Session, rows: Sequence[Row]) -> int:
    """Hands rows over; how many they are."""
    for row in rows:
        session.log(row)
    return len(rows)


def run_id_in(run: Path, metrics: Metrics) -> str:
    """Under which id a run is at W&B: that of its last start.

    Raises:
        UserError: it was never recorded.
    """
    ids = [record.wandb_run_id for record in metrics.runs if record.wandb_run_id is not None]
    # Records of earlier versions do not have it, but the names of W&B's directories.
    ids = ids or [path.name.rsplit("-", 1)[-1] for path in sorted(run.glob("wandb/*run-*-*"))]
    if named := os.environ.get("WANDB_RUN_ID"):
        return named
    if not ids:
        raise UserError(f"{run} says nowhere under which id it is at W&B: set WANDB_RUN_ID")
    return ids[-1]


def lives(directory: RunDirectory) -> bool:
    """Whether the run may write more."""
    try:
        holder, alive = held_by(Place.of(directory.path))
    except OSError:
        return True
    return holder is not None and alive is not False


def writer_of(directory: RunDirectory) -> Holder | None:
    """Who writes the run; where that is a process of another host, its lease is watched.

    Raises:
        RunDirectoryError: the directory cannot be read.
    """
    place = Place.of(directory.path)
    try:
        first, alive = held_by(place)
        if first is None or alive is not None:
            return first if alive else None
        sys.stderr.write(f"{directory} was written by {first}: seeing whether it still is\n")
        until = time.monotonic() + first.patience_seconds
        while time.monotonic() < until:
            time.sleep(first.renewed_every_seconds / 10)
            holder, _ = held_by(place)
            if holder != first:
                return holder
    except OSError as error:
        raise RunDirectoryError(
            f"{directory} cannot be read ({error.strerror or error}): change its permissions"
        ) from None
    return None


if __name__ == "__main__":
    sys.exit(main())
