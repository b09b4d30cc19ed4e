"""Training in little memory: bf16 optimiser state, and masters and moments in files."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.zero import pages
from parallel.zero.config import Precision, ZeroConfig
from parallel.zero.engine import ZeroEngine
from parallel.zero.state import local_slices
from tests.distributed.toy import ADAMW, Toy, engine_of, train_step
from tools.ranks import RankPool
from train.checkpoint.directory import Retention
from train.checkpoint.restore import restore
from train.checkpoint.saver import Saver

NUM_STEPS = 4
Curve = list[tuple[float, float]]
State = dict[str, Tensor]
Case = dict[str, Any]


def _engine(
    *, stage: Any, precision: Precision, states: Precision, directory: Path | None
) -> ZeroEngine:
    return engine_of(
        Toy(frozen=True),
        stage=stage,
        precision=precision,
        adamw=replace(ADAMW, precision=states),
        # The toy's matrices are updated one after the other.
        bucket_elements=100,
        offload_directory=None if directory is None else str(directory),
    )


def _state(engine: ZeroEngine) -> State:
    slices = local_slices(engine)
    return {f"{part.name}/{part.kind}": part.tensor.clone() for part in slices}


def _train(case: Case, steps: range, *, source: Path | None = None, target: Path | None = None):
    """Some steps, from a checkpoint and to another if named: the curve, and state at the end."""
    engine = _engine(**case)
    if source is not None:
        restore(source, engine)
    curve = [train_step(engine, step, accumulation=2) for step in steps]
    state = _state(engine)
    if target is not None:
        with Saver(target, retention=Retention(keep=1), asynchronous=False) as saver:
            saver.save(engine, {"config": {}}, step=steps.stop)
    engine.close()
    return curve, state


def _train_all(cases: list[Case]) -> list[tuple[Curve, State]]:
    return [_train(case, range(NUM_STEPS)) for case in cases]


def _case(stage: int, precision: str, states: str = "fp32", directory: Path | None = None) -> Case:
    return {"stage": stage, "precision": precision, "states": states, "directory": directory}


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(
    ("precision", "states"), [("fp32", "fp32"), ("bf16", "fp32"), ("bf16",) * 2]
)
def test_files_hold_what_memory_would(
    rank_pools: dict[int, RankPool], tmp_path: Path, num_ranks: int, precision: str, states: str
) -> None:
    directory = tmp_path / "made" / "offload"
    cases = [_case(3, precision, states), _case(3, precision, states, directory)]
    for in_memory, in_files in rank_pools[num_ranks].run(_train_all, cases):
        assert in_memory[0] == in_files[0]
        assert _same(in_memory[1], in_files[1])
    assert not list(directory.iterdir()), "the files have no names"


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_bf16_state(rank_pools: dict[int, RankPool], num_ranks: int) -> None:
    cases = [_case(3, "bf16"), *(_case(stage, "bf16", "bf16") for stage in (0, 1, 2, 3))]
    results = rank_pools[num_ranks].run(_train_all, cases)[0]
    reference, _ = results[0]
    for curve, state in results[1:]:
        kinds = {tensor.dtype for tensor in state.values()}
        assert kinds == {torch.bfloat16}
        assert curve == [pytest.approx(expected, rel=0.02) for expected in reference]
        assert curve != reference


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (_case(3, "bf16", "bf16"), _case(3, "bf16", "bf16")),
        (_case(3, "bf16", directory=Path("offload")), _case(3, "bf16")),
        (_case(3, "bf16"), _case(3, "bf16", directory=Path("offload"))),
    ],
)
def test_checkpoints_continue_to_the_last_bit(
    rank_pools: dict[int, RankPool], tmp_path: Path, first: Case, second: Case
) -> None:
    for case in (first, second):
        if case["directory"] is not None:
            case["directory"] = tmp_path / case["directory"]
    checkpoints = tmp_path / "checkpoints"
    pool = rank_pools[2]
    whole = pool.run(_train, first, range(NUM_STEPS))
    pool.run(_train_to, first, range(2), checkpoints)
    rest = pool.run(_train_from, second, range(2, NUM_STEPS), checkpoints)
    for (curve, state), (rest_of_curve, its_state) in zip(whole, rest, strict=True):
        assert rest_of_curve == curve[2:]
        assert _same(state, its_state)


def _train_to(case: Case, steps: range, target: Path) -> None:
    _train(case, steps, target=target)


def _train_from(case: Case, steps: range, source: Path) -> tuple[Curve, State]:
    return _train(case, steps, source=source)


def _resident_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


@pytest.mark.parametrize("begin", [0, 1, 3000])
@pytest.mark.parametrize("num_elements", [1, 100, 5000, 3_000_000])
def test_zeros_without_pages_are_zeros(begin: int, num_elements: int) -> None:
    whole = torch.ones(begin + num_elements + 2000)
    pages.zero_without_pages(whole[begin : begin + num_elements])
    assert not whole[begin : begin + num_elements].any()
    assert whole[:begin].all()
    assert whole[begin + num_elements :].all()


def test_zeros_without_pages_take_no_memory() -> None:
    tensor = torch.ones(16 << 20)
    before = _resident_bytes("RssAnon")
    pages.zero_without_pages(tensor)
    assert before - _resident_bytes("RssAnon") > 60 << 20
    assert float(tensor.sum()) == 0


def test_pages_of_files_leave_after_each_step(tmp_path: Path) -> None:
    masters = [torch.nn.Parameter(torch.ones(8 << 20)) for _ in range(3)]
    optimizer = torch.optim.AdamW(masters, lr=0.1, fused=True)
    pages.move_to_files(optimizer, masters, tmp_path)
    before = _resident_bytes("RssFile")
    for master in masters:
        optimizer.param_groups[0]["params"] = [master]
        master.grad = torch.ones_like(master)
        optimizer.step()
        assert _resident_bytes("RssFile") - before < 16 << 20
        master.grad = None
    for master in masters:
        values = master.detach()
        assert float(values.min()) == float(values.max()) == pytest.approx(1 - 0.1 * 1.01)


def test_a_full_disk_is_an_error_at_once(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        pages.mapped_zeros(
            tmp_path, num_elements=2 * free.f_bavail * free.f_frsize, dtype=torch.float32
        )
    assert not list(tmp_path.iterdir())


def _engine_on_a_full_disk(directory: Path) -> str:
    """What is said on this rank where the second rank's disk alone is full."""
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            patch.setattr(os, "posix_fallocate", Mock(side_effect=full))
        with pytest.raises(OSError, match="No space left") as raised:
            _engine(stage=3, precision="bf16", states="fp32", directory=directory)
    return str(raised.value)


def test_a_disk_full_on_one_rank_ends_all(rank_pools: dict[int, RankPool], tmp_path: Path) -> None:
    said = rank_pools[2].run(_engine_on_a_full_disk, tmp_path, timeout_seconds=60)
    assert said == ["No space left on device (rank 1 of 2)"] * 2


def test_files_need_stage_3() -> None:
    with pytest.raises(ValueError, match="offload_directory needs stage 3"):
        ZeroConfig(stage=2, offload_directory="somewhere")
