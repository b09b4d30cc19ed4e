"""`python -m tools.bench.checkpointing`: saving and restoring beside a copy, `dd`, torch and DCP.

The same training state each time: masters and moments of an engine under ZeRO-1. In every round
all take their turn in the same directory, and each removes its file before the next begins:

- a copy of the state in memory, against how long `Saver.save` holds training up
- `dd bs=64M conv=fsync`, `torch.save` with fsync and `dcp.save`, against the background write
- `dd` of a second checkpoint's files, `torch.load` and `dcp.load`, against `restore`; files are
  read once and dropped from the page cache before
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from parallel.engine import build_engine
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from parallel.zero import state as zero_state
from parallel.zero.config import AdamW, ZeroConfig
from parallel.zero.engine import ZeroEngine
from tools.bench.report import MEANINGS
from tools.bench.rounds import Findings, ratio
from tools.bench.shapes import Plan
from tools.ranks import run_ranks
from train.checkpoint.directory import Retention
from train.checkpoint.restore import restore
from train.checkpoint.saver import Saver, state_tensors
from train.storage.place import Place

BLOCK_BYTES = 1 << 26
WIDTH = 1024
TIMEOUT_SECONDS = 900.0

Turn = Callable[[], dict[str, float]]
"""Does its work once; seconds by name."""


def against_others(plan: Plan) -> Findings:
    """The case of `python -m tools.bench`: one rank."""
    rounds = min(plan.heavy.rounds, 5)
    return measure(plan.state_bytes, rounds=rounds, directory=None)


def measure(state_bytes: int, *, rounds: int, directory: Path | None) -> Findings:
    """Takes turns for some rounds after one that does not count; every rank must call it.

    Args:
        state_bytes: of masters and moments, over all ranks.
        rounds: that count.
        directory: on the disk to measure, which all ranks share; the system's own for temporary
            files if None.
    """
    made = [tempfile.mkdtemp(prefix="checkpointing-", dir=directory)]
    dist.broadcast_object_list(made)
    place = Path(made[0])
    seconds: dict[str, list[float]] = {}
    try:
        engine = _engine(state_bytes)
        turns = _turns(engine, place)
        for number in range(rounds + 1):
            first = number % len(turns)
            for turn in [*turns[first:], *turns[:first]]:
                dist.barrier()
                for name, taken in turn().items():
                    seconds.setdefault(name, []).append(taken)
        engine.close()
    finally:
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(place, ignore_errors=True)
    # The first save has to find its memory, and the disk its blocks.
    first = {name: taken[0] for name, taken in seconds.items()}
    slowest = {name: _slowest(taken[1:]) for name, taken in seconds.items()}
    return Findings(
        case="checkpoint",
        settings={
            "state_bytes": state_bytes,
            "ranks": dist.get_world_size(),
            "rounds": rounds,
            "load": os.getloadavg()[0],
            "seconds": {name: statistics.median(taken) for name, taken in slowest.items()},
            "seconds_first_round": first,
        },
        ratios={
            "checkpoint_blocked_vs_copy": ratio(slowest["blocked"], slowest["copy"]),
            "checkpoint_write_vs_dd": ratio(slowest["dd_write"], slowest["write"]),
            "checkpoint_write_vs_torch": ratio(slowest["torch_save"], slowest["write"]),
            "checkpoint_write_vs_dcp": ratio(slowest["dcp_save"], slowest["write"]),
            "checkpoint_blocked_vs_dcp": ratio(slowest["blocked"], slowest["dcp_blocked"]),
            "checkpoint_read_vs_dd": ratio(slowest["dd_read"], slowest["read"]),
            "checkpoint_read_vs_torch": ratio(slowest["torch_load"], slowest["read"]),
            "checkpoint_read_vs_dcp": ratio(slowest["dcp_load"], slowest["read"]),
        },
    )


def _engine(state_bytes: int) -> ZeroEngine:
    # Of each weight a master and two moments, in four bytes each.
    num_layers = max(1, round(state_bytes / (3 * 4 * WIDTH * WIDTH)))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(num_layers)))
    engine = build_engine(
        model,
        build_mesh(LayoutConfig(), World.here()),
        adamw=AdamW(learning_rate=1e-3),
        zero=ZeroConfig(stage=1),
        precision="fp32",
    )
    for tensor in _state(engine).values():
        tensor.normal_()  # memory never written to is copied faster than any other
    return engine


def _state(engine: ZeroEngine) -> dict[str, Tensor]:
    """This rank's share, under names of its own."""
    rank = dist.get_rank()
    return {
        f"{part.name}/{kind}/{part.region.start}/{rank}": tensor
        for part in zero_state.local_slices(engine)
        if part.owned
        for kind, tensor in state_tensors(part).items()
    }


