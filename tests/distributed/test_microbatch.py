"""A step without an update: nothing changes, memory is foretold, ranks refuse together."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from parallel.launch import World
from parallel.mesh import build_mesh
from parallel.zero.engine import ZeroEngine
from tests.train.runs import TINY_RUN
from tools.plan.measure import metered
from tools.random_batches import random_batches
from tools.ranks import RankPool
from train.build import build_collator, build_engine, build_model
from train.config import RunConfig
from train.config_files import load
from train.data.tokens import SpecialTokens
from train.errors import MemoryExceededError, UserError
from train.microbatch import tried
from train.step import reseed, train_step

GIB = 2**30


class MeteredMemory:
    """The host's, by the record of every allocation.

    Args:
        usable_bytes: of it.
        known: peaks that were measured before: no two runs in one process allocate alike.
    """

    def __init__(self, usable_bytes: float, known: Sequence[float] = ()):
        self._usable_bytes = usable_bytes
        self._known = known
        self.peaks: list[float] = []

    def usable_bytes(self) -> float:
        return self._usable_bytes

    def peak_of(self, work: Callable[[], object]) -> float:
        with metered() as meter:
            work()
        self.peaks.append(meter.peak_bytes)
        return self._known[len(self.peaks) - 1] if self._known else meter.peak_bytes


def _config(*overrides: str) -> RunConfig:
    given = ["data.corpus=x", "run_directory=x", "batch.try_first=true"]
    return load(RunConfig, [str(TINY_RUN), *given, *overrides])


def _prepared(config: RunConfig) -> tuple[ZeroEngine, Any]:
    mesh = build_mesh(config.layout, World.here(torch.device("cpu")))
    engine = build_engine(config, build_model(config, mesh), mesh)
    engine.set_learning_rate(1e-2)
    return engine, build_collator(config, SpecialTokens())


def _trained(overrides: list[str], *, is_tried: bool) -> list[tuple[float, float]]:
    config = _config(*overrides)
    engine, collate = _prepared(config)
    batches = random_batches(vocabulary=300, sequence_tokens=64, sequences=2, ratio=0.25, count=4)
    mine = batches[engine.mesh.data_rank :: engine.mesh.data_size]
    history: list[tuple[float, float]] = []
    for step in range(3):
        if is_tried and step < 2:  # before the first step, and as before one that goes on
            tried(config, engine, collate)
        reseed(1, step=step, mesh=engine.mesh)
        result = train_step(engine, mine)
        history.append((result.averages.loss, result.gradient_norm))
    engine.close()
    return history


def _both(overrides: list[str]) -> list[list[tuple[float, float]]]:
    return [_trained(overrides, is_tried=is_tried) for is_tried in (False, True)]


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"zero.stage={stage}"] for stage in range(4)),
        ["zero.stage=1", "precision=bf16"],
        ["zero.stage=3", "layout.tensor=2", "layout.sequence_parallel=true"],
        ["zero.stage=1", "layout.pipeline=2"],
    ],
    ids=" ".join,
)
def test_nothing_changes(overrides: list[str], rank_pools: dict[int, RankPool]) -> None:
    for untouched, after_trials in rank_pools[2].run(_both, overrides):
        assert after_trials == untouched


def _foretold(usable_bytes: float) -> tuple[str, list[float]]:
    config = _config(
        *("zero.stage=1", "batch={sequences: 64, micro_sequences: auto, try_first: true}"),
        "model.decoder.loss_chunk_tokens=16",
    )
    engine, collate = _prepared(config)
    memory = MeteredMemory(usable_bytes)
    try:
        found = str(tried(config, engine, collate, memory=memory).micro_sequences)
    except UserError as error:
        found = str(error)
    engine.close()
    return found, memory.peaks


def _peak_of(size: int) -> float:
    config = _config(
        *("zero.stage=1", f"batch={{sequences: 64, micro_sequences: {size}, try_first: true}}"),
        "model.decoder.loss_chunk_tokens=16",
    )
    engine, collate = _prepared(config)
    with metered() as meter:
        tried(config, engine, collate)
    engine.close()
    return meter.peak_bytes


def test_the_largest_that_fits_is_taken(rank_pools: dict[int, RankPool]) -> None:
    pool = rank_pools[1]
    [(found, (one, two))] = pool.run(_foretold, GIB)
    assert found == "64"  # 4,096 slots
    # The line through both holds for the larger ones.
    peaks = {size: pool.run(_peak_of, size)[0] for size in (8, 16)}
    for size, peak in peaks.items():
        assert one + (size - 1) * (two - one) == pytest.approx(peak, rel=0.05)
    # Room for 8 and not for 16, by what they really take.
    assert pool.run(_foretold, (peaks[8] + peaks[16]) / 2)[0][0] == "8"


def _asked_for_32(usable_bytes: list[float], known: list[list[float]]) -> tuple[str, list[float]]:
    """What is told of it, and what a microbatch of one and of two takes."""
    config = _config("zero.stage=1", "batch={sequences: 64, micro_sequences: 32, try_first: true}")
    engine, collate = _prepared(config)
    rank = engine.mesh.world.rank
    memory = MeteredMemory(usable_bytes[rank], known[rank])
    told = ""
    try:
        tried(config, engine, collate, memory=memory)
    except UserError as error:
        told = str(error)
    engine.close()
    return told, memory.peaks


def test_one_rank_that_lacks_memory_is_told_by_all(rank_pools: dict[int, RankPool]) -> None:
    pool = rank_pools[2]
    measured = pool.run(_asked_for_32, [GIB, GIB], [[], []])
    assert [told for told, _ in measured] == ["", ""]
    peaks = [each for _, each in measured]
    one, two = map(max, zip(*peaks, strict=True))
    little = one + 10 * (two - one)
    (told, _), (other, _) = pool.run(_asked_for_32, [GIB, little], peaks)
    assert told == other
    assert told.startswith("batch.micro_sequences: a microbatch of 32 does not fit (0.0 GiB by")
    assert "; layout.recompute=selective takes less; so does zero.stage=3" in told
    assert ": 8 does;" in told


def _lack(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _out_of_memory() -> str:
    config = _config("batch={sequences: 64, micro_sequences: 32, try_first: true}")
    engine, collate = _prepared(config)
    engine.module.get_submodule("decoder.blocks.0").register_forward_pre_hook(_lack)
    with pytest.raises(MemoryExceededError) as refusal:
        tried(config, engine, collate)
    engine.close()
    return str(refusal.value)


def test_what_a_gpu_raises_is_told(rank_pools: dict[int, RankPool]) -> None:
    [told] = rank_pools[1].run(_out_of_memory)
    assert "a microbatch of 32 does not fit: try batch.micro_sequences=16" in told
