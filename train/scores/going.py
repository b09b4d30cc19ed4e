"""Goes through tasks: which rows are asked, and in which way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from parallel.agreement import on_all_ranks
from train.data.segments import MediaSegment
from train.errors import DataError, UserError
from train.scores.asking import Asking
from train.scores.evaluation import Rows, TaskScore, evaluate_task
from train.scores.metric import metric
from train.scores.opening import Opened
from train.scores.scorer import Asked
from train.tasks.example import Example
from train.tasks.protocol import Protocol
from train.tasks.reader import TaskReader
from train.tasks.task import Split, Task


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which rows of tasks are asked, and in which way.

    Attributes:
        split: of the rows.
        template: number of the template; the first where a task has fewer, or where that one asks
            for another answer.
        most_rows: the first this many; None for all.
        demonstrations: examples that are shown before each row, drawn by its number.
        is_shuffled: whether each row is asked with the context of another one, or, where rows show
            items, with another's items alone. What a model still knows then does not come from
            what it was given.
        is_blind: whether rows are asked without their items.
        leaves_out_long: whether rows that have no room in the model are passed over.
    """

    split: Split = "test"
    template: int = 0
    most_rows: int | None = None
    demonstrations: int = 0
    is_shuffled: bool = False
    is_blind: bool = False
    leaves_out_long: bool = False

    @property
    def name(self) -> str:
        """For files."""
        parts = [self.split, f"template-{self.template}"]
        parts += [f"{self.demonstrations}-shot"] if self.demonstrations else []
        parts += ["shuffled"] if self.is_shuffled else []
        parts += ["blind"] if self.is_blind else []
        parts += [] if self.most_rows is None else [f"first-{self.most_rows}"]
        return "-".join(parts)


def scores_of(opened: Opened, tasks: Sequence[Task], setting: Setting) -> Iterator[TaskScore]:
    """The score of each task, on the first rank; every rank must go through all of them.

    Raises:
        DataError: rows cannot be read, or have no room in the model; on all ranks.
        UserError: as `Scorer.ask`.
    """
    for task in tasks:
        rows = on_all_ranks(lambda task=task: asked_of(opened.asking, task, setting), UserError)
        score = evaluate_task(opened.scorer, task, rows, decode=opened.decode)
        if score is not None:
            yield score


def asked_of(asking: Asking, task: Task, setting: Setting) -> Rows:
    """Rows of a task, and what the model is asked of each.

    Raises:
        DataError: rows cannot be read, or there is none that has room; or one has none.
        UserError: a metric runs a program that is not there.
    """
    for name in task.metrics:
        metric(name)  # refused before anything is asked
    template = setting.template
    if template >= len(task.templates) or task.templates[template].inverted is not None:
        template = 0
    protocol = Protocol(demonstrations=setting.demonstrations)
    found = protocol.examples(TaskReader(task), setting.split, template=template)
    rows = list(islice(found, setting.most_rows))
    if setting.is_shuffled:
        rows = shuffled(rows)
    if setting.is_blind:
        rows = [blinded(row) for row in rows]
    examples: list[Example] = []
    requests: list[Asked] = []
    cut = 0
    for row in rows:
        try:
            request, dropped = asking.request(row, task)
        except DataError as error:
            if setting.leaves_out_long:
                continue
            raise DataError(f"{error} (--leave-out-long)") from None
        examples.append(row)
        requests.append(request)
        cut += dropped > 0
    if not examples:
        raise DataError(f"task {task.name}: its split {setting.split} has no row to ask")
    return Rows(examples=examples, requests=requests, left_out=len(rows) - len(examples), cut=cut)


def shuffled(rows: Sequence[Example]) -> list[Example]:
    """Each row with the context of the one half-way round: of another, but for a single row.

    Where both show as many items, only these are exchanged, and what is asked stays.
    """
    half = len(rows) // 2
    others = [rows[(number + half) % len(rows)] for number in range(len(rows))]
    return [_with_context_of(row, other) for row, other in zip(rows, others, strict=True)]


def blinded(row: Example) -> Example:
    """A row without its items.

    Raises:
        DataError: it has none.
    """
    if not _items(row):
        raise DataError(f"{row.id}: shows no item: ask its task without --blind")
    return replace(
        row, context=tuple(part for part in row.context if not isinstance(part, MediaSegment))
    )


def _with_context_of(row: Example, other: Example) -> Example:
    items = iter(shown := _items(other))
    if not shown or len(shown) != len(_items(row)):
        return replace(row, context=other.context)
    context = (next(items) if isinstance(part, MediaSegment) else part for part in row.context)
    return replace(row, context=tuple(context))


def _items(row: Example) -> list[MediaSegment]:
    return [part for part in row.context if isinstance(part, MediaSegment)]
