"""Our tasks as lm-eval reads them: rows with their prompts filled in, and a YAML beside them."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tools.harness.model import NAME, SPANS
from train.data.segments import MediaSegment, Segment
from train.errors import DataError
from train.prompt import shown
from train.storage.place import Place
from train.tasks.reader import TaskReader
from train.tasks.task import Split, Task


def write_tasks(
    task: Task, directory: Path, *, split: Split, most_rows: int | None, has_spans: bool = True
) -> str:
    """Writes `semicausal_TASK.yaml` and its rows; returns the task's name there.

    Args:
        task: to write.
        directory: to write into.
        split: whose rows.
        most_rows: the first this many; None for all.
        has_spans: whether prompts mark spans with `[[ ]]`, which `--model semicausal` reads; else
            all is text, which any model of lm-eval can read.

    Raises:
        DataError: rows cannot be read, show items, or their choices stand behind texts of their
            own, which lm-eval has no form for.
    """
    name = f"{NAME}_{task.name}" if has_spans else f"{NAME}_plain_{task.name}"
    rows: list[dict[str, Any]] = []
    for example in islice(TaskReader(task).examples(split), most_rows):
        if any(choice.before for choice in example.choices):
            raise DataError(f"task {task.name}: answer.before has no counterpart in lm-eval")
        if any(isinstance(segment, MediaSegment) for segment in example.context):
            raise DataError(f"task {task.name}: asks about pictures, for which lm-eval has no form")
        context = shown(example.context) if has_spans else _plain(example.context)
        row: dict[str, Any] = {"id": example.id, "context": context, SPANS: has_spans}
        if example.choices:
            row |= {"choices": [choice.text for choice in example.choices], "gold": example.gold}
        else:
            row["answer"] = example.answers[0]
        rows.append(row)
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / f"{name}.jsonl"
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    Place.of(data).write(lines.encode())
    described: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.absolute())}},
        "test_split": "test",
        "doc_to_text": "{{context}}",
        "target_delimiter": " ",
    }
    if task.scoring.kind == "likelihood":
        described |= {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    else:
        described |= {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {
                "until": ["\n"],
                "max_gen_toks": task.scoring.max_new_tokens,
                "do_sample": False,
            },
            "filter_list": [
                {"name": "stripped", "filter": [{"function": "remove_whitespace"}]},
            ],
            "metric_list": [{"metric": "exact_match"}],
        }
    Place.of(directory / f"{name}.yaml").write(yaml.safe_dump(described, sort_keys=False).encode())
    return name


def _plain(segments: Sequence[Segment]) -> str:
    """Text of segments, paragraphs apart by a blank line."""
    return "".join(
        each.text + ("\n\n" if each.ends_paragraph else "")
        for each in segments
        if not isinstance(each, MediaSegment)
    )
