"""How tasks are trained on and asked: which records, which templates, which demonstrations.

Source: MetaLM §3.3 (multitask finetuning), §3.4 (one task, decoder frozen), §3.5 (instruction
tuning), §3.6 (in-context learning).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, islice
from typing import Final, Literal

from train.errors import DataError
from train.tasks.example import Example
from train.tasks.reader import TaskReader
from train.tasks.records import Record
from train.tasks.task import Split

HELD_OUT_TOGETHER: Final = ({"inference", "paraphrase"},)
"""Clusters whose tasks are so alike that one gives the other away (§3.5)."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to train on tasks, or to ask them.

    Attributes:
        templates: the first of each task; or, for each record, any at random, inverted ones too.
        most_records: of each task and split; None for all.
        most_of: of some tasks by name, instead.
        is_even: whether a task with fewer records is gone through again until it has given as
            many; in training alone.
        held_out: clusters whose tasks are not trained on.
        demonstrations: examples that are shown before each record.
    """

    templates: Literal["first", "any"] = "first"
    most_records: int | None = None
    most_of: Mapping[str, int] = field(default_factory=dict[str, int])
    is_even: bool = False
    held_out: frozenset[str] = frozenset()
    demonstrations: int = 0

    def trained(self, readers: Sequence[TaskReader]) -> list[TaskReader]:
        """The tasks that are trained on: those of no cluster that is held out.

        Raises:
            DataError: a cluster is held out that no task is of, or none is left.
        """
        clusters = {reader.task.cluster for reader in readers}
        if unknown := sorted(self.held_out - clusters):
            raise DataError(
                f"no task is of the cluster {unknown[0]}, which is to be held out; there are "
                f"{', '.join(sorted(clusters))}"
            )
        out = set(self.held_out)
        for together in HELD_OUT_TOGETHER:
            out |= together if out & together else set()
        found = [reader for reader in readers if reader.task.cluster not in out]
        if not found:
            raise DataError(f"no task is left to train on beside the clusters {', '.join(out)}")
        return found

    def examples(
        self, reader: TaskReader, split: Split, *, template: int = 0, seed: int = 0
    ) -> Iterator[Example]:
        """The records of a task as this protocol asks them, each behind its demonstrations.

        What is drawn depends on the seed, the task and the number of the record, on nothing else.

        Args:
            reader: of the task.
            split: whose records are asked.
            template: number of the template, where it is not drawn.
            seed: of what is drawn.

        Raises:
            DataError: as `TaskReader.examples`; or there are too few records to demonstrate with.
        """
        shown = _Shown(reader) if self.demonstrations else None
        for record in self._records(reader, split, seed):
            chance = random.Random(f"{seed} {reader.task.name} {split} {record.number}")
            number = template
            if self.templates == "any":
                number = chance.randrange(len(reader.task.templates))
            example = reader.example(record, split=split, template=number)
            if shown is None:
                yield example
            else:
                others = shown.draw(self.demonstrations, record, split, number, chance)
                yield example.behind(others)

    def _records(self, reader: TaskReader, split: Split, seed: int) -> Iterator[Record]:
        most = self.most_of.get(reader.task.name, self.most_records)
        if most is None:
            yield from reader.records(split)
            return
        records = [*reader.records(split)]
        if len(records) > most:
            chance = random.Random(f"{seed} {reader.task.name} {split}")
            numbers = sorted(chance.sample(range(len(records)), most))
            records = [records[number] for number in numbers]
        is_repeated = self.is_even and split == "train"
        yield from islice(cycle(records), most) if is_repeated else records


PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "multitask": Protocol(most_records=30_000),
    "single": Protocol(),
    "instruction": Protocol(templates="any", most_records=30_000),
    "in_context": Protocol(demonstrations=4),
    "zero_shot": Protocol(),
}


class _Shown:
    """Records to demonstrate with."""

    def __init__(self, reader: TaskReader):
        self._reader = reader
        self._split: Split = reader.task.demonstrations.split

    @cached_property
    def _records(self) -> list[Record]:
        return [*self._reader.records(self._split)]

    def draw(
        self, count: int, record: Record, split: Split, template: int, chance: random.Random
    ) -> list[Example]:
        """As many, other than the record itself."""
        # By its own name in the records: one split may stand for two.
        is_among = self._reader.is_same(split, self._split)
        if len(self._records) - is_among < count:
            raise DataError(
                f"{self._reader.task.name}: {count} demonstrations are asked for, and the split "
                f"{self._split} has {len(self._records) - is_among} records to take them from: ask "
                "for fewer"
            )
        numbers = chance.sample(range(len(self._records)), count + is_among)
        found = [self._records[at] for at in numbers]
        if is_among:
            found = [each for each in found if each.number != record.number]
        return [
            self._reader.example(each, split=self._split, template=template)
            for each in found[:count]
        ]
