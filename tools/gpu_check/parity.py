"""Losses of a tiny model beside those that a CPU computed: the same numbers, whatever computes.

`parity.json` holds what a CPU finds at ZeRO-1 in eager mode; how training state is spread and what
is compiled must not show. `make golden` writes it anew.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch.distributed as dist

from model.adapters.tuning import tune
from parallel.engine import build_part
from parallel.launch import World, join
from parallel.mesh import build_mesh
from tools.random_batches import random_samples
from train.build import build_collator, build_engine
from train.config import RunConfig
from train.config_files import load
from train.data.tokens import SpecialTokens
from train.step import train_step

TINY: Final = Path(__file__).with_name("tiny.yaml")
GOLDEN: Final = Path(__file__).with_name("parity.json")
STEPS: Final = 5
MICROBATCHES: Final = 2
DOCUMENTS: Final = 3
"""In a sequence, where they are apart."""

TOLERANCES: Final = {"fp32": 1e-4, "bf16": 3e-3}
"""Of losses, over all steps, as shares of them. On a CPU bf16 is 0.0013 off fp32. Of the norm,
which is 0.08 off there, `NORM_TOLERANCE` times as much."""
NORM_TOLERANCE: Final = 30

MODES: Final[dict[str, tuple[str, ...]]] = {
    "semi-causal": (),
    "causal": ("spans.text.ratio=0",),
    "documents apart": ("data.pack=fit", "data.attend=within"),
    "LoRA": ("lora.rank=4", "lora.alpha=32", "init_from=nothing"),
}
FIRST: Final = next(iter(MODES))
PRECISIONS: Final = ("fp32", "bf16")
SPREAD: Final = {f"ZeRO-{stage}": (f"zero.stage={stage}",) for stage in (0, 1, 2, 3)}

History = list[tuple[float, float]]
"""Loss and gradient norm of each step."""


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One way to compute the steps, beside the CPU's.

    Attributes:
        case: mode, precision, ZeRO stage, and what is compiled.
        loss_off: largest difference of a loss, as a share of it; None if nothing was computed.
        norm_off: likewise of the gradient's norm.
        tolerance: what `loss_off` may be.
        is_equal: whether both are within their tolerances.
        fault: why nothing was computed; empty otherwise.
    """

    case: str
    loss_off: float | None
    norm_off: float | None
    tolerance: float
    is_equal: bool
    fault: str = ""


def steps_of(overrides: tuple[str, ...]) -> History:
    """Losses and norms of the tiny model's first steps; needs a process group of one rank."""
    config = load(RunConfig, [str(TINY), *overrides])
    mesh = build_mesh(config.layout, World.here())
    model = build_part(config.built_model, config.layout, mesh, seed=config.seed)
    tune(model, config.tuning, seed=config.seed)
    engine = build_engine(config, model, mesh)
    micro = config.batch.sequences // MICROBATCHES
    samples = random_samples(
        vocabulary=config.model.decoder.vocabulary,
        sequence_tokens=config.data.sequence_tokens,
        count=config.batch.sequences,  # the same in every step, so that the model learns much
        documents=DOCUMENTS if config.data.attend == "within" else 1,
    )
    collate = build_collator(config, SpecialTokens())
    batches = [
        collate([(0, sample) for sample in samples[i : i + micro]])
        for i in range(0, len(samples), micro)
    ]
    history: History = []
    for _ in range(STEPS):
        result = train_step(engine, batches)
        history.append((result.averages.loss, result.gradient_norm))
    engine.close()
    return history


class Way(NamedTuple):
    """One way to compute the steps: a mode, a precision, a ZeRO stage, compiled or not."""

    mode: str
    precision: str
    stage: str
    compiled: bool = False

    @property
    def case(self) -> str:
        """In words."""
        return f"{self.mode}, {self.precision}, {self.stage}" + ", compiled" * self.compiled

    @property
    def overrides(self) -> tuple[str, ...]:
        """Of the tiny model's configuration."""
        blocks = "blocks" if self.compiled else "none"
        chosen = (f"precision={self.precision}", f"model.compile={blocks}")
        return (*MODES[self.mode], *chosen, *SPREAD[self.stage])


def ways(*, is_brief: bool = False) -> Iterator[Way]:
    """All stages of the first mode, one of the others; nothing compiled.

    Args:
        is_brief: leave out stages, as other tests have them all on CPUs.
    """
    for mode in MODES:
        for precision in PRECISIONS:
            stages = list(SPREAD) if mode == FIRST and not is_brief else ["ZeRO-1"]
            stages += ["ZeRO-3"] * (mode == FIRST and is_brief)
            for stage in stages:
                yield Way(mode, precision, stage)


def compiled_ways() -> Iterator[Way]:
    """With compiled blocks, those first that a run takes where it is not told otherwise."""
    for mode in MODES:
        for precision in PRECISIONS[::-1]:
            for stage in ("ZeRO-1", "ZeRO-3") if mode == FIRST else ("ZeRO-1",):
                yield Way(mode, precision, stage, compiled=True)


def row(way: Way, golden: Mapping[str, Any]) -> ParityRow:
    """Compute one way and hold it against the CPU's."""
    tolerance = TOLERANCES[way.precision]
    try:
        found = steps_of(way.overrides)
    except Exception as error:  # one way that cannot be computed is a finding like the others
        return ParityRow(
            case=way.case,
            loss_off=None,
            norm_off=None,
            tolerance=tolerance,
            is_equal=False,
            fault=f"{type(error).__name__}: {error}",
        )
    loss_off, norm_off = differences(found, golden[f"{way.mode}, {way.precision}"])
    is_equal = loss_off <= tolerance and norm_off <= tolerance * NORM_TOLERANCE
    return ParityRow(
        case=way.case,
        loss_off=loss_off if math.isfinite(loss_off) else None,
        norm_off=norm_off if math.isfinite(norm_off) else None,
        tolerance=tolerance,
        is_equal=is_equal,
    )


def differences(found: History, wanted: History) -> tuple[float, float]:
    """Largest differences of a loss and of a norm, as shares of them."""
    loss_off, norm_off = (
        max(abs(a[part] - b[part]) / abs(b[part]) for a, b in zip(found, wanted, strict=True))
        for part in (0, 1)
    )
    return loss_off, norm_off


def rows(chosen: list[Way]) -> list[dict[str, Any]]:
    """The rows of these ways; joins a process group of one rank, if none was joined."""
    if not dist.is_initialized():
        join(timeout_seconds=60)
    golden = json.loads(GOLDEN.read_text())
    return [asdict(row(way, golden)) for way in chosen]


def references(modes: Iterable[str] = tuple(MODES)) -> dict[str, History]:
    """What `parity.json` holds of modes, computed here; joins a process group of one rank."""
    join(timeout_seconds=60)
    return {
        f"{mode}, {precision}": steps_of(Way(mode, precision, "ZeRO-1").overrides)
        for mode in modes
        for precision in PRECISIONS
    }


def dumped(found: Mapping[str, History]) -> str:
    """`parity.json`, a line for each mode and precision."""
    lines = (
        f"  {json.dumps(name)}: {[[round(loss, 7), round(norm, 7)] for loss, norm in history]}"
        for name, history in found.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"
