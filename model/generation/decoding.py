"""Rows that are generated together: they come and go, and each is as if it were alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.batch import PackedSpans
from model.generation.choices import Choices
from model.generation.picking import GREEDY, Ending, Sampling, Token, likeliest, pick, told
from model.generation.scoring import read_all
from model.reading import Cache, Read, Reading


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be generated behind a prompt.

    Attributes:
        max_new_tokens: at most this many; fewer if the decoder's positions run out.
        sampling: how tokens are picked.
        stop_tokens: each ends the row, and is none of its tokens.
        choices: what is generated is one of these.
        num_top: how many of the likeliest tokens to tell of with each; None tells no
            log-probabilities at all, which costs least.
        echoes: whether to tell of the prompt's tokens too.
        adapter: name of the adapter to compute with; None is the base alone.
    """

    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop_tokens: frozenset[int] = frozenset()
    choices: Choices | None = None
    num_top: int | None = None
    echoes: bool = False
    adapter: str | None = None


@dataclass(eq=False)
class Row:
    """A prompt that is continued.

    Attributes:
        request: what is to be generated.
        most: tokens that it may have.
        tokens: generated so far.
        echo: the prompt's tokens, if they are asked for.
        ending: None as long as it goes on.
    """

    request: Request
    most: int
    generator: torch.Generator
    tokens: list[Token] = field(default_factory=list[Token])
    echo: list[Token] = field(default_factory=list[Token])
    ending: Ending | None = None

    @property
    def ids(self) -> list[int]:
        """Of its tokens."""
        return [token.id for token in self.tokens]

    def take(self, token: Token) -> None:
        """The next token, which may end the row."""
        request = self.request
        if token.id in request.stop_tokens:
            self.ending = "stop"
            return
        allowed = request.choices.allowed(self.ids) if request.choices else None
        if allowed is not None and token.id not in allowed:
            raise AssertionError("picked among what is allowed")
        self.tokens.append(token)
        if request.choices and not request.choices.allowed(self.ids):
            self.ending = "stop"
        elif len(self.tokens) >= self.most:
            self.ending = "length"


class Decoding:
    """Rows that are generated together.

    Every rank that takes part must make the same calls.

    Args:
        read: what computes.
        most_slots: positions that the decoder has.
        device: where the model is.
        is_live: whether the model is in training: weights that ZeRO-3 gathers meanwhile must stay
            such as can be differentiated. Without, torch does less for each small tensor.

    Attributes:
        rows: those that go on; each has one token that was not read yet.
    """

    def __init__(self, read: Read, *, most_slots: int, device: torch.device, is_live: bool = False):
        self._quiet = torch.no_grad if is_live else torch.inference_mode
        self.rows: list[Row] = []
        self._read = read
        self._most_slots = most_slots
        self._device = device
        self._cache = Cache()

    def admit(
        self,
        prompts: Sequence[Sequence[int]],
        requests: Sequence[Request],
        *,
        spans: Mapping[str, PackedSpans] | None = None,
    ) -> list[Row]:
        """Read prompts, and pick the first token behind each.

        Args:
            prompts: tokens of each.
            requests: one a prompt.
            spans: of the prompts, packed for [B, S] where S is the longest prompt.

        Returns:
            A row for each; those that have not ended go on with the next `step`.

        Raises:
            ValueError: a prompt is empty, or longer than the decoder's positions.
            FloatingPointError: the model diverged, or its weights are damaged.
        """
        rows: list[Row] = []
        for prompt, request in zip(prompts, requests, strict=True):
            length, most = len(prompt), self._most_slots
            if not prompt:
                raise ValueError("a prompt has no tokens: give it one")
            if length > most:
                raise ValueError(
                    f"the prompt has {length} tokens but the decoder {most} positions: shorten it"
                )
            # The last new token is read by nobody: it takes no slot.
            room = min(request.max_new_tokens, most + 1 - length)
            generator = torch.Generator(self._device).manual_seed(request.sampling.seed)
            rows.append(Row(request, room, generator, ending=None if room else "length"))
        if all(row.ending and not row.request.echoes for row in rows):
            return rows
        cache = Cache(min(self._most_slots, max(map(len, prompts)) + max(r.most for r in rows)))
        adapters = [request.adapter for request in requests]
        options: Any = {"device": self._device, "spans": spans, "adapters": adapters}
        with self._quiet():
            if any(row.request.echoes for row in rows):
                num_top = max(row.request.num_top or 0 for row in rows)
                logits, echoes = read_all(self._read, prompts, cache, num_top=num_top, **options)
                for row, echo in zip(rows, echoes, strict=True):
                    row.echo = echo if row.request.echoes else []
            else:
                reading = Reading.of(prompts, cache, **options)
                logits = self._read(reading)
                reading.done()
            self._advance(rows, logits)
            going_on = [index for index, row in enumerate(rows) if row.ending is None]
            cache.select(going_on)
            if going_on and not self.rows:
                self._cache = cache
            elif going_on:
                self._cache.join(cache)
        self.rows += [rows[index] for index in going_on]
        return rows

    def step(self) -> list[Row]:
        """One token more for each row.

        Returns:
            The rows that got one, or have ended instead; these are none of `rows` any more.

        Raises:
            FloatingPointError: the model diverged, or its weights are damaged.
        """
        rows = list(self.rows)
        if not rows:
            return rows
        newest = [[row.tokens[-1].id] for row in rows]
        adapters = [row.request.adapter for row in rows]
        with self._quiet():
            reading = Reading.of(newest, self._cache, device=self._device, adapters=adapters)
            self._advance(rows, self._read(reading))
            reading.done()
        for row in rows:
            if row.ending is not None:
                self.drop(row)
        return rows

    def drop(self, row: Row) -> None:
        """Go on without a row."""
        index = self.rows.index(row)
        with self._quiet():
            self._cache.drop(index)
        self.rows[index] = self.rows[-1]
        self.rows.pop()
        if not self.rows:
            self._cache = Cache()

    def _advance(self, rows: Sequence[Row], logits: Float[Tensor, "B V"]) -> None:
        """The next token of each row that goes on."""
        tokens = likeliest(logits)
        for index, row in enumerate(rows):
            request = row.request
            if row.ending is not None:
                continue
            if request.choices is not None:
                allowed = request.choices.allowed(row.ids)
                among = logits[index, allowed]
                tokens[index] = allowed[pick(among, request.sampling, row.generator)]
            elif not request.sampling.is_greedy:
                tokens[index] = pick(logits[index], request.sampling, row.generator)
        found = [Token(token, nan) for token in tokens]
        asking = [index for index, row in enumerate(rows) if row.request.num_top is not None]
        if asking:
            some = logits if len(asking) == len(rows) else logits[asking]
            num_top = [rows[index].request.num_top or 0 for index in asking]
            answers = told(some, [tokens[index] for index in asking], num_top=num_top)
            for index, token in zip(asking, answers, strict=True):
                found[index] = token
        for row, token in zip(rows, found, strict=True):
            if row.ending is None:
                row.take(token)


def generate(
    read: Read,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[Request],
    *,
    most_slots: int,
    device: torch.device,
    spans: Mapping[str, PackedSpans] | None = None,
    is_live: bool = False,
) -> list[Row]:
    """Continue all prompts to their ends; arguments and errors are those of `Decoding`."""
    decoding = Decoding(read, most_slots=most_slots, device=device, is_live=is_live)
    rows = decoding.admit(prompts, requests, spans=spans)
    while decoding.step():
        pass
    return rows