def _turns(engine: ZeroEngine, place: Path) -> list[Turn]:
    state = _state(engine)
    room = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    saver = Saver(place / "ours", retention=Retention(keep=2))
    rank, steps, flips = dist.get_rank(), itertools.count(1), itertools.count()
    on_first = rank == 0
    num_bytes = dist.get_world_size() * sum(tensor.nbytes for tensor in state.values())

    def copy() -> dict[str, float]:
        def work() -> None:
            for name, tensor in state.items():
                room[name].copy_(tensor)

        return {"copy": _timed(work)}

    def ours() -> dict[str, float]:
        blocked = _timed(lambda: saver.save(engine, {}, step=next(steps)))
        written = _timed(saver.finish)
        one = saver.finish()
        # dd reads a twin: what it writes itself may be stored as holes, and what lies behind this
        # machine's disk may keep what was read once.
        saver.save(engine, {}, step=next(steps))
        twin = saver.finish()
        assert one is not None
        assert twin is not None
        swapped = next(flips) % 4
        restored, plain = (one, twin) if swapped < 2 else (twin, one)
        readers = {
            "read": lambda: restore(restored, engine),
            "dd_read": lambda: on_first and _read_with_dd(plain),
        }
        taken = {"blocked": blocked, "write": written}
        _settle(place / "ours")
        for name in sorted(readers, reverse=swapped % 2 == 0):
            taken[name] = _timed(readers[name])
            dist.barrier()
        if on_first:
            shutil.rmtree(place / "ours")
        dist.barrier()
        return taken

    def dd() -> dict[str, float]:
        # One process writes what all ranks share.
        if not on_first:
            return {"dd_write": 0.0}
        file = place / "dd"
        count = [f"count={num_bytes}", "iflag=count_bytes", f"bs={BLOCK_BYTES}", "conv=fsync"]
        write = _timed(lambda: _run("dd", "if=/dev/zero", f"of={file}", *count))
        file.unlink()
        return {"dd_write": write}

    def torchs() -> dict[str, float]:
        file = place / f"torch-{rank}.pt"

        def save() -> None:
            with file.open("wb") as opened:
                torch.save(state, opened)
                opened.flush()
                os.fsync(opened.fileno())

        def load() -> None:
            for name, tensor in torch.load(file, weights_only=True).items():
                state[name].copy_(tensor)

        write = _timed(save)
        _settle(file)
        read = _timed(load)
        file.unlink()
        return {"torch_save": write, "torch_load": read}

    def dcps() -> dict[str, float]:
        path = place / "dcp"
        write = _timed(lambda: state_dict_saver.save(state, checkpoint_id=path))
        _settle(path)
        read = _timed(lambda: state_dict_loader.load(state, checkpoint_id=path))
        dist.barrier()
        if on_first:
            shutil.rmtree(path)
        dist.barrier()
        started = time.perf_counter()
        future: Any = state_dict_saver.async_save(state, checkpoint_id=path)
        blocked = time.perf_counter() - started
        future.result()
        dist.barrier()
        if on_first:
            shutil.rmtree(path)
        dist.barrier()
        return {"dcp_save": write, "dcp_load": read, "dcp_blocked": blocked}

    return [copy, ours, dd, torchs, dcps]


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _slowest(seconds: list[float]) -> list[float]:
    """Of each round, what the slowest rank took."""
    taken = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.tolist()


def _settle(path: Place | Path) -> None:
    """Reads everything once and drops it: who reads first after so much writing, waits for it."""
    _drop_cache(path)
    if dist.get_rank() == 0:
        _read_with_dd(path)
    _drop_cache(path)


def _drop_cache(path: Place | Path) -> None:
    """Makes the next reader go to the disk; what was written must have reached it."""
    dist.barrier()
    for file in _files(path):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    dist.barrier()


def _files(place: Place | Path) -> list[Path]:
    path = Path(place)
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _read_with_dd(path: Place | Path) -> None:
    for file in _files(path):
        _run("dd", f"if={file}", "of=/dev/null", f"bs={BLOCK_BYTES}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure on one rank and on two; show seconds and ratios."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.checkpointing")
    parser.add_argument("--mebibytes", type=int, default=1200, help="training state, all ranks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk to measure")
    options = parser.parse_args(arguments)
    console = Console()
    for ranks in (1, 2):
        found = run_ranks(
            partial(measure, rounds=options.rounds, directory=options.directory),
            options.mebibytes << 20,
            ranks=ranks,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        show(console, found)
    return 0


def show(console: Console, found: Findings) -> None:
    """Seconds and ratios of one measurement."""
    settings = found.settings
    table = Table(
        "ratio",
        "median",
        "quartiles",
        title=f"{settings['ranks']} rank(s), {settings['state_bytes']} bytes of state, "
        f"load {settings['load']:.1f}",
        title_justify="left",
    )
    for key, value in found.ratios.items():
        quartiles = f"{value.lower_quartile:.2f}-{value.upper_quartile:.2f}"
        table.add_row(f"{key}\n[dim]{MEANINGS[key]}[/]", f"{value.median:.2f}", quartiles)
    console.print(table)
    for about in ("seconds", "seconds_first_round"):
        taken: Any = settings[about]
        told = ", ".join(f"{name} {value:.3f}" for name, value in taken.items())
        console.print(f"{about}: {told}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
