"""Which nodes are not fit, by what they measured of themselves: a function of their reports."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

LEAST_SHARE: Final = 0.7
"""Of the median that a node may do."""
CLOCK_SECONDS: Final = 2.0
"""A clock may be so wrong: leases and records go by it."""


@dataclass(kw_only=True)
class Report:
    """What a node has measured.

    Attributes:
        rates: by the name of what was tried, the more the better; in units of its own.
        clock: its wall clock in Unix seconds, at a moment that all have in common; None if it never
            came there.
    """

    rates: dict[str, float] = field(default_factory=dict)
    clock: float | None = None


def reports_of(lines: Iterable[str]) -> dict[str, Report]:
    """Reports by node, out of all that nodes have printed; a node may print several parts."""
    found: dict[str, Report] = {}
    for line in lines:
        try:
            told: dict[str, Any] = json.loads(line)
            node, rates, clock = str(told["node"]), dict(told["rates"]), told.get("clock")
            numbers = {str(name): float(rate) for name, rate in rates.items()}
        except (ValueError, KeyError, TypeError):
            continue  # what else they, or Slurm, have to say
        report = found.setdefault(node, Report())
        report.rates |= numbers
        report.clock = report.clock if clock is None else float(clock)
    return found


class Doubt(NamedTuple):
    """What speaks against a node."""

    share: float
    """Of what others can do: the less, the worse."""
    why: str
    """In words that go on after its name."""


def unfit(reports: Mapping[str, Report], nodes: Sequence[str]) -> dict[str, Doubt]:
    """By name, what is wrong with nodes: by far slower than the median, or its clock is wrong.

    Args:
        reports: of the nodes, by name.
        nodes: all that were tried.
    """
    faults: dict[str, list[Doubt]] = {node: [] for node in nodes}
    for node in nodes:
        if reports and node not in reports:
            faults[node].append(Doubt(0.0, "did not end its try-out"))
    for name in dict.fromkeys(name for report in reports.values() for name in report.rates):
        rates = {node: r.rates[name] for node, r in reports.items() if name in r.rates}
        median = statistics.median(rates.values())
        for node, rate in rates.items():
            if rate < LEAST_SHARE * median:
                share = rate / median
                faults[node].append(Doubt(share, f"has {share:.2f} of the median in {name}"))
    clocks = {node: r.clock for node, r in reports.items() if r.clock is not None}
    if clocks:
        median = statistics.median(clocks.values())
        for node, clock in clocks.items():
            if abs(clock - median) > CLOCK_SECONDS:
                where = "ahead" if clock > median else "behind"
                why = f"has a clock {abs(clock - median):.0f} s {where}"
                faults[node].append(Doubt(LEAST_SHARE, why))
    return {
        node: Doubt(min(each.share for each in found), ", ".join(each.why for each in found))
        for node, found in faults.items()
        if found
    }
