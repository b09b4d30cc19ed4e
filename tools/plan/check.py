"""`python -m tools.plan check`: predictions beside what real runs on this machine take.

Trains a model of more than 100 million parameters for a few steps in each of several layouts, on
ranks of one thread each, and writes predicted and measured memory and time to `out/plan.json`.
Calibrate first, and run nothing else meanwhile.
"""

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from model.semicausal import ModelConfig, parameter_counts
from parallel.mesh import LayoutConfig
from parallel.zero.config import Precision
from tools.arguments import Parser, local_path, output_file
from tools.command import write_json
from tools.plan.machines import GIB, Machine, machine_for
from tools.plan.measure import Observation, measured_task, observe
from tools.plan.memory import rank_memory
from tools.plan.search import one_plan, with_best_split
from tools.plan.table import console, layout_words
from tools.plan.task import Candidate, Task

MEMORY_TOLERANCE = 0.10
TIME_TOLERANCE = 0.20
TIMED_STEPS = 3
SPLIT_ROUNDS = 2
"""Times that each split is looked at, in turn with the others."""
NEIGHBOURS = (-2, 0, 2)
"""Layers moved from the last stage to the first, for splits beside the chosen one."""


def _shape(width: int, num_layers: int, heads: int) -> dict[str, Any]:
    return {
        "width": width, "num_layers": num_layers, "heads": heads, "feed_forward": 4 * width
    }  # fmt: skip


def _task(
    decoder: dict[str, Any], encoder: dict[str, Any], *, vocabulary: int, sequence_tokens: int
) -> Task:
    decoder |= {"vocabulary": vocabulary, "max_tokens": sequence_tokens}
    encoder |= {"max_tokens": 130, "dropout": 0.0}
    model = {"decoder": decoder, "encoders": {"text": {"encoder": encoder}}}
    return measured_task(
        ModelConfig.model_validate(model),
        sequences=4,
        sequence_tokens=sequence_tokens,
        span_share=0.25,
    )


FULL = _task(_shape(640, 12, 10), _shape(512, 12, 8), vocabulary=16384, sequence_tokens=512)
TINY = _task(_shape(64, 6, 2), _shape(32, 2, 2), vocabulary=512, sequence_tokens=64)
"""Tries the plumbing; its numbers mean nothing."""

Trial = tuple[Task, Candidate]


def main(arguments: list[str]) -> int:
    """Check every layout; the exit status says whether all bars hold.

    Raises:
        UserError: the rates cannot be read, or the record not be written.
        RanksFailed: a rank failed or hung.
    """
    parser = Parser(prog="python -m tools.plan check", description=__doc__)
    parser.add_argument("--out", type=output_file, default="out/plan.json")
    parser.add_argument(
        "--calibration", type=local_path, help="measured rates; default: those kept"
    )
    parser.add_argument("--tiny", action="store_true", help="only try that it runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the layouts")
    options = parser.parse_args(arguments)
    machine, source = machine_for("cpu", options.calibration)
    task = TINY if options.tiny else FULL
    trials = layouts(task, machine)
    if unknown := set(options.only or ()) - set(trials):
        parser.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(trials)}")
    rows: list[dict[str, Any]] = []
    splits: list[dict[str, Any]] = []

    def write() -> None:
        document = {
            "machine": machine.device,
            "rates": source,
            "load_average": os.getloadavg()[0],
            "parameters": parameter_counts(task.model),
            "layouts": rows,
            "splits": splits,
            "summary": summary(rows, splits),
        }
        write_json(options.out, document)

    for name in track(options.only or trials, "layouts", console=Console(stderr=True)):
        seen = observe(*trials[name], timed_steps=TIMED_STEPS)
        rows.append({"name": name, **row_of(*trials[name], machine, seen)})
        write()  # what was measured for minutes is not lost to the next one's failure
    if options.only is None:
        splits += compare_splits(task, machine)
        write()
    out = console()
    _show(out, rows, splits)
    out.print(f"written to {options.out}", markup=False)
    return 0 if options.tiny or summary(rows, splits)["passed"] else 1


def layouts(task: Task, machine: Machine) -> dict[str, Trial]:
    """The layouts that are checked, by name."""
    return {
        "alone ZeRO-0": _trial(task),
        "alone bf16": _trial(task, stage=1, precision="bf16"),
        "alone full recomputation": _trial(task, recompute="full"),
        "data 2 ZeRO-1": _trial(task, ranks=2, stage=1),
        "data 2 ZeRO-2": _trial(task, ranks=2, stage=2),
        "data 2 ZeRO-3": _trial(task, ranks=2, stage=3),
        "data 2 bf16 ZeRO-1": _trial(task, ranks=2, stage=1, precision="bf16"),
        "tensor 2": _trial(task, ranks=2, tensor=2),
        "tensor 2 sequence parallel": _trial(task, ranks=2, tensor=2, sequence_parallel=True),
        "pipeline 2": _two_stages(task, chosen_split(task, machine)),
    }


