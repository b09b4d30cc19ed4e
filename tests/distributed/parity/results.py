"""Cells run and compared with what they should equal."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import Tensor

from tests.distributed.parity.tuned import peft_difference, saved_difference, saved_on_ranks
from tests.distributed.semicausal_runs import (
    MODEL,
    Cell,
    History,
    Part,
    assembled,
    on_ranks,
    oracle,
    trained_on_ranks,
)
from tests.distributed.tunings import TUNINGS
from tools.ranks import RankPool, RanksFailed

TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-4
PEFT_TOLERANCE = 1e-4
BF16_LOSS_TOLERANCE = 2**-11
BF16_NORM_TOLERANCE = 2**-6
"""Rounded up from how far bf16 itself is from fp32 in one process: 1.2e-4 and 1.3e-2. Splitting a
sum moves its rounding, and may do no more harm than rounding did."""

BF16_ADAPTER_TOLERANCE = 2**-4
"""Of one tensor: B is the sum of five small steps and begins at zero. In one process gradients of
a B lie 2e-2 to 4e-2 from fp32's; layouts were up to 2.7e-2 apart."""

Against = Literal["one process", "one in bf16", "itself again"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a cell.

    Attributes:
        reason: why it was refused or has failed.
        loss_difference: largest relative one over the steps; so is that of the gradient norm.
        weight_difference: largest over the tensors, of cells that are trained for longer.
        adapter_difference: largest over the saved tensors, of cells that train a part of the model.
        peft_logit_difference: between plain peft with the saved adapter and this program.
    """

    cell: Cell
    status: Literal["run", "refused", "failed"]
    reason: str | None = None
    loss_difference: float | None = None
    gradient_norm_difference: float | None = None
    weight_difference: float | None = None
    adapter_difference: float | None = None
    peft_logit_difference: float | None = None
    seconds: float = 0.0

    def fault(self) -> str | None:
        """What is wrong with this result, None if nothing is."""
        match self.status:
            case "refused":
                return None
            case "failed":
                return f"failed: {self.reason}"
            case "run":
                loss, norm = tolerances(self.cell)
                allowed = {
                    "loss": loss,
                    "gradient_norm": norm,
                    "weight": WEIGHT_TOLERANCE,
                    "adapter": TOLERANCE
                    if self.cell.precision == "fp32"
                    else BF16_ADAPTER_TOLERANCE,
                    "peft_logit": PEFT_TOLERANCE,
                }
                beyond = [
                    f"{name} differs by {value:.1e} of {limit:.1e} allowed"
                    for name, limit in allowed.items()
                    if (value := getattr(self, f"{name}_difference")) is not None
                    and not value <= limit
                ]
                return "; ".join(beyond) or None

    def row(self) -> dict[str, Any]:
        """As it stands in out/parity.json."""
        cell = self.cell
        return {
            "layout": cell.layout,
            "zero": cell.zero,
            "microbatches": cell.microbatches,
            "spans": cell.spans,
            "recompute": cell.recompute,
            "loss_difference": self.loss_difference,
            "gradient_norm_difference": self.gradient_norm_difference,
            "status": self.status,
            "reason": self.reason,
            "tied": cell.tied,
            "frozen": cell.frozen,
            "norm": cell.norm,
            "precision": cell.precision,
            "dropout": cell.dropout,
            "attend": cell.attend,
            "compiled": cell.compiled,
            "decoder": cell.decoder,
            "items": cell.items,
            "dealt": cell.dealt,
            "steps": cell.steps,
            "weight_difference": self.weight_difference,
            "tuned": cell.tuned,
            "adapter_difference": self.adapter_difference,
            "peft_logit_difference": self.peft_logit_difference,
            "against": against(cell),
            "tolerances": tolerances(cell),
            "seconds": round(self.seconds, 2),
        }


def against(cell: Cell) -> Against:
    """What a cell is compared with."""
    if cell.dropout:
        return "itself again"
    return "one process" if cell.precision == "fp32" else "one in bf16"


def tolerances(cell: Cell) -> tuple[float, float]:
    """Largest relative difference of loss and of gradient norm."""
    match against(cell):
        case "one process":
            return TOLERANCE, TOLERANCE
        case "one in bf16":
            return BF16_LOSS_TOLERANCE, BF16_NORM_TOLERANCE
        case "itself again":
            return 0.0, 0.0


def compared(
    pool: RankPool, cell: Cell, references: Mapping[Cell, tuple[History, list[Part]]]
) -> Result:
    """Runs a cell.

    Args:
        pool: as many ranks as the cell needs.
        cell: what to run.
        references: by what a cell does in one process, what that gives in bf16, and its weights.
    """
    started = time.monotonic()
    refusal = cell.fault()
    if refusal is not None:
        return Result(cell=cell, status="refused", reason=refusal)
    try:
        weight_difference = adapter_difference = peft_logit_difference = None
        if cell.tuned:
            with TemporaryDirectory(prefix="tuned-") as name:
                histories = pool.run(saved_on_ranks, cell, name)
                if against(cell) == "one in bf16":
                    expected, parts = references[cell.alone()]
                    weights = assembled([parts])
                else:
                    expected, weights = oracle(cell)
                adapter_difference = saved_difference(cell, Path(name), weights)
                # In fp32: in bf16 what was trained is too little to see in logits.
                if TUNINGS[cell.tuned].lora is not None and cell.precision == "fp32":
                    peft_logit_difference = peft_difference(cell, Path(name))
        elif cell.steps > 5:
            answers = pool.run(trained_on_ranks, cell)
            histories = [history for history, _ in answers]
            expected, weights = oracle(cell)
            trained = assembled([parts for _, parts in answers])
            weight_difference = largest_weight_difference(trained, weights)
        else:
            histories = pool.run(on_ranks, cell)
            match against(cell):
                case "one process":
                    expected, _ = oracle(cell)
                case "one in bf16":
                    expected, _ = references[cell.alone()]
                case "itself again":
                    expected = pool.run(on_ranks, cell)[0]
    except (RanksFailed, AssertionError) as error:
        return Result(cell=cell, status="failed", reason=str(error))
    if any(history != histories[0] for history in histories):
        return Result(cell=cell, status="failed", reason=f"ranks disagree: {histories}")
    loss, norm = differences(histories[0], expected)
    return Result(
        cell=cell,
        status="run",
        loss_difference=loss,
        gradient_norm_difference=norm,
        weight_difference=weight_difference,
        adapter_difference=adapter_difference,
        peft_logit_difference=peft_logit_difference,
        seconds=time.monotonic() - started,
    )


def differences(history: History, expected: History) -> tuple[float, float]:
    """Largest relative difference of losses and of gradient norms; infinite if one is NaN."""
    loss, norm = (
        max(
            _relative(got[index], wanted[index])
            for got, wanted in zip(history, expected, strict=True)
        )
        for index in (0, 1)
    )
    return loss, norm


def _relative(value: float, expected: float) -> float:
    difference = abs(value - expected) / abs(expected)
    return math.inf if math.isnan(difference) else difference


def largest_weight_difference(
    trained: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> float:
    """Largest ||a - b|| / ||b|| over the tensors, but for key biases.

    The gradient of a key bias is nil but for rounding, which Adam blows up to its full step.
    """
    assert set(trained) == set(expected), set(trained) ^ set(expected)
    return max(
        float((_settled(name, trained[name]) - b).norm() / b.norm())
        for name, b in ((name, _settled(name, weight)) for name, weight in expected.items())
    )


def _settled(name: str, weight: Tensor) -> Tensor:
    if not name.endswith("qkv.bias"):
        return weight.double()
    part = MODEL["decoder"] if name.startswith("decoder") else MODEL["encoders"]["text"]["encoder"]
    return weight.double().view(part["heads"], 3, -1)[:, [0, 2]]


def problems(planned: Sequence[Cell], results: Sequence[Result]) -> list[str]:
    """What is wrong with the table: cells that failed, and planned ones that were not run."""
    faults = [f"{result.cell}: {fault}" for result in results if (fault := result.fault())]
    done = {result.cell for result in results}
    missing = [cell for cell in planned if cell not in done]
    if missing:
        faults.append(f"{len(missing)} planned cells were not run, such as {missing[0]}")
    return faults
