"""Small tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.data.segments import Segment, TextSegment
from train.tasks.reader import TaskReader
from train.tasks.task import Task, load_tasks

SENSES = """\
name: senses
cluster: inference
source: {directory: DIRECTORY, group: word}
answer:
  kind: choice
  choices: ["yes", "no"]
  label: label
templates:
  - name: first
    input: |-
      [[{{ premise }}
      {{ hypothesis }}]]
      Does it follow?
  - name: backwards
    input: |-
      [[{{ premise }}]]
      It is {{ answer }} that:
    inverted: "{{ hypothesis }}"
scoring: {kind: likelihood}
metrics: [accuracy]
"""

ROW = {"premise": "A dog.", "hypothesis": "An animal.", "label": 0, "word": "dog"}


def written(directory: Path, *rows: Mapping[str, Any], split: str = "train") -> Path:
    """A directory of records."""
    directory.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / f"{split}.jsonl").write_text(lines)
    return directory


def task(directory: Path, text: str = SENSES, changes: Sequence[tuple[str, str]] = ()) -> Task:
    """A task from a file."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = directory / "task.yaml"
    file.write_text(text.replace("DIRECTORY", str(directory)))
    [found] = load_tasks([str(file)])
    return found


def reader(
    directory: Path, *rows: Mapping[str, Any], changes: Sequence[tuple[str, str]] = ()
) -> TaskReader:
    """A task with records for training."""
    return TaskReader(task(written(directory, *rows), changes=changes))


def texts(segments: Sequence[Segment]) -> list[TextSegment]:
    """Segments that are all text."""
    found = [segment for segment in segments if isinstance(segment, TextSegment)]
    assert len(found) == len(segments)
    return found
