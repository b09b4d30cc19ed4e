"""Runs the contestants in turn, so that background load affects all of them equally."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Step = Callable[[], object]
"""One whole unit of work, say a training step."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to look.

    Attributes:
        rounds: turns of each contestant.
        steps: steps in a turn.
        warmup_steps: steps before the first turn, not measured.
    """

    rounds: int
    steps: int = 1
    warmup_steps: int = 1


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


def contestants(
    steps: Mapping[str, Step], *, tokens: int, parameters: int = 0, precision: str = ""
) -> list[Contestant]:
    """Those that differ in nothing but what is timed."""
    return [
        Contestant(name=name, step=step, tokens=tokens, parameters=parameters, precision=precision)
        for name, step in steps.items()
    ]


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
        settings: shape and conditions, for the record.
        contestants: by name, what each took.
        ratios: by key of `out/bench.json`; a value computed rather than timed has no spread.
        processor_ratios: of what was timed in turns, the same in seconds of processor time of this
            process: what other processes leave less disturbed.
    """

    settings: dict[str, object]
    contestants: dict[str, dict[str, object]] = field(default_factory=dict)
    ratios: dict[str, Spread] = field(default_factory=dict)
    processor_ratios: dict[str, Spread] = field(default_factory=dict)

    def compare(
        self,
        contestants: Sequence[Contestant],
        effort: Effort,
        ratios: Mapping[str, tuple[str, str]],
    ) -> dict[str, list[float]]:
        """Time contestants in turn; note what each took, and the ratios.

        Args:
            contestants: those compared.
            effort: how long to look.
            ratios: names of the contestants whose seconds are over and under the line, by key.

        Returns:
            As `alternate`.
        """
        processor: dict[str, list[float]] = {}
        seconds = alternate(contestants, effort, processor=processor)
        for contestant in contestants:
            taken = spread(seconds[contestant.name])
            self.contestants[contestant.name] = {
                "step_seconds": taken.median,
                "step_seconds_lower_quartile": taken.lower_quartile,
                "step_seconds_upper_quartile": taken.upper_quartile,
                "step_processor_seconds": spread(processor[contestant.name]).median,
                "tokens_per_second": contestant.tokens / taken.median,
                "tokens_per_step": contestant.tokens,
                "parameters": contestant.parameters,
                "precision": contestant.precision,
            }
        for key, (over, under) in ratios.items():
            self.ratios[key] = ratio(seconds[over], seconds[under])
            self.processor_ratios[key] = ratio(processor[over], processor[under])
        return seconds


def turns(contestants: Sequence[T], rounds: int) -> Iterator[T]:
    """Each once a round, which starts with another every time: none always follows the same one."""
    for number in range(rounds):
        first = number % len(contestants)
        yield from (*contestants[first:], *contestants[:first])


def alternate(
    contestants: Sequence[Contestant],
    effort: Effort,
    *,
    processor: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """Seconds a step of each contestant in each round.

    Args:
        contestants: those compared.
        effort: how long to look.
        processor: receives the same in seconds of processor time.
    """
    for contestant in contestants:
        for _ in range(effort.warmup_steps):
            contestant.step()
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    used: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for contestant in turns(contestants, effort.rounds):
        started, processor_started = time.perf_counter(), time.process_time()
        for _ in range(effort.steps):
            contestant.step()
        used[contestant.name].append((time.process_time() - processor_started) / effort.steps)
        seconds[contestant.name].append((time.perf_counter() - started) / effort.steps)
    if processor is not None:
        processor |= used
    return seconds


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    lower, median, upper = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else 3 * [values[0]]
    )
    return Spread(median=median, lower_quartile=lower, upper_quartile=upper)


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Median over the rounds of over / under; a ratio of medians would mix different moments."""
    return spread([a / b for a, b in zip(over, under, strict=True)])
