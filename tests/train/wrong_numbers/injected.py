"""Runs whose numbers go wrong: from a document, whenever it is read, or from one rank, once.

Functions here are `main` of a run's processes (`tests.train.runs`); the environment says where.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model.decoder import Decoder
from model.semicausal import SemiCausal
from tests.train.runs import TINY_RUN, train
from tools.chaos.injected import places_of, spoil
from train import loop
from train.build import build_plan
from train.config import RunConfig
from train.config_files import load
from train.data.feed import Feed
from train.data.plan import Entry
from train.errors import DataError, RunDirectoryError
from train.step import PendingStep

POISON: Final = "POISON"
"""Sequences of tokens whose embeddings are spoiled, as JSON."""
BEHIND: Final = "BEHIND"
"""The step that cannot be read."""
STRUCK: Final = "STRUCK"
"""Rank and step of which the activations are not finite, once; as JSON."""


def sample_of(corpus: Path, *, step: int, entry: int) -> list[int]:
    """Tokens of one entry of a step of the tiny run."""
    found = _entry(corpus, step, entry)
    return found.source.read(found.sequence).tokens.tolist()


def documents_of(corpus: Path, *, step: int, entry: int) -> list[int]:
    """Numbers of the documents in it."""
    return _entry(corpus, step, entry).sequence.parts[:, 0].tolist()


def _entry(corpus: Path, step: int, entry: int) -> Entry:
    places = (f"data.corpus={corpus}", "run_directory=unused", f"steps={step}")
    return build_plan(load(RunConfig, [str(TINY_RUN), *places])).step(step)[entry]


def broken(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """A rank of a model that some samples break."""
    spoil(json.loads(environment[POISON]))
    train(arguments, output, environment)


def spiking(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """A rank of a model that is too sure of what some samples say."""
    samples = [torch.tensor(tokens[:-1]) for tokens in json.loads(environment[POISON])]
    forward, leave, is_due = SemiCausal.forward, Decoder.leave, [False]

    def watched(self: SemiCausal, batch: Any, *given: Any, **options: Any) -> Any:
        is_due[0] = any(places_of(sample, batch.tokens.reshape(-1)) for sample in samples)
        return forward(self, batch, *given, **options)

    def spoiled(self: Decoder, rows: Tensor) -> Tensor:
        return leave(self, rows) * (50.0 if is_due[0] else 1.0)

    SemiCausal.forward, Decoder.leave = watched, spoiled
    train(arguments, output, environment)


def spiking_and_full(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """The same, of a run whose directory is full once it goes back."""
    open_ledger, opened = loop.open_ledger, list[int]()

    def failing(*given: Any) -> Any:
        opened.append(given[-1])
        if len(opened) > 1:
            raise RunDirectoryError("the ledger cannot be written")
        return open_ledger(*given)

    loop.open_ledger = failing
    spiking(arguments, output, environment)


def spiking_and_unread(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """The same, of a run that cannot read what follows the spikes, and hears of these later.

    As on a GPU, of which a step is known to be made when the next one has been launched.
    """
    setattr(PendingStep, "is_done", False)  # noqa: B010  # a property without a setter
    try_step, behind = Feed.try_step, int(environment[BEHIND])

    def failing(self: Feed, step: int) -> Any:
        return DataError("a shard is damaged") if step == behind else try_step(self, step)

    Feed.try_step = failing
    spiking(arguments, output, environment)


def struck(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """A rank that may compute what is not finite, once."""
    rank, step = json.loads(environment[STRUCK])
    run, accumulate, due = Decoder.run, loop.accumulate, [False]
    reseed, now = loop.reseed, [0]

    def watched(seed: int, *, step: int, mesh: Any) -> None:
        now[0] = step
        reseed(seed, step=step, mesh=mesh)

    def accumulated(*given: Any, **options: Any) -> Any:
        due[0] = now[0] == step and environment["RANK"] == str(rank)
        now[0] = 0
        return accumulate(*given, **options)

    def spoiled(self: Decoder, *given: Any, **options: Any) -> Tensor:
        rows = run(self, *given, **options)
        if due[0]:
            due[0] = False
            return rows * math.nan
        return rows

    Decoder.run, loop.accumulate, loop.reseed = spoiled, accumulated, watched
    os.environ.pop(STRUCK, None)
    train(arguments, output, environment)
