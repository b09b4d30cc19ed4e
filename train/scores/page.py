"""What is left of an evaluation: predictions as JSONL, and a page to read them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from train.errors import DataError
from train.scores.evaluation import Answered, TaskScore
from train.scores.interval import Estimate, unpaired
from train.storage.place import Place
from train.storage.record import content_of, parse
from train.watch.report import Number, render_page

SHOWN_ROWS: Final = 100
"""Of a task on the page; the files have all."""
PAGE: Final = "scores.html"
_BYTES_AT_MOST: Final = 1 << 32
_ROW: Final = TypeAdapter(Answered)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A task on the page.

    Attributes:
        name: of the task.
        cluster: of it.
        numbers: names and values, already formatted.
        rows: the first of them, wrong ones before right ones.
        hidden: rows that are not among them.
    """

    name: str
    cluster: str
    numbers: list[tuple[str, str]]
    rows: list[Answered]
    hidden: int


def write_predictions(directory: Path, score: TaskScore) -> None:
    """`TASK.jsonl`: one line a row."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = b"".join(_ROW.dump_json(row) + b"\n" for row in score.rows)
    Place.of(directory / f"{score.task}.jsonl").write(lines)


def read_predictions(directory: Path, task: str) -> list[Answered]:
    """What `write_predictions` wrote.

    Raises:
        DataError: it is not there, or damaged.
    """
    path = directory / f"{task}.jsonl"
    try:
        content = content_of(path, limit_bytes=_BYTES_AT_MOST)
    except FileNotFoundError:
        raise DataError(
            f"{path} is not there: evaluate that run first, on the same tasks and rows"
        ) from None
    return [
        parse(_ROW, line, name=f"{path}:{number}", error=DataError, remedy="evaluate again")
        for number, line in enumerate(content.splitlines(), start=1)
    ]


def write_page(
    directory: Path,
    scores: Sequence[TaskScore],
    *,
    title: str,
    facts: Sequence[str],
    differences: Mapping[str, Estimate],
) -> Path:
    """`scores.html`, which needs nothing beside it; returns the file."""
    sections = [_section(score, differences.get(score.task)) for score in scores]
    mean = sum(score.first[1].value for score in scores) / max(1, len(scores))
    rows = sum(len(score.rows) for score in scores)
    page = render_page(
        Path(__file__).with_name("scores.html.jinja"),
        title=title,
        facts=[*facts],
        numbers=[
            Number("Mean over tasks", f"{mean:.3f}", f"{len(scores)} tasks"),
            Number("Rows", f"{rows:,}"),
            Number("Ties", f"{sum(score.ties for score in scores):,}", "the first choice counts"),
        ],
        sections=sections,
    )
    out = directory / PAGE
    Place.of(out).write(page.encode())
    return out


def table_row(score: TaskScore, against: Estimate | None) -> dict[str, Any]:
    """A task's numbers, for programs."""
    name, found = score.first
    low, high = found.interval or (None, None)
    row: dict[str, Any] = {
        "task": score.task,
        "cluster": score.cluster,
        "held_out": score.held_out,
        "metric": name,
        "score": found.value,
        "standard_error": _finite(found.standard_error),
        "interval": [low, high],
        "visible_difference": _finite(unpaired(found)),
        "rows": found.rows,
        "groups": found.groups,
        "ties": score.ties,
        "left_out": score.left_out,
        "cut": score.cut,
        "metrics": {each: value.value for each, value in score.estimates.items()},
    }
    if against is not None:
        low, high = against.interval or (None, None)
        row |= {
            "difference": against.value,
            "difference_low": low,
            "difference_high": high,
            "visible_paired_difference": _finite(against.visible),
        }
    return row


def ranged(found: Estimate) -> str:
    """A number and what holds the true one in 95 of 100 samples."""
    if found.interval is None:
        why = "of one group" if found.groups < 2 else "nothing varies"
        return f"{found.value:.3f} ({why}: interval unknown)"
    low, high = found.interval
    return f"{found.value:.3f} [{low:.3f}, {high:.3f}]"


def _section(score: TaskScore, against: Estimate | None) -> Section:
    numbers = [(name, ranged(found)) for name, found in score.estimates.items()]
    first = score.first[1]
    numbers += [
        ("rows", f"{first.rows:,} in {first.groups:,} groups"),
        ("smallest difference to be seen", _shown(unpaired(first))),
        ("ties", f"{score.ties:,}"),
        ("left out", f"{score.left_out:,}"),
        ("cut to have room", f"{score.cut:,}"),
    ]
    if against is not None:
        numbers.append(("against the baseline", ranged(against)))
    rows = sorted(score.rows, key=lambda row: row.is_right)[:SHOWN_ROWS]
    return Section(
        name=score.task,
        cluster=score.cluster,
        numbers=numbers,
        rows=rows,
        hidden=len(score.rows) - len(rows),
    )


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "unknown"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
