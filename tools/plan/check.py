"""`python -m tools.plan check`: predictions beside what real runs on this machine take.

Trains a model of more than 100 million parameters for a few steps in each of several layouts, on
ranks of one thread each, and writes predicted and measured memory and time to `out/plan.json`.
Calibrate first, and run nothing else meanwhile.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from model.semicausal import ModelConfig, parameter_counts
from parallel.mesh import LayoutConfig
from parallel.zero.config import Precision
from tools.plan.__main__ import machine_for
from tools.plan.from_config import record
from tools.plan.machines import GIB, Machine, require_writable
from tools.plan.measure import Observation, measured_task, observe
from tools.plan.memory import rank_memory
from tools.plan.search import one_plan, with_best_split
from tools.plan.table import console, layout_words
from tools.plan.task import Candidate, Task

MEMORY_TOLERANCE = 0.10
TIME_TOLERANCE = 0.20
TIMEOUT_SECONDS = 900.0
SPAN_SHARE = 0.25
NEIGHBOURS = (-2, 0, 2)
"""Layers moved from the last stage to the first, for splits beside the chosen one."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is trained, and how often.

    Attributes:
        model: what is trained.
        sequence_tokens: S.
        sequences: of a global batch.
        timed_steps: of each trial.
        rounds: times that each split is looked at, in turn with the others.
    """

    model: ModelConfig
    sequence_tokens: int
    sequences: int
    timed_steps: int
    rounds: int


def _model(*, decoder: dict[str, int], encoder: dict[str, int]) -> ModelConfig:
    decoder |= {"feed_forward": 4 * decoder["width"]}
    encoder |= {"feed_forward": 4 * encoder["width"], "max_tokens": 130}
    return ModelConfig.model_validate(
        {"decoder": decoder, "encoders": {"text": {"encoder": encoder | {"dropout": 0.0}}}}
    )


FULL = Effort(
    model=_model(
        decoder={
            "vocabulary": 16384, "width": 640, "num_layers": 12, "heads": 10, "max_tokens": 512
        },
        encoder={"width": 512, "num_layers": 12, "heads": 8},
    ),
    sequence_tokens=512,
    sequences=4,
    timed_steps=3,
    rounds=2,
)  # fmt: skip

TINY = Effort(
    model=_model(
        decoder={"vocabulary": 512, "width": 64, "num_layers": 6, "heads": 2, "max_tokens": 64},
        encoder={"width": 32, "num_layers": 2, "heads": 2},
    ),
    sequence_tokens=64,
    sequences=4,
    timed_steps=1,
    rounds=1,
)
"""Tries the plumbing; its numbers mean nothing."""

Trial = tuple[Task, Candidate]


def main(arguments: list[str]) -> int:
    """Check every layout; the exit status says whether all bars hold.

    Raises:
        UserError: the rates cannot be read, or the record not be written.
        RanksFailed: a rank failed or hung.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.plan check", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/plan.json"))
    parser.add_argument("--calibration", type=Path, help="measured rates; default: those kept")
    parser.add_argument("--tiny", action="store_true", help="only try that it runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the layouts")
    options = parser.parse_args(arguments)
    require_writable(options.out)
    machine, source = machine_for("cpu", options.calibration)
    effort = TINY if options.tiny else FULL
    trials = layouts(effort, machine)
    if unknown := set(options.only or ()) - set(trials):
        parser.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(trials)}")
    out = console()
    rows: list[dict[str, Any]] = []
    splits: list[dict[str, Any]] = []

    def write() -> None:
        document = {
            "machine": machine.device,
            "rates": source,
            "load_average": os.getloadavg()[0],
            "parameters": parameter_counts(effort.model),
            "layouts": rows,
            "splits": splits,
            "summary": summary(rows, splits),
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=2) + "\n")

    for name in track(options.only or trials, "layouts", console=Console(stderr=True)):
        rows.append(row_of(name, trials[name], machine, observe_checked(trials[name], effort)))
        write()  # what was measured for minutes is not lost to the next one's failure
    if options.only is None:
        splits += compare_splits(effort, machine)
        write()
    _show(out, rows, splits)
    out.print(f"written to {options.out}", markup=False)
    return 0 if options.tiny or summary(rows, splits)["passed"] else 1


def layouts(effort: Effort, machine: Machine) -> dict[str, Trial]:
    """The layouts that are checked, by name."""
    return {
        "alone ZeRO-0": _trial(effort),
        "alone bf16": _trial(effort, stage=1, precision="bf16"),
        "alone full recomputation": _trial(effort, recompute="full"),
        "data 2 ZeRO-1": _trial(effort, ranks=2, stage=1),
        "data 2 ZeRO-2": _trial(effort, ranks=2, stage=2),
        "data 2 ZeRO-3": _trial(effort, ranks=2, stage=3),
        "data 2 bf16 ZeRO-1": _trial(effort, ranks=2, stage=1, precision="bf16"),
        "tensor 2": _trial(effort, ranks=2, tensor=2),
        "tensor 2 sequence parallel": _trial(effort, ranks=2, tensor=2, sequence_parallel=True),
        "pipeline 2": _two_stages(effort, chosen_split(effort, machine)),
    }


def chosen_split(effort: Effort, machine: Machine) -> tuple[int, ...]:
    """What the planner chooses for two stages."""
    return with_best_split(*_two_stages(effort, (1, 1)), machine).split


