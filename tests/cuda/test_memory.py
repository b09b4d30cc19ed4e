"""What does not fit a GPU is told before the first step, and `auto` takes what does."""

from dataclasses import dataclass

import pytest
import torch

from parallel.launch import World, join
from parallel.memory import CudaMemory
from parallel.mesh import build_mesh
from tests.train.runs import TINY_RUN
from tools.ranks import RankPool
from train.build import build_collator, build_engine, build_model
from train.config import RunConfig
from train.config_files import load
from train.data.tokens import SpecialTokens
from train.errors import MemoryExceededError
from train.microbatch import tried

FREE_BYTES = 3 << 30
"""What is left of the device; a sequence takes about 150 MiB of it."""
SEQUENCES = 64
SIZES = {"width": 512, "num_layers": 8, "heads": 8, "feed_forward": 2048, "max_tokens": 1024}


@dataclass(frozen=True)
class BoastfulMemory(CudaMemory):
    """Says that there is room for everything."""

    def usable_bytes(self) -> float:
        return 1e15


def _config(micro_sequences: str) -> RunConfig:
    return load(
        RunConfig,
        [
            *(str(TINY_RUN), "data.corpus=x", "run_directory=x", "precision=bf16", "zero.stage=1"),
            *(f"model.decoder.{name}={size}" for name, size in SIZES.items()),
            *("data.sequence_tokens=1024", "model.encoders.text.encoder.max_tokens=130"),
            *(f"batch.sequences={SEQUENCES}", f"batch.micro_sequences={micro_sequences}"),
        ],
    )


def _told() -> dict[str, str]:
    world: World = join(timeout_seconds=60)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    filling = torch.empty(max(1, free - FREE_BYTES), dtype=torch.uint8, device=world.device)
    found: dict[str, str] = {}
    for name, size, memory in (
        ("auto", "auto", CudaMemory()),
        ("foretold", str(SEQUENCES), CudaMemory()),
        ("out of memory", str(SEQUENCES), BoastfulMemory()),
    ):
        config = _config(size)
        mesh = build_mesh(config.layout, world)
        engine = build_engine(config, build_model(config, mesh), mesh)
        collate = build_collator(config, SpecialTokens())
        try:
            found[name] = str(tried(config, engine, collate, memory=memory).micro_sequences)
        except MemoryExceededError as error:
            found[name] = str(error)
    assert filling.is_cuda
    return found


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    with RankPool(1, cuda=True) as pool:
        [found] = pool.run(_told, timeout_seconds=300)
    return found


def test_auto_takes_what_fits(told: dict[str, str]) -> None:
    assert 2 <= int(told["auto"]) < SEQUENCES


def test_what_does_not_fit_is_foretold(told: dict[str, str]) -> None:
    assert f"batch.micro_sequences: a microbatch of {SEQUENCES} does not fit" in told["foretold"]
    assert f": {told['auto']} does; " in told["foretold"]


def test_what_runs_out_of_memory_is_told_alike(told: dict[str, str]) -> None:
    assert f"a microbatch of {SEQUENCES} does not fit" in told["out of memory"]
