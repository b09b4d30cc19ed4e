"""The part of `python -m tools.evaluate` that goes through tasks."""

import argparse
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from parallel.launch import World
from parallel.mesh import LayoutConfig
from tools.progress import now_and_then
from train.checkpoint.directory import CONFIG_NAME, resolve
from train.errors import UserError
from train.loading import load_engine
from train.run_directory import RunDirectory
from train.scores.evaluation import Answered, TaskScore
from train.scores.going import Setting, scores_of
from train.scores.interval import Estimate
from train.scores.opening import Opened, open_model
from train.scores.page import (
    ranged,
    read_predictions,
    table_row,
    write_page,
    write_predictions,
)
from train.storage.place import Place
from train.tasks.reader import TaskReader
from train.tasks.task import Task, load_tasks

ANSWERS = "answers.jsonl"
CONTROLS: Final[dict[str, dict[str, Any]]] = {
    "blind": {"is_blind": True},
    "shuffled": {"is_shuffled": True},
}
"""What a score must exceed to come from what rows show."""


def evaluate_tasks(
    options: argparse.Namespace, path: Place, layout: LayoutConfig, world: World
) -> dict[str, object]:
    """Scores of tasks, shown and left beside the run; every rank must call it.

    Args:
        options: of the command line.
        path: of the checkpoint.
        layout: how ranks share the model.
        world: this process among all.

    Raises:
        UserError: a task, a row or the model cannot be read; on all ranks.
    """
    tasks = load_tasks(options.tasks.split(","))
    setting = Setting(
        split=options.split,
        template=options.template,
        most_rows=options.rows,
        demonstrations=options.demonstrations,
        is_shuffled=options.shuffled,
        is_blind=options.blind,
        leaves_out_long=options.leave_out_long,
    )
    directory: Path = options.scores or _directory(path)
    baseline: dict[str, list[Answered]] = {}
    if options.baseline is not None:
        there = _predictions(options.baseline, setting)
        baseline = {task.name: read_predictions(there, task.name) for task in tasks}
    engine = load_engine(path, layout=layout, world=world)
    answers = directory / ANSWERS
    opened = open_model(path, engine, answers=answers, batch=options.batch)
    started = time.perf_counter()
    left = directory / path.name / setting.name
    controls: dict[str, list[TaskScore]] = {}
    with closing(opened.scorer):
        scores = _scores(opened, tasks, setting, left, is_main=world.is_main)
        for name, changed in CONTROLS.items() if options.controls else ():
            control = replace(setting, **changed)
            # Where rows show no item there is nothing that a blind model does not see.
            asked = [task for task in tasks if name != "blind" or TaskReader(task).has_media]
            there = directory / path.name / control.name
            if asked:
                controls[name] = _scores(opened, asked, control, there, is_main=world.is_main)
    if not world.is_main:
        return {}
    differences = {score.task: score.against(baseline[score.task]) for score in scores if baseline}
    above = {
        score.task: {
            name: (other, score.against(other.rows))
            for name, others in controls.items()
            for other in others
            if other.task == score.task
        }
        for score in scores
    }
    seconds = time.perf_counter() - started
    facts = [
        f"{path}: {setting.name}",
        f"{opened.scorer.computed:,} answers computed in {seconds:.1f} s, the others were there",
    ]
    facts += [
        f"{task}: {ranged(difference)} above {name}"
        for task, found in above.items()
        for name, (_, difference) in found.items()
    ]
    page = write_page(left, scores, title="Scores", facts=facts, differences=differences)
    _show(scores, differences, facts, page)
    return {
        "checkpoint": str(path),
        "setting": setting.name,
        "computed": opened.scorer.computed,
        "seconds": seconds,
        "tasks": [
            table_row(score, differences.get(score.task)) | _controls(above[score.task])
            for score in scores
        ],
    }


def _scores(
    opened: Opened, tasks: Sequence[Task], setting: Setting, left: Path, *, is_main: bool
) -> list[TaskScore]:
    """The scores in one setting, each told and its predictions left as soon as it is known."""
    console = Console(stderr=True)
    scores: list[TaskScore] = []
    which = f" ({setting.name})" if setting.is_blind or setting.is_shuffled else ""

    def line() -> str:
        task = tasks[min(len(scores), len(tasks) - 1)].name
        scorer = opened.scorer
        return f"{task}: {scorer.computed:,} of {scorer.to_compute:,} answers{which}"

    with now_and_then(console, line) if is_main else nullcontext():
        for score in scores_of(opened, tasks, setting):
            scores.append(score)
            write_predictions(left, score)
            name, found = score.first
            told = f"{score.task}: {name} {ranged(found)}, {len(scores)} of {len(tasks)} tasks"
            console.print(told + which, markup=False, highlight=False, soft_wrap=True)
    return scores


def _controls(found: dict[str, tuple[TaskScore, Estimate]]) -> dict[str, Any]:
    """What a task scores under each control, and by how much it is above that, in pairs."""
    told: dict[str, Any] = {}
    for name, (control, difference) in found.items():
        low, high = difference.interval or (None, None)
        told[name] = control.first[1].value
        told[f"above_{name}"] = {
            "difference": difference.value,
            "difference_low": low,
            "difference_high": high,
        }
    return told


def _directory(path: Place) -> Path:
    """Beside a run of this host."""
    if path.is_remote:
        raise UserError(f"{path} is no directory of this host: say with --scores where to keep")
    return RunDirectory(Path(str(path.parent.parent))).scores


def _predictions(baseline: Path, setting: Setting) -> Path:
    """Those in a directory, or of the last checkpoint of a run, asked in the same way."""
    if any(baseline.glob("*.jsonl")) and not (baseline / CONFIG_NAME).exists():
        return baseline
    path = resolve(Place.of(baseline))
    return _directory(path) / path.name / setting.name


def _show(
    scores: Sequence[TaskScore],
    differences: dict[str, Estimate],
    facts: Sequence[str],
    page: Path,
) -> None:
    console = Console()
    table = Table("task", "metric", "score [95 %]", "rows", "ties", "left out")
    table.columns[2].no_wrap = True
    if differences:
        table.add_column("against the baseline")
    for score in scores:
        name, found = score.first
        row = [score.task, name, ranged(found).replace("[", "\\[")]
        row += [f"{found.rows:,}", f"{score.ties:,}", f"{score.left_out:,}"]
        if score.task in differences:
            row.append(ranged(differences[score.task]).replace("[", "\\["))
        table.add_row(*row)
    console.print(table)
    for fact in (*facts, str(page)):
        console.print(fact, markup=False, highlight=False, soft_wrap=True)
