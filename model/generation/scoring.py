"""Log-probabilities of token sequences that are given, behind contexts that are read once."""

from collections.abc import Mapping, Sequence
from math import nan

import torch
from torch import Tensor

from model.batch import PackedSpans
from model.generation.picking import Token, told
from model.reading import Cache, Read, Reading

MOST_SLOTS = 256
"""Of a row that are read at once where all their logits are wanted."""


@torch.no_grad()
def read_all(
    read: Read,
    prompts: Sequence[Sequence[int]],
    cache: Cache,
    *,
    device: torch.device,
    spans: Mapping[str, PackedSpans] | None = None,
    num_top: int = 0,
    adapters: Sequence[str | None] = (),
) -> tuple[Tensor, list[list[Token]]]:
    """Read prompts into an empty cache, and tell of all their tokens.

    Args:
        read: what computes.
        prompts: tokens of each, at least one.
        cache: to read into.
        device: where the model is.
        spans: of the prompts, packed for [B, S] where S is the longest prompt.
        num_top: how many of the likeliest tokens to tell of beside each.
        adapters: see `Reading`.

    Returns:
        The logits [B, V] behind each prompt; and its tokens, of which the first has no probability.

    Raises:
        FloatingPointError: the model diverged, or its weights are damaged.
    """
    found = [[Token(prompt[0], nan)] for prompt in prompts]
    longest = max(map(len, prompts))
    last: list[Tensor | None] = [None] * len(prompts)
    at_once = longest if spans else MOST_SLOTS  # spans are read with all their slots
    for start in range(0, longest, at_once):
        pieces = [prompt[start : start + at_once] for prompt in prompts]
        reading = Reading.of(
            pieces, cache, device=device, spans=spans, wants_all=True, adapters=adapters
        )
        logits = read(reading)
        reading.done()
        rows: list[int] = []
        places: list[int] = []
        place = 0
        for row, piece in enumerate(pieces):
            for slot in range(start, start + len(piece)):
                if slot + 1 == len(prompts[row]):
                    last[row] = logits[place]
                else:
                    rows.append(row)
                    places.append(place)
                place += 1
        if rows:
            _take(found, rows, logits[places], prompts, num_top=num_top)
    return torch.stack([each for each in last if each is not None]), found


@torch.no_grad()
def score(
    read: Read,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    *,
    device: torch.device,
    spans: Mapping[str, PackedSpans] | None = None,
    num_top: int = 0,
) -> list[list[list[Token]]]:
    """Log-probability of each token of each continuation, given all before it.

    Each context is read once, however many continuations it has. Every rank that takes part must
    call it.

    Args:
        read: what computes.
        contexts: tokens of each, at least one.
        continuations: some of each context, none of them empty. A context and its continuation
            have one token more at most than the decoder has positions.
        device: where the model is.
        spans: of the contexts, packed for [B, S] where S is the longest context.
        num_top: how many of the likeliest tokens to tell of beside each; 1 tells whether it was the
            likeliest itself.

    Returns:
        The tokens as they were given, with what is told of each.

    Raises:
        FloatingPointError: the model diverged, or its weights are damaged.
    """
    cache = Cache()
    reading = Reading.of(contexts, cache, device=device, spans=spans)
    logits = read(reading)
    reading.done()
    owners = [index for index, some in enumerate(continuations) for _ in some]
    flat = [list(tokens) for some in continuations for tokens in some]
    if not flat:
        return [[] for _ in contexts]
    cache.select(owners)
    found: list[list[Token]] = [[] for _ in flat]
    _take(found, list(range(len(flat))), logits[owners], flat, num_top=num_top)
    # Rows that have ended would be read on for nothing: the longest come first, and stay.
    order = sorted(range(len(flat)), key=lambda index: -len(flat[index]))
    cache.select(order)
    start = 0
    while order := [index for index in order if len(flat[index]) - 1 > start]:
        cache.select(range(len(order)))
        pieces = [
            flat[index][start : min(start + MOST_SLOTS, len(flat[index]) - 1)] for index in order
        ]
        reading = Reading.of(pieces, cache, device=device, wants_all=True)
        logits = read(reading)
        reading.done()
        rows = [index for index, piece in zip(order, pieces, strict=True) for _ in piece]
        _take(found, rows, logits, flat, num_top=num_top)
        start += MOST_SLOTS
    scored = iter(found)
    return [[next(scored) for _ in some] for some in continuations]


def _take(
    found: list[list[Token]],
    rows: Sequence[int],
    logits: Tensor,
    flat: Sequence[Sequence[int]],
    *,
    num_top: int,
) -> None:
    """Tell of the next token of each named row; one is named as often as it has logits here."""
    if not logits.isfinite().all():
        raise FloatingPointError("what the model predicts is not finite")
    next_of = {row: len(found[row]) for row in rows}
    tokens: list[int] = []
    for row in rows:
        tokens.append(flat[row][next_of[row]])
        next_of[row] += 1
    answers = told(logits, tokens, num_top=[num_top] * len(rows))
    for row, token in zip(rows, answers, strict=True):
        found[row].append(token)
