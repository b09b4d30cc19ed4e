"""Scores of each arm, seed and protocol, and by how much arms differ."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Final

import numpy as np

from tools.comparison.jobs import Asked, Jobs
from tools.comparison.plan import IN_CONTEXT
from tools.tasks.majority import Majority
from train.errors import DataError
from train.scores.evaluation import Answered
from train.scores.interval import Estimate, difference, estimate
from train.scores.metric import Floats, metric
from train.scores.page import read_predictions
from train.tasks.reader import TaskReader
from train.tasks.task import Task, load_tasks

ALL: Final = "all"
"""The mean over all tasks, beside those over clusters."""

Key = tuple[int, str]
"""A row of a task: number of its template, and its id."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What was asked of all arms in one way.

    Attributes:
        name: such as multitask.
        demonstrations: before each row.
        tasks: that were asked.
        answers: by arm and seed, of each task, its rows; the same ones of all.
        majority: of a task, as a template asks it.
    """

    name: str
    demonstrations: int
    tasks: list[Task]
    answers: Mapping[tuple[str, int], Mapping[str, Mapping[Key, Answered]]]
    majority: Callable[[Task, int], Majority]

    @cached_property
    def clusters(self) -> dict[str, list[Task]]:
        """Tasks by cluster; all of them where there are several clusters."""
        found: dict[str, list[Task]] = {}
        for task in self.tasks:
            found.setdefault(task.cluster, []).append(task)
        return found | ({ALL: self.tasks} if len(self.tasks) > 1 else {})

    def keys(self, task: Task) -> list[Key]:
        """The rows that all arms and seeds have answered.

        Raises:
            DataError: there are none.
        """
        rows = [answers[task.name] for answers in self.answers.values()]
        found = [key for key in rows[0] if all(key in each for each in rows)]
        if not found:
            raise DataError(f"{self.name}: no row of {task.name} was answered by all arms")
        return found

    def counts(self, arm: str, seed: int, task: Task) -> Floats:
        """[rows, k] what counts of each, in the order of `keys`."""
        rows, name = self.answers[arm, seed][task.name], task.metrics[0]
        return np.array([rows[key].counts[name] for key in self.keys(task)], dtype=np.float64)

    def groups(self, task: Task) -> list[str]:
        """Which rows belong together."""
        rows = next(iter(self.answers.values()))[task.name]
        return [rows[key].group for key in self.keys(task)]

    def score(self, arm: str, seed: int, task: Task) -> Estimate:
        """Of one model."""
        counted = metric(task.metrics[0])
        return estimate(counted, self.counts(arm, seed, task), self.groups(task))

    def score_of(self, arm: str, seed: int, tasks: Sequence[Task]) -> float:
        """Mean over tasks."""
        return fmean(self.score(arm, seed, task).value for task in tasks)

    def unread(self, tasks: Sequence[Task]) -> float:
        """What the commonest answers of training score; who reads nothing reaches little more."""
        scores: list[float] = []
        for task in tasks:
            rows, name = next(iter(self.answers.values()))[task.name], task.metrics[0]
            counted, keys = metric(name), self.keys(task)
            guesses = [self.majority(task, key[0]).guess(rows[key]) for key in keys]
            counts = np.array(counted.counts(guesses, [rows[key].right for key in keys]))
            scores.append(estimate(counted, counts).value)
        return fmean(scores)

    def compare(
        self, arm: str, other: str, seeds: Sequence[int], tasks: Sequence[Task]
    ) -> Estimate:
        """By how much an arm exceeds another, on average over seeds and tasks.

        What other rows would have said and what other seeds would have are two errors, and both
        count in full: a part that seeds and rows share is counted twice, so the interval is rather
        too wide. Freedom is Welch's and Satterthwaite's.
        """
        per_seed = [
            self.score_of(arm, seed, tasks) - self.score_of(other, seed, tasks) for seed in seeds
        ]
        of_rows = [self._over_rows(arm, other, seeds, task) for task in tasks]
        parts = [(each.standard_error**2 / len(tasks) ** 2, each.groups - 1) for each in of_rows]
        parts.append((over_seeds(per_seed).standard_error ** 2, len(seeds) - 1))
        return Estimate(
            value=fmean(per_seed),
            standard_error=math.sqrt(sum(variance for variance, _ in parts)),
            rows=sum(each.rows for each in of_rows),
            groups=1 + _freedom(parts),
        )

    def _over_rows(self, arm: str, other: str, seeds: Sequence[int], task: Task) -> Estimate:
        here, there = (
            np.mean([self.counts(each, seed, task) for seed in seeds], axis=0)
            for each in (arm, other)
        )
        return difference(metric(task.metrics[0]), here, there, self.groups(task))


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of a number over seeds; NaN as its error where there is one seed."""
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(value=fmean(values), standard_error=error, rows=count, groups=count)


