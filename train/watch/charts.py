"""Geometry of the report's charts; the template draws it, so that styles and themes stay in CSS."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

MAX_POINTS = 800
"""Points drawn of a line; a screen shows no more."""

SIDE = 1000.0
"""Side of the square that coordinates live in; the browser stretches it to the chart."""

Points = Sequence[tuple[float, float]]


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: as the legend shows it.
        style: CSS class: "main", "raw" (faint), "other" or "marked" (with dots).
        points: (x, y) by rising x; a NaN breaks the line.
    """

    name: str
    style: str
    points: Points


class Drawn(NamedTuple):
    """A line ready to draw: SVG path data for the stroke and for its dots, and the hover values."""

    name: str
    style: str
    path: str
    dots: str
    values: list[tuple[float, float]]


class Tick(NamedTuple):
    """A label at a place of an axis, in percent of its length."""

    percent: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart ready to draw.

    Attributes:
        title: what it shows, with the unit.
        summary: the same in words, for those who do not see it.
        lines: in drawing order.
        x_ticks: from the left.
        y_ticks: from the bottom.
        marks: vertical marks, in percent from the left.
        bad: likewise, of steps that went wrong.
        rule: horizontal reference, if any.
        last_step: right end of the x axis.
    """

    title: str
    summary: str
    lines: list[Drawn]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[float]
    bad: list[float]
    rule: Tick | None
    last_step: int


def draw_chart(
    title: str,
    lines: Sequence[Line],
    *,
    last_step: int,
    mark_steps: Sequence[int] = (),
    bad_steps: Sequence[int] = (),
    rule: tuple[float, str] | None = None,
    from_zero: bool = False,
) -> Chart | None:
    """Lays out a chart over steps 0 to `last_step`; None if there is nothing to show.

    Args:
        title: what it shows, with the unit.
        lines: what to draw, in order.
        last_step: right end of the x axis.
        mark_steps: steps to mark, such as resumes.
        bad_steps: steps to mark as such.
        rule: a horizontal reference: value and name.
        from_zero: whether the y axis starts at zero.
    """
    lines = [line for line in lines if _finite(line.points)]
    if not lines:
        return None
    low, high = _value_range(lines, rule=rule, from_zero=from_zero)
    right = max(last_step, 1)

    def across(step: float) -> float:
        return step / right

    def up(value: float) -> float:
        return (value - low) / (high - low)

    def drawn(line: Line) -> Drawn:
        points = _thin(line.points)
        runs = [
            # Extreme raw values lie outside the range; they are drawn at its edge.
            [
                f"{across(x) * SIDE:.1f} {(1 - up(min(max(y, low), high))) * SIDE:.1f}"
                for x, y in run
            ]
            for is_finite, run in groupby(points, key=lambda point: math.isfinite(point[1]))
            if is_finite
        ]
        # Zero-length strokes, which round caps turn into dots, for points that no line shows.
        dotted = (run for run in runs if line.style == "marked" or len(run) == 1)
        return Drawn(
            name=line.name,
            style=line.style,
            path="".join(f"M{'L'.join(run)}" for run in runs),
            dots="".join(f"M{place}h0" for run in dotted for place in run),
            values=[(x, float(f"{y:.5g}")) for x, y in _finite(points)],
        )

    steps = [step for step in nice_ticks(0, right, num_at_most=6) if step == int(step)]
    values = nice_ticks(low, high, num_at_most=6)
    return Chart(
        title=title,
        summary="; ".join(_in_words(line) for line in lines if line.style != "raw"),
        lines=[drawn(line) for line in lines],
        x_ticks=[Tick(100 * across(step), f"{step:,.0f}") for step in steps],
        y_ticks=[Tick(100 * up(value), f"{value:,.5g}") for value in values],
        marks=[100 * across(step) for step in mark_steps],
        bad=[100 * across(step) for step in bad_steps],
        rule=Tick(100 * up(rule[0]), rule[1]) if rule else None,
        last_step=right,
    )


def smoothed(points: Points) -> list[tuple[float, float]]:
    """The points under an exponential mean over about a fiftieth of them, without start-up bias."""
    weight = 2 / (1 + max(1.0, len(points) / 50))
    mean = total = 0.0
    result = []
    for x, y in points:
        if math.isfinite(y):
            mean += weight * (y - mean)
            total += weight * (1 - total)
        result.append((x, mean / total if math.isfinite(y) else math.nan))
    return result


def nice_ticks(low: float, high: float, *, num_at_most: int) -> list[float]:
    """Round numbers within [low, high], spaced by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / num_at_most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _value_range(
    lines: Sequence[Line], *, rule: tuple[float, str] | None, from_zero: bool
) -> tuple[float, float]:
    """Range of y: all of what matters, and of faint raw values all but the most extreme."""
    values = [rule[0]] if rule else []
    for line in lines:
        ordered = sorted(y for _, y in _finite(line.points))
        outliers = len(ordered) // 100 if line.style == "raw" else 0
        values += [ordered[outliers], ordered[-1 - outliers]]
    low, high = (min(0.0, *values) if from_zero else min(values)), max(values)
    margin = 0.05 * (high - low)
    if high - low < 1e-9 * max(abs(high), 1e-30):
        margin = abs(high) / 2 or 1.0
    return (low if from_zero else low - margin), high + margin


def _thin(points: Points) -> Points:
    """At most about `MAX_POINTS`; each group keeps its lowest and highest, so no spike is lost."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(2 * len(points) / MAX_POINTS)
    kept = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        finite = _finite(group)
        if len(finite) < len(group):
            kept.append((group[0][0], math.nan))
        if finite:
            kept += {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}
    return sorted(kept)


def _in_words(line: Line) -> str:
    finite = _finite(line.points)
    (first_x, first_y), (last_x, last_y) = finite[0], finite[-1]
    if len(finite) == 1:
        return f"{line.name} {first_y:.4g} at step {first_x:,.0f}"
    return f"{line.name} from {first_y:.4g} at step {first_x:,.0f} to {last_y:.4g} at {last_x:,.0f}"
