"""What is asked of one GPU, beside what was found there."""

from collections.abc import Sequence
from typing import Any, Final

from parallel.costs import model_work
from tools.plan.task import task_of
from train.config import RunConfig
from train.config_files import load

CAUSAL: Final = "spans.text.ratio=0"

MFU: Final = {
    ("H100", "all on"): 0.52,
    ("H200", "all on"): 0.57,
    ("H200", "all on, causal"): 0.58,
}
"""Of a device and a case, in steps of several microbatches."""


def targets(
    found: dict[str, Any], launch_seconds: Sequence[float], *, files: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of what was found, None if it was not measured, and what it should be.

    Args:
        found: what stands in gpu.json.
        launch_seconds: to the first step, with an empty compile cache and with a filled one.
        files: of the configuration that was measured.
    """
    rows = [row for row in found["rows"] if row["ms"] and not row["levers_off"]]

    def measured(case: str, *, is_one: bool = True) -> dict[str, Any]:
        fitting = (r for r in rows if r["case"] == case and (r["microbatches"] == 1) is is_one)
        return next(fitting, {})

    def ratio(one: Any, other: Any) -> float | None:
        return one / other if one and other else None

    def over(case: str, base: str = "all on", key: str = "ms") -> float | None:
        """Of steps of the same size."""
        one, other = measured(case), measured(base)
        is_fair = one.get("sequences") == other.get("sequences")
        return ratio(one.get(key), other.get(key)) if is_fair else None

    device, bench = found["device"] or "", measured("all on").get("tokens_per_second")
    cold, warm = [*launch_seconds, None, None][:2]
    least = [
        *(
            (f"MFU, {case}", measured(case, is_one=False).get("mfu"), wanted)
            for (name, case), wanted in MFU.items()
            if name in device
        ),
        ("python -m train over the bench, tokens/s",
         ratio(found["train_tokens_per_second"], bench), 0.98),
        ("fp8 over bf16, tokens/s", over("all on, fp8", key="tokens_per_second"), 1.2),
    ]  # fmt: skip
    most = [
        ("semi-causal over causal, time, over their operations",
         ratio(over("all on", "all on, causal"), more_operations(files)), 1.05),
        ("documents apart over together, time", over("all on, documents apart"), 1.0),
        ("ZeRO-3 over ZeRO-1, time", over("all on, ZeRO-3"), 1.1),
        ("launch to first step, compiling, s", cold, 60),
        ("launch to first step, compiled before, s", warm, 25),
    ]  # fmt: skip
    return [
        {
            "what": what,
            "found": value,
            "at_least": wanted if is_least else None,
            "at_most": None if is_least else wanted,
            "is_met": None if value is None else (value >= wanted) is is_least or value == wanted,
        }
        for is_least, rules in ((True, least), (False, most))
        for what, value, wanted in rules
    ]


def more_operations(files: Sequence[str]) -> float:
    """Operations of a semi-causal step over those of a causal one."""

    def operations(*overrides: str) -> float:
        task = task_of(load(RunConfig, [*files, *overrides]), kind="h100")
        work = model_work(task.model, task.load(1))
        layers = task.model.decoder.num_layers * work.layer.training
        return layers + work.head.training + work.first

    return operations() / operations(CAUSAL)
