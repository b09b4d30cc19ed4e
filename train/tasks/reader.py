"""From a task's records to examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from train.data.document import KINDS, Kind
from train.data.payload import below, payload
from train.data.segments import MediaSegment, Segment, TextSegment
from train.data.spans import clip, picture, sound
from train.errors import DataError
from train.storage.path import local_path
from train.tasks.example import Choice, Example
from train.tasks.filling import RECORD, Brought, Expression, FillingError, Marked, Stretch, Text
from train.tasks.records import Record, files, records
from train.tasks.task import ChoiceConfig, Split, Task, TextConfig

ANSWER: Final = "answer"
CHOICES: Final = "choices"
"""What templates may name besides columns."""

_SIZES: Final = {
    Kind.IMAGE: picture.read_size,
    Kind.AUDIO: sound.measured,
    Kind.VIDEO: clip.measured,
}
"""What tells the size of an item, by modality."""

Filled = TypeVar("Filled")


class TaskReader:
    """Reads a task.

    Attributes:
        task: what its file says.
        directory: of its records.
    """

    def __init__(self, task: Task, *, directory: Path | None = None):
        """Take a task.

        Args:
            task: what its file says.
            directory: of its records, instead of that which the file names.
        """
        self.task = task
        self.directory = directory or local_path(task.source.directory)
        source, answer = task.source, task.answer
        self._columns = {f"columns.{name}": Expression(text) for name, text in task.columns.items()}
        self._keep = None if source.keep is None else Expression(source.keep)
        self._group = None if source.group is None else Expression(source.group)
        self._answer = _Choices(answer) if isinstance(answer, ChoiceConfig) else _Text(answer)
        self._inputs = [Marked(template.input) for template in task.templates]
        self._choices = [
            None if template.choices is None else _Texts(template.choices)
            for template in task.templates
        ]
        self._inverted = [
            None if template.inverted is None else Text(template.inverted)
            for template in task.templates
        ]

    def records(self, split: Split) -> Iterator[Record]:
        """The records that count, with the columns that the task adds.

        Raises:
            DataError: they cannot be read, or lack what the task asks of them; the message names
                file and line.
        """
        is_checked = False
        for record in records(self.directory, self._split(split)):
            if not is_checked:
                self._require_columns(record)
                is_checked = True
            values = {**record.values, RECORD: record.values}
            for key, column in self._columns.items():
                values[key.removeprefix("columns.")] = _filled(column, values, record, key)
            if self._keep is None or _filled(self._keep, values, record, "source.keep"):
                yield replace(record, values=values)

    def examples(self, split: Split, *, template: int = 0) -> Iterator[Example]:
        """The records of a split as a template asks them.

        Raises:
            DataError: as `records` and `example`.
        """
        for record in self.records(split):
            yield self.example(record, split=split, template=template)

    def example(self, record: Record, *, split: Split, template: int = 0) -> Example:
        """A record as a template asks it.

        Args:
            record: one that `records` gave.
            split: where it stands.
            template: number of the template.

        Raises:
            DataError: its label is none of the labels, two choices are equal, or a text is empty.
        """
        name = self.task.templates[template].name
        choices, gold, answers = self._answer(record, self._choices[template])
        values = dict(record.values)
        if choices:
            values[CHOICES] = [choice.text for choice in choices]
        inverted = self._inverted[template]
        if inverted is not None:
            values[ANSWER] = answers[0]
        stretches = _filled(self._inputs[template], values, record, f"templates.{name}.input")
        if inverted is not None:
            learned = _filled(inverted, values, record, f"templates.{name}.inverted")
            choices, gold, answers = (), None, (learned,)
        if not all(answer.strip() for answer in answers):
            raise DataError(f"{record.place}: the answer is empty: pass it over with source.keep")
        group = record.number
        if self._group is not None:
            group = _filled(self._group, values, record, "source.group")
        return Example(
            id=f"{self.task.name}/{split}:{record.number}",
            template=name,
            context=_context(stretches, record, name),
            choices=choices,
            gold=gold,
            answers=tuple(answer.strip() for answer in answers),
            group=str(group),
        )

    def files(self, split: Split) -> list[Path]:
        """The files that hold the records of a split.

        Raises:
            DataError: there is none.
        """
        return files(self.directory, self._split(split))

    @property
    def has_media(self) -> bool:
        """Whether a template shows items."""
        return any(template.has_media for template in self._inputs)

    def is_same(self, one: Split, other: Split) -> bool:
        """Whether two splits are the same records."""
        return self._split(one) == self._split(other)

    def _split(self, split: Split) -> str:
        return self.task.source.splits.get(split, split)

    def _require_columns(self, record: Record) -> None:
        """Refuse records that lack a column which the task names."""
        known = {*record.values, RECORD}
        faults: list[str] = []

        def look(key: str, names: frozenset[str], *more: str) -> None:
            for name in sorted(names - known - {*more}):
                near = get_close_matches(name, known, n=1)
                hint = near[0] if near else ", ".join(sorted(record.values)) or "no columns"
                asks = f"did you mean {hint}?" if near else f"they have {hint}"
                faults.append(f"{key}: the records have no column {name}; {asks}")

        for key, column in self._columns.items():
            look(key, column.names)
            known.add(key.removeprefix("columns."))
        for key, expression in (("source.keep", self._keep), ("source.group", self._group)):
            look(key, frozenset() if expression is None else expression.names)
        for key, names in self._answer.names.items():
            look(key, names)
        for template, asked, choices, inverted in zip(
            self.task.templates, self._inputs, self._choices, self._inverted, strict=True
        ):
            key = f"templates.{template.name}"
            look(f"{key}.input", asked.names, CHOICES, ANSWER)
            look(f"{key}.choices", frozenset() if choices is None else choices.names)
            look(f"{key}.inverted", frozenset() if inverted is None else inverted.names, CHOICES)
        if faults:
            place = record.place.rpartition(":")[0]
            lines = "\n".join(f"  {fault}" for fault in faults)
            raise DataError(f"task {self.task.name} does not fit {place}:\n{lines}")


class _Texts:
    """Texts, one template each, or an expression that gives their list."""

    def __init__(self, given: str | Sequence[str]):
        self._listed = Expression(given) if isinstance(given, str) else None
        self._each = [] if isinstance(given, str) else [Text(text) for text in given]
        parts = [*self._each] if self._listed is None else [self._listed]
        self.names = frozenset[str]().union(*(part.names for part in parts))

    def __call__(self, values: Mapping[str, Any]) -> list[str]:
        """The texts.

        Raises:
            FillingError: a column lacks what is asked of it, or gives no texts.
        """
        if self._listed is None:
            return [text(values) for text in self._each]
        found = self._listed(values)
        if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
            raise FillingError(f"gives {found!r:.80}, and not a list of texts")
        return [*found]


class _Choices:
    """The answer of a record as one of several."""

    def __init__(self, config: ChoiceConfig):
        self._texts = _Texts(config.choices)
        self._before = None if config.before is None else _Texts(config.before)
        self._label = Expression(config.label)
        self._labels = (
            Expression(config.labels) if isinstance(config.labels, str) else config.labels
        )
        self.names = {"answer.choices": self._texts.names, "answer.label": self._label.names}
        if self._before is not None:
            self.names["answer.before"] = self._before.names
        if isinstance(self._labels, Expression):
            self.names["answer.labels"] = self._labels.names

    def __call__(
        self, record: Record, otherwise: _Texts | None
    ) -> tuple[tuple[Choice, ...], int, tuple[str, ...]]:
        values = record.values
        texts = _filled(otherwise or self._texts, values, record, "answer.choices")
        texts = [text.strip() for text in texts]
        before = [""] * len(texts)
        if self._before is not None:
            before = _filled(self._before, values, record, "answer.before")
        if len(before) != len(texts) or len(texts) < 2:
            raise DataError(
                f"{record.place}: there are {len(texts)} choices and {len(before)} texts before "
                "them: two or more are needed, and as many of both"
            )
        choices = tuple(
            Choice(text=text, before=given.strip())
            for text, given in zip(texts, before, strict=True)
        )
        for choice in choices:
            if not choice.text:
                raise DataError(f"{record.place}: a choice is empty")
            if choices.count(choice) > 1:
                raise DataError(
                    f"{record.place}: two choices are {choice.text!r}, and none could be told "
                    "right: mend it, or pass it over with source.keep"
                )
        gold = self._gold(record, len(choices))
        return choices, gold, (choices[gold].text,)

    def _gold(self, record: Record, count: int) -> int:
        label = _filled(self._label, record.values, record, "answer.label")
        labels: Any = self._labels
        if isinstance(labels, Expression):
            labels = _filled(labels, record.values, record, "answer.labels")
        labels = [*range(count)] if labels is None else [*labels]
        if len(labels) != count:
            raise DataError(f"{record.place}: there are {count} choices and {len(labels)} labels")
        # In Python True is 1, and a task that mixes them is mistaken.
        found = [
            at for at, each in enumerate(labels) if each == label and type(each) is type(label)
        ]
        if len(found) != 1:
            raise DataError(
                f"{record.place}: the label {label!r} is none of {', '.join(map(repr, labels))}: "
                "correct answer.label or answer.labels, or pass it over with source.keep"
            )
        return found[0]


class _Text:
    """The answer of a record as a text of its own."""

    def __init__(self, config: TextConfig):
        self._text = Expression(config.text)
        self.names = {"answer.text": self._text.names}

    def __call__(
        self, record: Record, otherwise: _Texts | None
    ) -> tuple[tuple[Choice, ...], None, tuple[str, ...]]:
        found = _filled(self._text, record.values, record, "answer.text")
        texts = [found] if isinstance(found, str) else found
        if not isinstance(texts, list | tuple) or not texts:
            raise DataError(f"{record.place}: answer.text: gives {found!r:.80}, and no text")
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{record.place}: answer.text: gives {found!r:.80}, not all text")
        return (), None, tuple(texts)


def _filled(
    what: Callable[[Mapping[str, Any]], Filled], values: Mapping[str, Any], record: Record, key: str
) -> Filled:
    """What a record fills, or an error that says where."""
    try:
        return what(values)
    except FillingError as error:
        raise DataError(f"{record.place}: {key}: {error}") from error


def _context(
    stretches: Sequence[Stretch | Brought], record: Record, template: str
) -> tuple[Segment, ...]:
    """Stretches as segments: a line end outside of spans ends a paragraph, but not an item."""
    found: list[Segment] = []
    for stretch in stretches:
        if isinstance(stretch, Brought):
            found.append(_item(stretch, record, template))
            continue
        text = stretch.text
        if stretch.is_span and not text.strip():
            raise DataError(
                f"{record.place}: a span of templates.{template} is empty: pass the record over "
                "with source.keep"
            )
        body = text if stretch.is_span else text.strip("\n")
        begins_anew = not stretch.is_span and "\n" in text[: len(text) - len(text.lstrip())]
        if begins_anew:
            _end_paragraph(found, ends=True)
        if body.strip():
            ends = not stretch.is_span and "\n" in text[len(text.rstrip()) :]
            found.append(
                TextSegment(
                    text=body, is_span=stretch.is_span, is_scored=False, ends_paragraph=ends
                )
            )
    if not found:
        raise DataError(f"{record.place}: templates.{template}.input: is empty")
    # The answer goes on with the last paragraph.
    _end_paragraph(found, ends=False)
    return tuple(found)


def _end_paragraph(segments: list[Segment], *, ends: bool) -> None:
    """Say whether the last segment ends its paragraph; an item is in none."""
    if segments and isinstance(last := segments[-1], TextSegment):
        segments[-1] = replace(last, ends_paragraph=ends)


def _item(brought: Brought, record: Record, template: str) -> MediaSegment:
    """What a record says of an item, read and measured."""

    def fetch(name: str) -> bytes:
        path = record.directory / below(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read from {path} ({error.strerror or error})") from error

    kind = KINDS[brought.medium]
    try:
        if brought.value is None:
            raise ValueError("is null")
        data = payload(brought.value, fetch=fetch)
        return MediaSegment(kind=kind, data=data, size=_SIZES[kind](data))
    except ValueError as error:
        raise DataError(
            f"{record.place}: the {brought.medium} of templates.{template} {error}: mend it, or "
            "pass the record over with source.keep"
        ) from error
