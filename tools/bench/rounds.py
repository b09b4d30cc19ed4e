"""Runs the contestants in turn, so that background load affects all of them equally."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Step = Callable[[], None]
"""One whole unit of work, say a training step."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to look.

    Attributes:
        rounds: turns of each contestant.
        steps: steps in a turn.
        warmup_steps: steps before the first turn, not measured.
    """

    rounds: int
    steps: int
    warmup_steps: int


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One of those compared.

    Attributes:
        name: what the table calls it.
        step: what is timed.
        tokens: decoder tokens that one step consumes.
        parameters: trainable parameters.
        precision: of its matrix products.
    """

    name: str
    step: Step
    tokens: int
    parameters: int
    precision: str


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(kw_only=True)
class Findings:
    """What one case found; travels between processes, so it holds plain values alone.

    Attributes:
        case: name of the case.
        settings: shape and conditions, for the record.
        contestants: by name, what each took.
        ratios: by key of `out/bench.json`; a value computed rather than timed has no spread.
    """

    case: str
    settings: dict[str, object]
    contestants: dict[str, dict[str, object]] = field(default_factory=dict)
    ratios: dict[str, Spread] = field(default_factory=dict)


def alternate(contestants: Sequence[Contestant], effort: Effort) -> dict[str, list[float]]:
    """Seconds a step of each contestant in each round.

    Each round starts with another contestant: none always follows the same one.
    """
    for contestant in contestants:
        for _ in range(effort.warmup_steps):
            contestant.step()
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(effort.rounds):
        first = number % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            started = time.perf_counter()
            for _ in range(effort.steps):
                contestant.step()
            taken = (time.perf_counter() - started) / effort.steps
            seconds[contestant.name].append(taken)
    return seconds


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    if len(values) < 2:
        return Spread(median=values[0], lower_quartile=values[0], upper_quartile=values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, lower_quartile=lower, upper_quartile=upper)


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Median over the rounds of over / under; a ratio of medians would mix different moments."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def record(
    contestants: Sequence[Contestant], seconds: dict[str, list[float]]
) -> dict[str, dict[str, object]]:
    """What the JSON keeps of each contestant."""
    records: dict[str, dict[str, object]] = {}
    for contestant in contestants:
        taken = spread(seconds[contestant.name])
        records[contestant.name] = {
            "step_seconds": taken.median,
            "step_seconds_lower_quartile": taken.lower_quartile,
            "step_seconds_upper_quartile": taken.upper_quartile,
            "tokens_per_second": contestant.tokens / taken.median,
            "tokens_per_step": contestant.tokens,
            "parameters": contestant.parameters,
            "precision": contestant.precision,
        }
    return records
