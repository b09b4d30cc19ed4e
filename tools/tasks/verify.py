"""Whether a built task is what its manifest says, and no split tells what another asks."""

import hashlib
from collections.abc import Iterator
from typing import Final

from tools.tasks.build import MANIFEST_NAME, SPLITS, manifest_of
from train.data.segments import Segment
from train.tasks.reader import TaskReader
from train.tasks.task import Split

_UNIT: Final = "unit"
_IN_EVERY_TEMPLATE: Final = 100
"""Records of a split; all are asked in the first template."""


def faults(reader: TaskReader) -> Iterator[str]:
    """What is wrong with a task that `tools.tasks build` made.

    Raises:
        DataError: a record does not fit the task.
    """
    name = reader.task.name
    manifest = manifest_of(reader.directory / MANIFEST_NAME)
    if manifest is None:
        yield f"{name}: {reader.directory} has no {MANIFEST_NAME}: build it again"
        return
    for split in SPLITS:
        for file in reader.files(split):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if digest != manifest["splits"][split]["sha256"]:
                yield f"{name}: {file} is not what was built: build it again"
    units: dict[str, Split] = {}
    asked: dict[tuple[Segment, ...], Split] = {}
    for split in SPLITS:
        for record in reader.records(split):
            unit = str(record.values[_UNIT])
            if (other := units.setdefault(unit, split)) != split:
                yield f"{record.place}: the {manifest['unit']} {unit!r} is in {other} too"
            context = reader.example(record, split=split).context
            if (other := asked.setdefault(context, split)) != split:
                yield f"{record.place}: the same is asked in {other}"
            if record.number < _IN_EVERY_TEMPLATE:
                for template in range(1, len(reader.task.templates)):
                    reader.example(record, split=split, template=template)
