"""Shares the sequences of each global batch among the sources.

Weights are shares of sequences, and so of tokens, for sequences are full. A source's target is its
share of all sequences so far. After every step the sequences read from it differ from the target by
at most two, and by at most one unless weights jump from step to step. No random numbers decide how
many sequences a source gives, so nothing depends on ranks or restarts.
"""

import math
from itertools import count, pairwise
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from model.config import Config, PathText
from train.errors import ConfigError

Ints = npt.NDArray[np.int64]

Bounded = Annotated[float, Field(ge=-1e9, le=1e9)]

_MIX: Final = 4
_STEPS_AT_ONCE: Final = 4_096


class SourceConfig(Config):
    """One source of a mixture. Its share is a weight, or follows from epochs or tokens."""

    corpus: PathText
    """Directory or `s3://bucket/path` that `tools.corpus` wrote."""
    weight: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Beside the weights of the other sources; 1 where nothing is said."""
    weight_by_step: list[Annotated[list[Bounded], Field(min_length=2, max_length=2)]] | None = None
    """[step, weight] pairs in rising order; in between, the weight changes evenly."""
    epochs: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """How often the run goes through its training documents, spread evenly over the steps."""
    tokens: Annotated[int, Field(ge=1, le=2**60)] | None = None
    """How many of its tokens the run reads, spread evenly over the steps."""

    @model_validator(mode="after")
    def _one_share(self) -> "SourceConfig":
        given = [
            name
            for name in ("weight", "weight_by_step", "epochs", "tokens")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"say one of {', '.join(given)}, not several")
        if self.weight_by_step is not None:
            steps = [step for step, _ in self.weight_by_step]
            rising = all(a < b for a, b in pairwise(steps))
            if not steps or not rising or min(weight for _, weight in self.weight_by_step) < 0:
                raise ValueError(
                    "weight_by_step needs [step, weight] pairs with rising steps and weights of 0 "
                    "or more"
                )
        return self

    @property
    def is_budgeted(self) -> bool:
        """Whether its share follows from an amount."""
        return self.epochs is not None or self.tokens is not None

    def weights(self, steps: int) -> npt.NDArray[np.float64]:
        """[steps] its weight at each step, from step 1."""
        if self.weight_by_step is None:
            return np.full(steps, 1.0 if self.weight is None else self.weight)
        points = np.array(self.weight_by_step)
        return np.interp(np.arange(1, steps + 1), points[:, 0], points[:, 1])


def shares(
    sources: dict[str, SourceConfig], amounts: dict[str, int], *, steps: int, sequences: int
) -> npt.NDArray[np.float64]:
    """[steps, sources] share of each step's sequences that each source gives; a step sums to 1.

    Args:
        sources: by name.
        amounts: sequences that each source with a budget is to give in the whole run.
        steps: of the run.
        sequences: of a step.

    Raises:
        ConfigError: budgets exceed the run, or do not fill it and no source has a weight.
    """
    # With data.span_choices a step holds each sequence several times; here it counts once.
    total = steps * sequences
    wanted = sum(amounts.values())
    weighted = [name for name, source in sources.items() if not source.is_budgeted]
    if wanted > total:
        raise ConfigError(
            f"data.sources: budgets ask for {wanted:,} sequences, but the run has {total:,} "
            f"({steps:,} steps of {sequences}): lower epochs or tokens, or raise steps to "
            f"{math.ceil(wanted / sequences):,}"
        )
    if wanted < total and not weighted:
        raise ConfigError(
            f"data.sources: budgets give {wanted:,} sequences, but the run needs {total:,} "
            f"({steps:,} steps of {sequences}): give one source a weight, raise epochs or tokens, "
            f"or lower steps to {wanted // sequences:,}"
        )
    table = np.zeros((steps, len(sources)))
    rest = 1.0 - wanted / total
    sums = np.zeros(steps)
    for name in weighted:
        sums += sources[name].weights(steps)
    if rest > 0 and (sums <= 0).any():
        step = int(np.flatnonzero(sums <= 0)[0]) + 1
        raise ConfigError(f"data.sources: at step {step} all weights are 0: raise one")
    for column, (name, source) in enumerate(sources.items()):
        if source.is_budgeted:
            table[:, column] = amounts[name] / total
        elif rest > 0:
            table[:, column] = rest * source.weights(steps) / sums
    return table


class Mixture:
    """How each step's sequences are shared among sources.

    Args:
        table: [steps, sources] shares, see `shares`.
        sequences: of a step.
        seed: of the run.
    """

    def __init__(self, table: npt.NDArray[np.float64], *, sequences: int, seed: int):
        self._due = table.cumsum(axis=0) * sequences
        self._sequences = sequences
        self._seed = seed
        self._given = np.zeros((len(table) + 1, table.shape[1]), dtype=np.int64)
        self._known_steps = 0

    @property
    def steps(self) -> int:
        """Of the run."""
        return len(self._due)

    @property
    def mean(self) -> list[float]:
        """[sources] each one's share of the whole run."""
        return (self._due[-1] / self._due[-1].sum()).tolist()

    def due(self, step: int) -> npt.NDArray[np.float64]:
        """[sources] sequences that each source should have given by the end of a step."""
        return self._due[step - 1] if step else np.zeros(self._due.shape[1])

    def given(self, step: int) -> Ints:
        """[sources] sequences that each source has given by the end of a step."""
        if step > self._known_steps:
            self._apportion(min(step + _STEPS_AT_ONCE, len(self._due)))
        return self._given[step]

    def history(self, step: int) -> Ints:
        """[step + 1, sources] sequences that each has given by the end of steps 0 to `step`."""
        self.given(step)
        return self._given[: step + 1]

    def step(self, step: int) -> list[tuple[int, int]]:
        """The source of each sequence of a step, and its number among those of the source.

        Args:
            step: counted from 1.
        """
        before = self.given(step - 1)
        counts = self.given(step) - before
        of_sequence = np.repeat(np.arange(len(counts)), counts)
        if len(counts) > 1:
            seeds = np.random.SeedSequence((self._seed, _MIX, step))
            draws = np.random.Philox(seeds).random_raw(self._sequences)
            of_sequence = of_sequence[np.argsort(draws, kind="stable")]
        numbers = [count(first) for first in before.tolist()]
        return [(source, next(numbers[source])) for source in of_sequence.tolist()]

    def _apportion(self, upto: int) -> None:
        """Give each step's sequences to whom they are due, largest remainder first."""
        steps = slice(self._known_steps, upto)
        given: list[int] = self._given[steps.start].tolist()
        found: list[list[int]] = []
        for due in self._due[steps].tolist():
            owed = [d - g for d, g in zip(due, given, strict=True)]
            counts = [max(0, math.floor(o)) for o in owed]
            missing = self._sequences - sum(counts)
            if missing:
                # Who is owed most beyond its count comes first; stable where it is the same.
                order = sorted(range(len(owed)), key=lambda source: counts[source] - owed[source])
                for source in order[: max(0, missing)]:
                    counts[source] += 1
                for source in reversed(order):
                    if missing < 0 and counts[source]:
                        counts[source] -= 1
                        missing += 1
            given = [g + more for g, more in zip(given, counts, strict=True)]
            found.append(given)
        self._given[steps.start + 1 : upto + 1] = found
        self._known_steps = upto