def chosen_split(task: Task, machine: Machine) -> tuple[int, ...]:
    """What the planner chooses for two stages."""
    return with_best_split(*_two_stages(task, (1, 1)), machine).split


def compare_splits(task: Task, machine: Machine) -> list[dict[str, Any]]:
    """Two stages with the chosen split and its neighbours, in turn."""
    first, last = chosen = chosen_split(task, machine)
    splits = [(first + n, last - n) for n in NEIGHBOURS]
    trials = {split: _two_stages(task, split) for split in splits if min(split) >= 1}
    seconds: dict[tuple[int, ...], list[float]] = {split: [] for split in trials}
    for _ in range(SPLIT_ROUNDS):
        for split, trial in trials.items():
            seen = observe(*trial, timed_steps=TIMED_STEPS, metered_memory=False)
            seconds[split] += seen.step_seconds
    return [
        {
            "split": list(split),
            "chosen": split == chosen,
            "predicted_seconds": one_plan(*trial, machine).seconds.total,
            "measured_seconds": statistics.median(seconds[split]),
            "steps": seconds[split],
        }
        for split, trial in trials.items()
    ]


def row_of(task: Task, candidate: Candidate, machine: Machine, seen: Observation) -> dict[str, Any]:
    """Predicted and measured, for the record."""
    tensor = candidate.layout.tensor
    stages: list[dict[str, Any]] = []
    for stage in range(candidate.layout.pipeline):
        memory = rank_memory(task, candidate, machine, pipeline_rank=stage)
        # Ranks are numbered with tensor fastest, then pipeline; data ranks are alike.
        measured = max(seen.peak_bytes[stage * tensor : (stage + 1) * tensor])
        stages.append(
            {
                "stage": stage,
                "predicted_bytes": memory.total,
                "predicted_by_kind": asdict(memory),
                "measured_bytes": measured,
                "error": memory.total / measured - 1,
            }
        )
    expected = one_plan(task, candidate, machine)
    return {
        "layout": layout_words(candidate),
        "precision": task.precision,
        "predicted": expected.record(),
        "memory": stages,
        "measured_seconds": seen.seconds,
        "steps": seen.step_seconds,
        "time_error": expected.seconds.total / seen.seconds - 1,
    }


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
    task: Task, *, ranks: int = 1, stage: int = 0, precision: Precision = "fp32", **layout: Any
) -> Trial:
    spread = LayoutConfig.model_validate({"split": [task.model.decoder.num_layers]} | layout)
    copies = ranks // spread.model_ranks
    candidate = Candidate(
        layout=spread,
        data=copies,
        stage=stage,
        micro_sequences=1,
        num_microbatches=task.sequences // copies,
    )
    return replace(task, precision=precision), candidate


def _two_stages(task: Task, split: Sequence[int]) -> Trial:
    return _trial(task, ranks=2, pipeline=2, split=list(split))


def _show(out: Console, rows: Sequence[dict[str, Any]], splits: Sequence[dict[str, Any]]) -> None:
    table = Table("layout", title="predicted and measured", title_justify="left")
    both = ("measured", "error")
    for name in ("stage", "GiB predicted", *both, "step s predicted", *both):
        table.add_column(name, justify="right")
    for row in rows:
        names = [row["name"], *[""] * len(row["memory"])]
        times = _times(row["predicted"]["seconds"]["total"], row["measured_seconds"])
        for name, memory in zip(names, row["memory"], strict=False):
            table.add_row(
                name,
                str(memory["stage"]),
                f"{memory['predicted_bytes'] / GIB:.3f}",
                f"{memory['measured_bytes'] / GIB:.3f}",
                f"{memory['error']:+.1%}",
                *(times if name else ()),
            )
    for split in splits:
        name = f"split {split['split']}" + (", chosen" if split["chosen"] else "")
        times = _times(split["predicted_seconds"], split["measured_seconds"])
        table.add_row(name, *[""] * 4, *times)
    out.print(table)


def _times(predicted: float, measured: float) -> tuple[str, str, str]:
    return f"{predicted:.2f}", f"{measured:.2f}", f"{predicted / measured - 1:+.1%}"
