"""Asks a model, in batches and under any layout; what was answered before is not asked again."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from model.generation.beam import BeamSearch, beam_search
from model.generation.decoding import Request, generate
from model.generation.picking import Token
from model.generation.scoring import score
from model.reading import Read
from model.semicausal import ModelConfig
from parallel.agreement import gathered, on_first_rank, raise_first
from parallel.mesh import Mesh
from train.asked import Prompt, pack
from train.errors import UserError
from train.scores.answers import Answer, Answers
from train.scores.request import Generation, Likelihood, Likelihoods, key_of

_ROWS_A_CONTEXT: Final = 8
"""Continuations that are read at once, for each context of a batch; a context's own always are."""

Asked = Likelihoods | Generation


class Scorer:
    """Asks a model; all methods must be called by every rank, with the same arguments.

    Requests are sorted by length, so that those of a batch are about as long, and the longest come
    first. What shares a context is one request, and reads it once. The answers do not depend on
    what else is asked, on the batch, or on the layout, but for the rounding of the last bits.

    Args:
        read: computes with the model, in evaluation mode.
        mesh: this rank's place.
        weights: which they are; answers are kept under them.
        answers: where answers are kept, on the first rank; None on the others.
        model: what reads; the whole of it.
        batch: contexts that a rank reads at once.
        is_live: whether the model is in training; all ranks then read the same, as ZeRO-3 wants it.
    """

    def __init__(
        self,
        read: Read,
        mesh: Mesh,
        *,
        weights: str,
        answers: Answers | None,
        model: ModelConfig,
        batch: int,
        is_live: bool = False,
    ):
        self.computed = 0
        """Answers that were computed, and not found."""
        self.to_compute = 0
        """Answers that were not found: those computed, and those that will be now."""
        self._read = read
        self._mesh = mesh
        self._weights = weights
        self._answers = answers
        self._model = model
        self._batch = batch
        self._is_live = is_live

    def ask(self, requests: Sequence[Asked]) -> list[list[Answer]]:
        """The answers, on the first rank; nothing on the others.

        Args:
            requests: each with room in the decoder.

        Returns:
            Of each request a likelihood for each continuation, or the tokens generated.

        Raises:
            UserError: what the model predicts is not finite; or answers cannot be kept.
        """
        missing = on_first_rank(lambda: self._missing(requests), UserError)
        units = [_part(requests[number], places) for number, places in missing]
        keys = [[self._key(unit, place) for place in range(_size(unit))] for unit in units]
        self.to_compute += sum(map(len, keys))
        batches = [*self._batches(units)]
        size, rank = self._mesh.data_size, self._mesh.data_rank
        speaks = self._mesh.speaks_for_sample
        if self._is_live:
            size, rank, speaks = 1, 0, self._mesh.world.is_main
        for first in range(0, len(batches), size):
            mine = first + rank
            # A rank without work does another's again: a forward may need all ranks.
            batch = batches[min(mine, len(batches) - 1)]
            found = self._together([units[number] for number in batch])
            told: dict[str, Answer] = {}
            if mine < len(batches) and speaks:
                for number, answers in zip(batch, found, strict=True):
                    told |= dict(zip(keys[number], answers, strict=True))
            everyone = gathered(told)
            for each in everyone:
                self.computed += len(each)
            on_first_rank(lambda everyone=everyone: self._keep(everyone), UserError)
        if self._answers is None:
            return []
        return [
            [self._answers[self._key(request, place)] for place in range(_size(request))]
            for request in requests
        ]

    def close(self) -> None:
        """Let others keep answers in its file."""
        if self._answers is not None:
            self._answers.close()

    def _missing(self, requests: Sequence[Asked]) -> list[tuple[int, list[int]]]:
        """Numbers of the requests with no answer yet, each once, and which parts of them."""
        assert self._answers is not None, "the first rank keeps answers"
        found: list[tuple[int, list[int]]] = []
        seen = set[str]()
        for number, request in enumerate(requests):
            places: list[int] = []
            for place in range(_size(request)):
                key = self._key(request, place)
                if key not in self._answers and key not in seen:
                    seen.add(key)
                    places.append(place)
            if places:
                found.append((number, places))
        return found

    def _keep(self, everyone: Sequence[dict[str, Answer]]) -> None:
        assert self._answers is not None, "the first rank keeps answers"
        for told in everyone:
            try:
                self._answers.add(told)
            except OSError as error:
                raise UserError(
                    f"answers cannot be kept ({error.strerror or error}): make room, and run again "
                    "to go on from here"
                ) from None

    def _key(self, request: Asked, place: int) -> str:
        if isinstance(request, Generation):
            return key_of(self._weights, request)
        return key_of(self._weights, request.context, request.continuations[place])

    def _batches(self, units: Sequence[Asked]) -> Iterator[list[int]]:
        """Numbers of units of one kind and nearly one length; the longest first."""
        order = sorted(
            range(len(units)), key=lambda number: (_kind(units[number]), -units[number].slots)
        )
        batch: list[int] = []
        rows = 0
        for number in order:
            unit = units[number]
            more = _size(unit)
            is_full = len(batch) == self._batch or rows + more > self._batch * _ROWS_A_CONTEXT
            if batch and (is_full or _kind(unit) != _kind(units[batch[0]])):
                yield batch
                batch, rows = [], 0
            batch.append(number)
            rows += more
        if batch:
            yield batch

    def _together(self, units: Sequence[Asked]) -> list[list[Answer]]:
        """As `_compute`; what is not finite in one copy of the model, the others do not see."""
        found: list[list[Answer]] = []
        fault: UserError | None = None
        try:
            found = self._compute(units)
        except UserError as error:
            fault = error
        raise_first(fault, UserError)
        return found

    def _compute(self, units: Sequence[Asked]) -> list[list[Answer]]:
        prompts = [
            Prompt(
                tokens=[*unit.context.tokens],
                spans=[*unit.context.spans],
                items=[*unit.context.items],
            )
            for unit in units
        ]
        contexts = [prompt.tokens for prompt in prompts]
        device = self._mesh.world.device
        spans = pack(self._model, prompts, device=device)
        try:
            if isinstance(units[0], Likelihoods):
                asked = [unit for unit in units if isinstance(unit, Likelihoods)]
                texts = [[each.tokens for each in unit.continuations] for unit in asked]
                found = score(self._read, contexts, texts, device=device, spans=spans, num_top=1)
                return [
                    [
                        _likelihood(tokens[each.given :])
                        for tokens, each in zip(some, unit.continuations, strict=True)
                    ]
                    for some, unit in zip(found, asked, strict=True)
                ]
            wanted = [unit for unit in units if isinstance(unit, Generation)]
            most_slots = self._model.decoder.max_tokens
            if wanted[0].beams > 1:
                best = beam_search(
                    self._read,
                    contexts,
                    _beams(wanted[0]),
                    most_slots=most_slots,
                    device=device,
                    spans=spans,
                )
                return [[[*each.ids]] for each in best]
            requests = [
                Request(max_new_tokens=unit.max_new_tokens, stop_tokens=frozenset(unit.stop_tokens))
                for unit in wanted
            ]
            rows = generate(
                self._read,
                contexts,
                requests,
                most_slots=most_slots,
                device=device,
                spans=spans,
                is_live=self._is_live,
            )
            return [[row.ids] for row in rows]
        except FloatingPointError as error:
            raise UserError(f"{error}: name another checkpoint") from None