def protocols(jobs: Jobs) -> list[Protocol]:
    """All that was asked, in the plan's order.

    Raises:
        UserError: predictions are missing, damaged, or of other rows.
    """
    known: dict[tuple[str, int], Majority] = {}

    def majority(task: Task, template: int) -> Majority:
        if (task.name, template) not in known:
            known[task.name, template] = Majority.of(TaskReader(task), template=template)
        return known[task.name, template]

    plan, found = jobs.plan, list[Protocol]()
    settings = {name: tuning.asked for name, tuning in plan.tuning.items()}
    settings[IN_CONTEXT] = plan.in_context.asked
    for name, asked in settings.items():
        tasks = load_tasks(asked.tasks)
        shown = plan.in_context.demonstrations if name == IN_CONTEXT else [0]
        for count in shown:
            answers = {
                (arm, seed): _answers(jobs.asked(arm, seed, name)[count], tasks)
                for arm in plan.arms
                for seed in plan.seeds
            }
            found.append(
                Protocol(
                    name=name,
                    demonstrations=count,
                    tasks=tasks,
                    answers=answers,
                    majority=majority,
                )
            )
    return found


def _answers(evaluations: Sequence[Asked], tasks: Sequence[Task]) -> dict[str, dict[Key, Answered]]:
    return {
        task.name: {
            (each.template, row.id): row
            for each in evaluations
            for row in read_predictions(each.predictions, task.name)
        }
        for task in tasks
    }


def score_rows(found: Sequence[Protocol], arms: Sequence[str], seeds: Sequence[int]) -> list[Any]:
    """A row for each arm, seed and protocol, for programs."""
    return [
        {
            "arm": arm,
            "seed": seed,
            "protocol": protocol.name,
            "demonstrations": protocol.demonstrations,
            "score": protocol.score_of(arm, seed, protocol.tasks),
            "clusters": {
                name: protocol.score_of(arm, seed, tasks)
                for name, tasks in protocol.clusters.items()
                if name != ALL
            },
            "tasks": {
                task.name: {
                    "metric": task.metrics[0],
                    "score": protocol.score(arm, seed, task).value,
                    "standard_error": finite(protocol.score(arm, seed, task).standard_error),
                    "rows": len(protocol.keys(task)),
                }
                for task in protocol.tasks
            },
        }
        for protocol in found
        for arm in arms
        for seed in seeds
    ]


def differences(found: Sequence[Protocol], arms: Sequence[str], seeds: Sequence[int]) -> list[Any]:
    """A row for each protocol, cluster and pair of arms, for programs."""
    rows: list[Any] = []
    for protocol in found:
        for cluster, tasks in protocol.clusters.items():
            for place, other in enumerate(arms):
                for arm in arms[place + 1 :]:
                    seen = protocol.compare(arm, other, seeds, tasks)
                    rows.append(
                        {
                            "protocol": protocol.name,
                            "demonstrations": protocol.demonstrations,
                            "cluster": cluster,
                            "arm": arm,
                            "against": other,
                            "rows": seen.rows,
                            "majority": protocol.unread(tasks),
                            **ranged(seen),
                            "by_seed": [
                                protocol.score_of(arm, seed, tasks)
                                - protocol.score_of(other, seed, tasks)
                                for seed in seeds
                            ],
                        }
                    )
    return rows


def ranged(found: Estimate) -> dict[str, float | None]:
    """A difference, what holds the true one in 95 of 100 samples, and what could have been seen."""
    low, high = found.interval or (None, None)
    return {
        "difference": found.value,
        "difference_low": low,
        "difference_high": high,
        "visible_difference": finite(found.visible),
    }


def finite(value: float) -> float | None:
    """None for what JSON cannot say."""
    return value if math.isfinite(value) else None


def _freedom(parts: Sequence[tuple[float, int]]) -> int:
    """Degrees of freedom of a sum of variances, rounded down; of the least where nothing varies."""
    total = sum(variance for variance, _ in parts)
    least = min(freedom for _, freedom in parts)
    if not total > 0 or least < 1:
        return least
    return max(1, int(total**2 / sum(variance**2 / freedom for variance, freedom in parts)))
