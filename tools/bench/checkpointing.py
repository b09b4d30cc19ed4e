"""Saving and restoring a checkpoint beside a copy, `dd`, torch and DCP.

The same training state each time: masters and moments of an engine under ZeRO-1. In every round
all take their turn in the same directory (of temporary files: `TMPDIR` names another disk), and
each removes its files before the next begins:

- a copy of the state in memory, against how long `Saver.save` holds training up
- `dd bs=64M conv=fsync`, `torch.save` with fsync and `dcp.save`, against the background write
- `dd` of a second checkpoint's files, `torch.load` and `dcp.load`, against `restore`; files are
  read once and dropped from the page cache before
"""

import contextlib
import itertools
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from parallel.agreement import gathered
from parallel.engine import build_engine
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from parallel.zero.config import AdamW, ZeroConfig
from parallel.zero.engine import ZeroEngine
from parallel.zero.state import local_slices
from tools.bench.report import TWO_RANKS
from tools.bench.rounds import Findings, ratio, turns
from tools.bench.shapes import Plan
from train.checkpoint.directory import Retention
from train.checkpoint.restore import restore
from train.checkpoint.saver import Saver

BLOCK_BYTES = 1 << 26
WIDTH = 1024
MOST_ROUNDS = 5

OVER_AND_UNDER = {
    "blocked_vs_copy": ("blocked", "copy"),
    "write_vs_dd": ("dd_write", "write"),
    "write_vs_torch": ("torch_save", "write"),
    "write_vs_dcp": ("dcp_save", "write"),
    "blocked_vs_dcp": ("blocked", "dcp_blocked"),
    "read_vs_dd": ("dd_read", "read"),
    "read_vs_torch": ("torch_load", "read"),
    "read_vs_dcp": ("dcp_load", "read"),
}
"""Whose seconds each ratio compares."""

Turn = Callable[[], dict[str, float]]
"""Does its work once; seconds by name."""


def against_others(plan: Plan) -> Findings:
    """Takes turns for some rounds after one that does not count; every rank must call it."""
    rounds = min(plan.heavy.rounds, MOST_ROUNDS)
    made = None if dist.get_rank() else tempfile.mkdtemp(prefix="checkpointing-")
    place = Path(str(gathered(made)[0]))
    seconds: dict[str, list[float]] = {}
    try:
        engine = engine_of_bytes(plan.state_bytes)
        for turn in turns(_turns(engine, place), rounds + 1):
            dist.barrier()
            for name, taken in turn().items():
                seconds.setdefault(name, []).append(taken)
        engine.close()
    finally:
        remove(place)
    # The first save has to find its memory, and the disk its blocks.
    slowest = {name: slowest_of(taken[1:]) for name, taken in seconds.items()}
    ranks = dist.get_world_size()
    prefix = "" if ranks == 1 else TWO_RANKS
    return Findings(
        settings={
            "state_bytes": plan.state_bytes,
            "ranks": ranks,
            "rounds": rounds,
            "seconds": {name: round(statistics.median(s), 4) for name, s in slowest.items()},
            "seconds_first_round": {name: round(taken[0], 4) for name, taken in seconds.items()},
        },
        ratios={
            f"{prefix}checkpoint_{key}": ratio(slowest[over], slowest[under])
            for key, (over, under) in OVER_AND_UNDER.items()
        },
    )


def engine_of_bytes(state_bytes: int) -> ZeroEngine:
    """An engine under ZeRO-1 with so much training state over all ranks."""
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
        f"{part.name}/{part.kind}/{part.region.start}/{rank}": part.tensor
        for part in local_slices(engine)
        if part.owned
    }


def _turns(engine: ZeroEngine, place: Path) -> list[Turn]:
    state = _state(engine)
    room = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    saver = Saver(place / "ours", retention=Retention(keep=2))
    rank, steps, flips = dist.get_rank(), itertools.count(1), itertools.count()
    num_bytes = dist.get_world_size() * sum(tensor.nbytes for tensor in state.values())

    def copy() -> dict[str, float]:
        return {"copy": timed(lambda: _copy(state, to=room))}

    def ours() -> dict[str, float]:
        blocked = timed(lambda: saver.save(engine, {}, step=next(steps)))
        written = timed(saver.finish)
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
            "dd_read": lambda: rank or _read_with_dd(Path(plain)),
        }
        taken = {"blocked": blocked, "write": written}
        _settle(place / "ours")
        for name in sorted(readers, reverse=swapped % 2 == 0):
            taken[name] = timed(readers[name])
            dist.barrier()
        remove(place / "ours")
        return taken

    def dd() -> dict[str, float]:
        file = place / "dd"
        count = [f"count={num_bytes}", "iflag=count_bytes", f"bs={BLOCK_BYTES}", "conv=fsync"]
        # One process writes what all ranks share.
        write = timed(lambda: rank or _run("dd", "if=/dev/zero", f"of={file}", *count))
        remove(file)
        return {"dd_write": write}

    def torchs() -> dict[str, float]:
        file = place / f"torch-{rank}.pt"

        def save() -> None:
            with file.open("wb") as opened:
                torch.save(state, opened)
                opened.flush()
                os.fsync(opened.fileno())

        write = timed(save)
        _settle(file)
        read = timed(lambda: _copy(torch.load(file, weights_only=True), to=state))
        file.unlink()
        return {"torch_save": write, "torch_load": read}

    def dcps() -> dict[str, float]:
        path = place / "dcp"
        write = timed(lambda: state_dict_saver.save(state, checkpoint_id=path))
        _settle(path)
        read = timed(lambda: state_dict_loader.load(state, checkpoint_id=path))
        remove(path)
        started = time.perf_counter()
        future: Any = state_dict_saver.async_save(state, checkpoint_id=path)
        blocked = time.perf_counter() - started
        future.result()
        remove(path)
        return {"dcp_save": write, "dcp_load": read, "dcp_blocked": blocked}

    return [copy, ours, dd, torchs, dcps]


def _copy(tensors: Mapping[str, Tensor], *, to: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        to[name].copy_(tensor)


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def remove(path: Path) -> None:
    """Removes what all ranks have done with; every rank must call it."""
    dist.barrier()
    if dist.get_rank() == 0:
        _run("rm", "-rf", str(path))
    dist.barrier()


def slowest_of(seconds: list[float]) -> list[float]:
    """Of each round, what the slowest rank took; every rank must call it."""
    taken = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.tolist()


def _settle(path: Path) -> None:
    """Reads everything once and drops it: who reads first after so much writing, waits for it."""
    drop_cache(path)
    if dist.get_rank() == 0:
        _read_with_dd(path)
    drop_cache(path)


def drop_cache(path: Path) -> None:
    """Makes the next reader go to the disk; what was written must have reached it."""
    dist.barrier()
    for file in _files(path):
        # A server may have removed one meanwhile.
        with contextlib.suppress(FileNotFoundError), file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dist.barrier()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _read_with_dd(path: Path) -> None:
    for file in _files(path):
        _run("dd", f"if={file}", "of=/dev/null", f"bs={BLOCK_BYTES}")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
