"""What tuning has brought, task by task, beside what needs no tuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tools.tasks.majority import Majority
from train.errors import DataError
from train.scores.evaluation import Answered
from train.scores.interval import difference, estimate
from train.scores.metric import Floats, MetricName, metric
from train.scores.page import read_predictions
from train.tasks.reader import TaskReader

MAJORITY: Final = "majority"
PRETRAINED: Final = "pretrained"
SHUFFLED: Final = "shuffled"
OTHERS: Final = (MAJORITY, PRETRAINED, SHUFFLED)
"""What a tuned model must beat."""


def outcome(
    reader: TaskReader, *, pretrained: Path, finetuned: Path, shuffled: Path
) -> dict[str, Any]:
    """A task's score before and after tuning, and by how much it exceeds the best of what it must.

    Tuning must beat the model before it, the commonest answer of training, and itself with another
    record's input: a model that reads nothing can still know which answers there are.

    Args:
        reader: of the task.
        pretrained: predictions that `tools.evaluate --tasks` left of the model before tuning.
        finetuned: of the tuned one.
        shuffled: of the tuned one, each record asked with another's context.

    Returns:
        A row of `out/tasks.json`; the difference is over the same records, in pairs, with what
        holds the true one in 95 of 100 samples, or None where that is unknown.

    Raises:
        DataError: predictions are missing, damaged or of other records; or records do not fit the
            task.
    """
    task = reader.task
    name = task.metrics[0]
    counted = metric(name)
    tuned = read_predictions(finetuned, task.name)
    given = {
        PRETRAINED: {row.id: row for row in read_predictions(pretrained, task.name)},
        SHUFFLED: {row.id: row for row in read_predictions(shuffled, task.name)},
    }
    tuned = [row for row in tuned if all(row.id in others for others in given.values())]
    if not tuned:
        raise DataError(
            f"{task.name}: the evaluations have no record in common: repeat them with equal --rows"
        )
    groups = [row.group for row in tuned]
    guessed = Majority.of(reader)
    counts = {
        MAJORITY: np.array(
            counted.counts([guessed.guess(row) for row in tuned], [row.right for row in tuned])
        ),
        **{other: _counts([rows[row.id] for row in tuned], name) for other, rows in given.items()},
    }
    here = _counts(tuned, name)
    scores = {other: estimate(counted, values, groups).value for other, values in counts.items()}
    best = max(scores, key=lambda other: scores[other])
    found = difference(counted, here, counts[best], groups)
    low, high = found.interval or (None, None)
    return {
        "task": task.name,
        "cluster": task.cluster,
        "kind": "recall" if task.answer_from == "memory" else "follows",
        "metric": name,
        **scores,
        "finetuned": estimate(counted, here, groups).value,
        "best_other": best,
        "difference": found.value,
        "difference_low": low,
        "difference_high": high,
        "records": found.rows,
        "groups": found.groups,
    }


def _counts(rows: Sequence[Answered], name: MetricName) -> Floats:
    return np.array([row.counts[name] for row in rows], dtype=np.float64)
