"""What each stage of a pipeline did when, and the least that its order of work can take."""

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from parallel.named import PREFIX, Part
from train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Work:
    """One microbatch's way through one piece of the model.

    Attributes:
        stage: of the pipeline.
        direction: forwards or backwards.
        microbatch: its number.
        piece: of the whole model, in its order.
        start: seconds.
        end: seconds.
    """

    stage: int
    direction: Part
    microbatch: int
    piece: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


def read_work(trace: Path, *, stage: int, stages: int) -> list[Work]:
    """What a rank did forwards and backwards, in its order; seconds are those of its clock.

    Where a GPU computed, it is the time that the GPU took.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with gzip.open(trace, "rt") as file:
            content: Any = json.load(file)
        events = [e for e in content["traceEvents"] if str(e.get("name")).startswith(PREFIX)]
        begins = float(content.get("baseTimeNanoseconds", 0)) / 1e9
        on_device = [e for e in events if e.get("cat") == "gpu_user_annotation"]
        found = [
            _work(event, begins, stage=stage, stages=stages)
            for event in on_device or [e for e in events if e.get("cat") == "user_annotation"]
            if event["name"].split()[1] in (Part.FORWARD, Part.BACKWARD)
        ]
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zlib.error) as error:
        raise DataError(
            f"{trace} is no trace of this program ({type(error).__name__}): remove its directory, "
            "and profile another step"
        ) from error
    return sorted(found, key=lambda work: work.start)


def _work(event: dict[str, Any], begins: float, *, stage: int, stages: int) -> Work:
    _, direction, numbers = event["name"].split()
    microbatch, piece = map(int, numbers.split("."))
    start = begins + event["ts"] / 1e6
    return Work(
        stage=stage,
        direction=Part(direction),
        microbatch=microbatch,
        piece=piece * stages + stage,
        start=start,
        end=start + event["dur"] / 1e6,
    )


def from_zero(work: Sequence[Work]) -> list[Work]:
    """The same, from when the first one begins."""
    first = min((each.start for each in work), default=0.0)
    return [replace(each, start=each.start - first, end=each.end - first) for each in work]


def planned(work: Sequence[Work]) -> list[Work]:
    """The same work in each stage's order, as if it waited for nothing but other stages.

    Each direction of a piece takes its median: what is left idle is the schedule's bubble.

    Args:
        work: of all stages.

    Raises:
        DataError: the order cannot be kept, as parts of the trace are missing.
    """
    seconds: dict[tuple[int, Part], list[float]] = defaultdict(list)
    orders: dict[int, list[Work]] = defaultdict(list)
    for each in sorted(work, key=lambda each: each.start):
        seconds[each.piece, each.direction].append(each.seconds)
        orders[each.stage].append(each)
    last_piece = max((each.piece for each in work), default=0)
    free = dict.fromkeys(orders, 0.0)
    ends: dict[tuple[Part, int, int], float] = {}
    laid: list[Work] = []
    while any(orders.values()):
        before = len(laid)
        for stage, order in orders.items():
            while order:
                each = order[0]
                needs = _needs(each, last_piece)
                if needs is not None and needs not in ends:
                    break
                start = max(free[stage], 0.0 if needs is None else ends[needs])
                end = start + median(seconds[each.piece, each.direction])
                free[stage] = ends[each.direction, each.microbatch, each.piece] = end
                laid.append(replace(each, start=start, end=end))
                order.pop(0)
        if len(laid) == before:
            raise DataError(
                "the trace lacks parts of the pipeline: profile another step, and keep the files "
                "of all ranks of it"
            )
    return laid


def _needs(work: Work, last_piece: int) -> tuple[Part, int, int] | None:
    """What must have ended before."""
    if work.direction == Part.FORWARD:
        return (Part.FORWARD, work.microbatch, work.piece - 1) if work.piece else None
    if work.piece == last_piece:
        return Part.FORWARD, work.microbatch, work.piece
    return Part.BACKWARD, work.microbatch, work.piece + 1


def idle_share(work: Sequence[Work], *, stage: int) -> float:
    """Share of the time from the first work of any stage to the last that a stage did none."""
    whole = max(each.end for each in work) - min(each.start for each in work)
    busy = sum(each.seconds for each in work if each.stage == stage)
    return 1 - busy / whole if whole else 0.0