def compare_splits(effort: Effort, machine: Machine) -> list[dict[str, Any]]:
    """Two stages with the chosen split and its neighbours, in turn."""
    chosen = chosen_split(effort, machine)
    splits = [(chosen[0] + n, chosen[1] - n) for n in NEIGHBOURS]
    trials = {split: _two_stages(effort, split) for split in splits if min(split) >= 1}
    seconds: dict[tuple[int, ...], list[float]] = {split: [] for split in trials}
    for _ in range(effort.rounds):
        for split, trial in trials.items():
            seconds[split] += observe_checked(trial, effort, metered_memory=False).step_seconds
    return [
        {
            "split": list(split),
            "chosen": split == chosen,
            "predicted_seconds": predicted(trial, machine)["seconds"]["total"],
            "measured_seconds": statistics.median(seconds[split]),
            "steps": seconds[split],
        }
        for split, trial in trials.items()
    ]


def observe_checked(trial: Trial, effort: Effort, *, metered_memory: bool = True) -> Observation:
    """Memory and time of one trial."""
    return observe(
        *trial,
        timed_steps=effort.timed_steps,
        metered_memory=metered_memory,
        timeout_seconds=TIMEOUT_SECONDS,
    )


def row_of(name: str, trial: Trial, machine: Machine, seen: Observation) -> dict[str, Any]:
    """Predicted and measured, for the record."""
    task, candidate = trial
    tensor = candidate.layout.tensor
    memories = [
        rank_memory(task, candidate, machine, pipeline_rank=stage)
        for stage in range(candidate.layout.pipeline)
    ]
    # Ranks are numbered with tensor fastest, then pipeline; data ranks are alike.
    by_stage = [
        max(seen.peak_bytes[stage * tensor : (stage + 1) * tensor])
        for stage in range(candidate.layout.pipeline)
    ]
    memory = [
        {
            "stage": stage,
            "predicted_bytes": memory.total,
            "predicted_by_kind": asdict(memory),
            "measured_bytes": measured,
            "error": memory.total / measured - 1,
        }
        for stage, (memory, measured) in enumerate(zip(memories, by_stage, strict=True))
    ]
    expected = predicted(trial, machine)
    return {
        "name": name,
        "layout": layout_words(candidate),
        "precision": task.precision,
        "predicted": expected,
        "memory": memory,
        "measured_seconds": seen.seconds,
        "steps": list(seen.step_seconds),
        "time_error": expected["seconds"]["total"] / seen.seconds - 1,
    }


def predicted(trial: Trial, machine: Machine) -> dict[str, Any]:
    """Memory and time by arithmetic."""
    return record(one_plan(*trial, machine))


def summary(rows: Sequence[dict[str, Any]], splits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The bars, and whether they hold."""
    memory = max((abs(m["error"]) for row in rows for m in row["memory"]), default=0.0)
    times = max((abs(row["time_error"]) for row in rows), default=0.0)
    best = min(splits, key=lambda s: s["measured_seconds"], default=None)
    chosen_is_best = best is None or best["chosen"]
    return {
        "largest_memory_error": memory,
        "memory_tolerance": MEMORY_TOLERANCE,
        "largest_time_error": times,
        "time_tolerance": TIME_TOLERANCE,
        "chosen_split_is_measured_best": chosen_is_best,
        "passed": memory <= MEMORY_TOLERANCE and times <= TIME_TOLERANCE and chosen_is_best,
    }


def _trial(
    effort: Effort, *, ranks: int = 1, stage: int = 0, precision: Precision = "fp32", **layout: Any
) -> Trial:
    spread = LayoutConfig.model_validate({"split": [effort.model.decoder.num_layers]} | layout)
    copies = ranks // spread.model_ranks
    task = measured_task(
        effort.model,
        precision=precision,
        sequences=effort.sequences,
        sequence_tokens=effort.sequence_tokens,
        span_share=SPAN_SHARE,
    )
    candidate = Candidate(
        layout=spread,
        data=copies,
        stage=stage,
        micro_sequences=1,
        num_microbatches=effort.sequences // copies,
    )
    return task, candidate


def _two_stages(effort: Effort, split: Sequence[int]) -> Trial:
    return _trial(effort, ranks=2, pipeline=2, split=list(split))


def _show(out: Console, rows: Sequence[dict[str, Any]], splits: Sequence[dict[str, Any]]) -> None:
    table = Table(title="predicted and measured", title_justify="left")
    for name in ("layout", "stage", "GiB predicted", "measured", "error"):
        table.add_column(name, justify="left" if name == "layout" else "right")
    for name in ("step s predicted", "measured", "error"):
        table.add_column(name, justify="right")
    for row in rows:
        times = (
            f"{row['predicted']['seconds']['total']:.2f}",
            f"{row['measured_seconds']:.2f}",
            f"{row['time_error']:+.1%}",
        )
        for number, memory in enumerate(row["memory"]):
            table.add_row(
                row["name"] if number == 0 else "",
                str(memory["stage"]),
                f"{memory['predicted_bytes'] / GIB:.3f}",
                f"{memory['measured_bytes'] / GIB:.3f}",
                f"{memory['error']:+.1%}",
                *(times if number == 0 else ("", "", "")),
            )
    for split in splits:
        table.add_row(
            f"split {split['split']}" + (", chosen" if split["chosen"] else ""),
            *("", "", "", ""),
            f"{split['predicted_seconds']:.2f}",
            f"{split['measured_seconds']:.2f}",
            f"{split['predicted_seconds'] / split['measured_seconds'] - 1:+.1%}",
        )
    out.print(table)
