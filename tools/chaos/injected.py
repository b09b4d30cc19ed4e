"""What goes wrong in a rank's numbers, its pace or its machine, by what the environment says."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model.decoder import Decoder
from parallel import launch
from train import loop

SLOW: Final = "FAULT_SECONDS_A_STEP"
"""Seconds that each step takes longer."""
LAME: Final = "FAULT_LAME"
"""`NODE SECONDS`: its ranks compute so much longer in each step."""
STRUCK: Final = "FAULT_STRUCK"
"""`RANK STEP`: what this rank computes in this step is not finite, once."""
STRIKING: Final = "FAULT_STRIKING"
"""A directory: the rank for which a file of its number lies there takes it away, and what it
computes next is not finite, once."""
BROKEN: Final = "FAULT_BROKEN"
"""`STEP`, or `RANK STEP`: what is computed in it is not finite, as often as it is computed."""
POISON: Final = "FAULT_POISON"
"""A file of sequences of tokens whose embeddings are spoiled, as JSON."""
SPIKING: Final = "FAULT_SPIKING"
"""`FIRST LAST`: from the one step to the other the model is too sure."""
GREEDY: Final = "FAULT_GREEDY"
"""Bytes that each step asks for and gives back."""
OLD: Final = "FAULT_OLD"
"""`RANK`: whose processor multiplies no bf16, while those of all others do."""

_OLD_PROCESSOR: Final = "model name : Old\nflags : fpu avx2\n"
_NEW_PROCESSOR: Final = "model name : New\nflags : fpu amx_bf16\n"


def into(environment: Mapping[str, str]) -> None:
    """Make this rank go wrong."""
    rank, node = environment.get("SLURM_PROCID", "0"), environment.get("SLURMD_NODENAME")
    lame, lame_seconds = environment.get(LAME, "- 0").split()
    seconds, own_seconds = float(environment.get(SLOW, "0")), float(lame_seconds)
    is_lame = lame == node
    greedy = int(environment.get(GREEDY, "0"))
    if OLD in environment:
        text = _OLD_PROCESSOR if environment[OLD] == rank else _NEW_PROCESSOR
        launch._cpuinfo = lambda: text
    if POISON in environment:
        spoil(json.loads(Path(environment[POISON]).read_text()))
    now, due, lamed = [0], [True], [0]
    striking = environment.get(STRIKING)
    struck, broken = (environment.get(name, "").split() for name in (STRUCK, BROKEN))
    first, last = (int(text) for text in environment.get(SPIKING, "0 0").split())
    reseed, run, leave = loop.reseed, Decoder.run, Decoder.leave

    def watched(seed: int, *, step: int, mesh: Any) -> None:
        now[0] = step
        time.sleep(seconds)
        reseed(seed, step=step, mesh=mesh)

    def spoiled(self: Decoder, *given: Any, **options: Any) -> Tensor:
        rows = run(self, *given, **options)
        if not self.training:
            return rows
        if is_lame and lamed[0] != now[0]:
            lamed[0] = now[0]
            time.sleep(own_seconds)
        torch.empty(greedy, dtype=torch.uint8)
        if broken in ([str(now[0])], [rank, str(now[0])]):
            return rows * math.nan
        if struck == [rank, str(now[0])] and due[0]:
            due[0] = False
            return rows * math.nan
        if striking is not None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(striking, rank))
                return rows * math.nan
        return rows

    def sure(self: Decoder, rows: Tensor) -> Tensor:
        is_spike = self.training and first <= now[0] <= last
        return leave(self, rows) * (50.0 if is_spike else 1.0)

    loop.reseed, Decoder.run, Decoder.leave = watched, spoiled, sure


def spoil(sequences: Sequence[Sequence[int]]) -> None:
    """Have samples break the loss of this rank, as often as they are read.

    Args:
        sequences: their tokens.
    """
    samples = [torch.tensor(tokens[:-1]) for tokens in sequences]
    embed = Decoder.embed

    def spoiled(self: Decoder, tokens: Tensor) -> Tensor:
        vectors, flat = embed(self, tokens), tokens.reshape(-1)
        factors = torch.ones(flat.shape)
        for sample in samples:
            for at in places_of(sample, flat):
                factors[at : at + len(sample)] = math.nan
        return vectors * factors.view(*tokens.shape, 1)

    Decoder.embed = spoiled


def places_of(sample: Tensor, tokens: Tensor) -> list[int]:
    """Where a sample begins among tokens."""
    if len(sample) > len(tokens):
        return []
    return (tokens.unfold(0, len(sample), 1) == sample).all(dim=1).nonzero().flatten().tolist()
