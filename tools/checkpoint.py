"""`python -m tools.checkpoint inspect|verify|prune DIR`: look at, check and thin out checkpoints.

DIR is a run directory, its checkpoints/, one step_... in it, or the s3:// URL of one of these.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from tools.arguments import Parser, whole
from tools.command import command_line
from train.checkpoint.directory import (
    CHECKPOINTS_NAME,
    Retention,
    complete,
    latest,
    resolve,
    retire,
)
from train.checkpoint.format import Index, State, stored_state, telling
from train.checkpoint.reader import ChunkReader
from train.errors import CheckpointError
from train.storage.lease import Lease
from train.storage.place import Place

PLAIN_WIDTH = 200
"""Columns where the output is no terminal."""


@command_line
def main(arguments: list[str] | None = None) -> int | None:
    """Do as asked; 1 if `verify` found a fault, 2 for a mistake of the user."""
    parser = Parser(prog="python -m tools.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("inspect", "step, configuration and parameters of a checkpoint"),
        ("verify", "read every byte of a checkpoint (of a run, the newest) and name every fault"),
        ("prune", "remove checkpoints that a policy does not keep; never the newest"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("directory", metavar="DIR")
        if name == "prune":
            command.add_argument(
                "--keep", type=whole(least=1), required=True, help="newest to keep"
            )
            command.add_argument(
                "--keep-every-steps",
                type=whole(least=1),
                metavar="N",
                help="keep those whose step is a multiple of N as well",
            )
            command.add_argument("--dry-run", action="store_true", help="only say what would go")
    options = parser.parse_args(arguments)
    # Where the output is no terminal names stay whole, to be searched for.
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(soft_wrap=True, highlight=False, width=width)
    place = Place.parse(options.directory)
    match options.command:
        case "inspect":
            inspect(place, console)
        case "verify":
            return verify(place, console)
        case _:
            retention = Retention(keep=options.keep, keep_every_steps=options.keep_every_steps)
            prune(place, retention, console, dry_run=options.dry_run)


def inspect(place: Place, console: Console) -> None:
    """Show what a checkpoint holds.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = resolve(place)
    index = Index.read(path)
    state = stored_state(path, index, State)
    # Two names must never look alike, however narrow the terminal.
    name_column = Column("parameter", overflow="fold")
    counts = Column("slices", justify="right"), Column("bytes", justify="right")
    parameters = Table(name_column, "shape", "boxes", "trains", *counts)
    for name, record in index.parameters.items():
        boxes = len({chunk.box for chunk in record.tensors["value"]})
        # Moments have the type of the value.
        element_bytes = record.torch_dtype.itemsize
        parameters.add_row(
            name,
            f"{record.shape} {record.dtype}",
            "whole" if boxes <= 1 else str(boxes),
            "yes" if record.trainable else "no",
            str(sum(map(len, record.tensors.values()))),
            f"{record.num_elements * len(record.tensors) * element_bytes:,}",
        )
    console.print(parameters)
    config = state.config
    about = {
        "checkpoint": str(path),
        "config": config.get("name", "(no name)"),
        "step": state.step,
        "layout": _layout(config),
        "files": len(index.files),
        "parameters": f"{sum(r.num_elements for r in index.parameters.values()):,}",
        "bytes": f"{sum(file.bytes for file in index.files.values()):,}",
    }
    for key, value in about.items():
        console.print(f"{key}: {value}", markup=False)


def verify(place: Place, console: Console) -> int:
    """Read every byte of a checkpoint and show every fault.

    Returns:
        1 if there is a fault, else 0.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    path = resolve(place)
    num_faults = 0
    for fault in faults(path):
        num_faults += 1
        console.print(fault, markup=False)
    console.print(f"{path}: {f'{num_faults} fault(s)' if num_faults else 'whole'}", markup=False)
    return 1 if num_faults else 0


def faults(path: Place | Path) -> Iterator[str]:
    """Everything wrong with one checkpoint; reads all of it."""
    path = Place.of(path)
    try:
        index = Index.read(path)
    except CheckpointError as error:
        yield str(error)
        return
    try:
        stored_state(path, index, State)
    except CheckpointError as error:
        yield str(error)
    with ChunkReader(path, index) as reader:
        yield from reader.faults()


def prune(place: Place, retention: Retention, console: Console, *, dry_run: bool) -> None:
    """Remove checkpoints that the policy does not keep.

    Raises:
        CheckpointError: `place` is no directory of checkpoints, or cannot be written.
        InUseError: a run writes there.
    """
    for directory in (place / CHECKPOINTS_NAME, place):
        if latest(directory) is not None:
            break
    else:
        raise CheckpointError(
            f"{place} holds no checkpoints: name a run directory or its {CHECKPOINTS_NAME}/"
        )
    lease = Lease(directory, instead="let its checkpoint.keep thin them out")
    with telling(f"{directory} cannot be changed", ": check permissions"), lease:
        if not dry_run:
            lease.take()
        # Only now: who had it may have saved meanwhile.
        newest, names = latest(directory), complete(directory)
        if newest is None:
            return
        # One behind the newest is about to become it, or was abandoned by a run gone back: a
        # writer's business.
        names = names[: names.index(newest.name) + 1]
        retired = retention.retired(names, newest=newest.name)
        if not dry_run:
            retire(directory, retired)
        done = "would go:" if dry_run else "removed"
        for name in names:
            console.print(f"{done if name in retired else 'kept'} {name}", markup=False)


def _layout(config: dict[str, Any]) -> str:
    """How the ranks that wrote it were laid out, as the stored configuration has it."""
    layout, zero = (
        part if isinstance(part := config.get(key), dict) else {} for key in ("layout", "zero")
    )
    layout = {**layout, "zero": zero.get("stage")}
    told = [f"{key}={value}" for key, value in layout.items() if value is not None]
    return " ".join(told) or "(not stored)"


if __name__ == "__main__":
    sys.exit(main())
