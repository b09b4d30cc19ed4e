"""What could be answered without reading anything."""

from collections import Counter
from collections.abc import Iterable
from typing import Self

from train.scores.evaluation import Answered
from train.tasks.reader import TaskReader


class Majority:
    """Gives each row the commonest answer of training, of those that the row has to choose from.

    Args:
        answers: of the training records.
    """

    def __init__(self, answers: Iterable[str]):
        self._times = Counter(answer.strip() for answer in answers)

    @classmethod
    def of(cls, reader: TaskReader, *, template: int = 0) -> Self:
        """Of a task's training records as a template asks them.

        Raises:
            DataError: records do not fit the task.
        """
        return cls(example.answers[0] for example in reader.examples("train", template=template))

    def guess(self, row: Answered) -> str:
        """What it says of a row."""
        offered = row.choices or self._times
        return max(offered, key=lambda answer: (self._times[answer.strip()], answer))