def _kind(unit: Asked) -> tuple[object, ...]:
    """Equal for those that can be computed together."""
    if isinstance(unit, Likelihoods):
        return (0,)
    if unit.beams == 1:
        return (1,)
    return (unit.beams, unit.length_penalty, unit.max_new_tokens, *unit.stop_tokens)


def _size(unit: Asked) -> int:
    return len(unit.continuations) if isinstance(unit, Likelihoods) else 1


def _part(unit: Asked, places: Sequence[int]) -> Asked:
    if isinstance(unit, Generation):
        return unit
    return replace(unit, continuations=tuple(unit.continuations[place] for place in places))


def _likelihood(tokens: Sequence[Token]) -> Likelihood:
    # Of each token in fp32, added up in fp64.
    found = sum(token.log_probability for token in tokens)
    if not math.isfinite(found):
        raise FloatingPointError("what the model predicts is not finite")
    return Likelihood(
        log_likelihood=min(0.0, found),
        tokens=len(tokens),
        # Of several that are equally likely, whichever is asked for.
        is_greedy=all(token.log_probability >= token.top[0][1] for token in tokens),
    )


def _beams(unit: Generation) -> BeamSearch:
    return BeamSearch(
        num_beams=unit.beams,
        length_penalty=unit.length_penalty,
        max_new_tokens=unit.max_new_tokens,
        stop_token=unit.stop_tokens[0],
    )
