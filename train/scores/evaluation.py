"""A model goes through a task: what it answers to each row, and the score of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from train.errors import DataError
from train.prompt import shown
from train.scores.interval import Estimate, difference, estimate
from train.scores.metric import Floats, MetricName, metric
from train.scores.request import Likelihood
from train.scores.scorer import Asked, Scorer
from train.tasks.example import Example
from train.tasks.task import LikelihoodConfig, Task

TIE_NATS: Final = 1e-4
"""Scores that differ by less are tied: so much may rounding change with batch and layout."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a model made of one row.

    Attributes:
        id: of the row.
        group: rows of one are no independent observations.
        asked: what it was given, spans in `[[ ]]`.
        answer: what it said, or the choice that it holds for likeliest.
        right: the answers that are right.
        choices: to choose from; none where it spoke freely.
        scores: of each choice, in nats per what the task says.
        tied: choices that are as good as the answer, it included, where there are several.
        counts: by metric, what counts of the row.
    """

    id: str
    group: str
    asked: str
    answer: str
    right: tuple[str, ...]
    choices: tuple[str, ...]
    scores: tuple[float, ...]
    tied: tuple[int, ...]
    counts: dict[MetricName, list[float]]

    @property
    def is_right(self) -> bool:
        """Whether the first metric gives it all that it can."""
        return all(value == 1 for value in next(iter(self.counts.values()))[:1])


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a task that a model is asked.

    Attributes:
        examples: the rows.
        requests: one for each.
        left_out: rows that are not among them.
        cut: rows among them that were cut to have room.
    """

    examples: list[Example]
    requests: list[Asked]
    left_out: int = 0
    cut: int = 0


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The score of a task.

    Attributes:
        task: its name.
        cluster: of tasks like it.
        held_out: what of its test training has not met; None where nobody says.
        estimates: by metric; the first is the one that counts.
        ties: rows where choices were tied.
        left_out: rows that had no room in the model.
        cut: rows of whose spans something had none.
        rows: what was made of each.
    """

    task: str
    cluster: str
    held_out: str | None
    estimates: dict[MetricName, Estimate]
    ties: int
    left_out: int
    cut: int
    rows: list[Answered]

    @property
    def first(self) -> tuple[MetricName, Estimate]:
        """The metric that counts, and its score."""
        return next(iter(self.estimates.items()))

    def against(self, other: Sequence[Answered]) -> Estimate:
        """By how much the score exceeds that of other answers to the same rows.

        Raises:
            DataError: they have no row in common.
        """
        name = self.first[0]
        there = {row.id: row for row in other}
        shared = [row for row in self.rows if row.id in there]
        if not shared:
            raise DataError(
                f"the baseline has answered no row of {self.task} that is asked here: evaluate it "
                "on the same rows"
            )
        return difference(
            metric(name),
            _counts(shared, name),
            _counts([there[row.id] for row in shared], name),
            [row.group for row in shared],
        )


def evaluate_task(
    scorer: Scorer,
    task: Task,
    asked: Rows,
    *,
    decode: Callable[[list[int]], str],
) -> TaskScore | None:
    """The score of a task, on the first rank; every rank must call it.

    Args:
        scorer: asks the model.
        task: what it is.
        asked: its rows.
        decode: makes text of tokens.

    Raises:
        UserError: as `Scorer.ask`.
    """
    answers = scorer.ask(asked.requests)
    if not answers:
        return None
    rows: list[Answered] = []
    for example, answer in zip(asked.examples, answers, strict=True):
        likelihoods = [each for each in answer if isinstance(each, Likelihood)]
        if likelihoods:
            rows.append(_chosen(example, task, likelihoods))
        else:
            (tokens,) = answer
            assert isinstance(tokens, list)
            rows.append(_spoken(example, decode(tokens).strip()))
    said, right = [row.answer for row in rows], [row.right for row in rows]
    # Of all rows at once: some metrics weigh a row by the others.
    counted: dict[MetricName, list[list[float]]] = {
        name: metric(name).counts(said, right) for name in task.metrics
    }
    rows = [
        replace(
            row, counts={name: row.counts.get(name, some[at]) for name, some in counted.items()}
        )
        for at, row in enumerate(rows)
    ]
    groups = [row.group for row in rows]
    estimates: dict[MetricName, Estimate] = {
        name: estimate(metric(name), _counts(rows, name), groups) for name in task.metrics
    }
    return TaskScore(
        task=task.name,
        cluster=task.cluster,
        held_out=task.held_out,
        estimates=estimates,
        ties=sum(bool(row.tied) for row in rows),
        left_out=asked.left_out,
        cut=asked.cut,
        rows=rows,
    )


def tie_of(scores: Sequence[float], *, within: float) -> list[int]:
    """The best of some scores, and those that are no worse but for rounding, in rising order."""
    best = max(scores)
    return [place for place, score in enumerate(scores) if best - score <= within]


def _chosen(example: Example, task: Task, answers: Sequence[Likelihood]) -> Answered:
    assert isinstance(task.scoring, LikelihoodConfig), "refused with the task"
    scores: list[float] = []
    for choice, answer in zip(example.choices, answers, strict=True):
        count = {
            "token": answer.tokens,
            "byte": len(choice.text.encode()),
            "choice": 1,
        }[task.scoring.per]
        scores.append(answer.log_likelihood / count)
    tied = tie_of(scores, within=TIE_NATS)
    best = tied[0]  # whatever rounding did
    text = example.choices[best].text
    return Answered(
        id=example.id,
        group=example.group,
        asked=shown(example.context),
        answer=text,
        right=example.answers,
        choices=tuple(choice.text for choice in example.choices),
        scores=tuple(scores),
        tied=tuple(tied) if len(tied) > 1 else (),
        # Two choices may be one text, behind what is different.
        counts={"accuracy": [float(best == example.gold)]},
    )


def _spoken(example: Example, text: str) -> Answered:
    return Answered(
        id=example.id,
        group=example.group,
        asked=shown(example.context),
        answer=text,
        right=example.answers,
        choices=(),
        scores=(),
        tied=(),
        counts={},
    )


def _counts(rows: Sequence[Answered], name: MetricName) -> Floats:
    return np.array([row.counts[name] for row in rows], dtype=np.float64)
