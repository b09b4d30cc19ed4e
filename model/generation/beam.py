"""Beam search with a length penalty, over many prompts at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.batch import PackedSpans
from model.generation.picking import Ending
from model.reading import Cache, Read, Reading


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """How to search.

    Attributes:
        num_beams: continuations of a prompt that are followed at a time; MetaLM has 4.
        length_penalty: alpha; sums of log-probabilities are divided by ((5 + tokens) / 6)^alpha,
            the stop token counted. 0 is none; MetaLM has 0.6.
        max_new_tokens: at most this many; fewer if the decoder's positions run out.
        stop_token: ends a continuation, and is none of its tokens.

    Source: GNMT (1609.08144) §7, without the coverage penalty; T5 §3.1.
    """

    num_beams: int = 4
    length_penalty: float = 0.6
    max_new_tokens: int
    stop_token: int

    def penalised(self, log_probability: float, num_tokens: int) -> float:
        """Score of a continuation of so many tokens, the stop token counted."""
        return log_probability / ((5 + num_tokens) / 6) ** self.length_penalty


@dataclass(frozen=True, kw_only=True)
class Found:
    """A continuation.

    Attributes:
        ids: its tokens, the stop token left out.
        log_probability: of all its tokens, the stop token counted.
        score: the same with the length penalty.
        ending: whether the stop token ended it, or its length.
    """

    ids: tuple[int, ...]
    log_probability: float
    score: float
    ending: Ending


@dataclass(eq=False)
class _Search:
    """The search behind one prompt.

    Attributes:
        room: tokens that a continuation may have.
        live: those that go on, likeliest first.
        found: those that have ended.
    """

    how: BeamSearch
    room: int
    live: list[tuple[tuple[int, ...], float]] = field(default_factory=lambda: [((), 0.0)])
    found: list[Found] = field(default_factory=list[Found])

    def advance(self, log_probabilities: Tensor) -> list[int]:
        """Follow each live continuation by one token.

        Args:
            log_probabilities: [live, V] of the token behind each.

        Returns:
            Which of the live ones each that now is has come from.
        """
        how, vocabulary = self.how, log_probabilities.shape[1]
        before = log_probabilities.new_tensor([sum_ for _, sum_ in self.live])
        sums = (before[:, None] + log_probabilities).flatten()
        # At most one of each ends here, so that enough of twice as many go on.
        values, places = sums.topk(min(2 * how.num_beams, len(sums)))
        going_on: list[tuple[tuple[int, ...], float]] = []
        sources: list[int] = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            source, token = divmod(place, vocabulary)
            ids = self.live[source][0]
            if token == how.stop_token:
                self._end(ids, value, num_tokens=len(ids) + 1, ending="stop")
            elif len(ids) + 1 == self.room:
                self._end((*ids, token), value, num_tokens=self.room, ending="length")
            elif len(going_on) < how.num_beams:
                going_on.append(((*ids, token), value))
                sources.append(source)
        self.live = going_on
        if self.live and self.found:
            # Sums only fall, and no penalty is milder than that of the longest; or, where length
            # costs, of the next that may end.
            sum_, length = self.live[0][1], len(self.live[0][0]) + 1
            most = max(how.penalised(sum_, length), how.penalised(sum_, self.room))
            if most <= max(each.score for each in self.found):
                self.live = []
        return sources if self.live else []

    def _end(self, ids: tuple[int, ...], sum_: float, *, num_tokens: int, ending: Ending) -> None:
        score = self.how.penalised(sum_, num_tokens)
        self.found.append(Found(ids=ids, log_probability=sum_, score=score, ending=ending))


@torch.no_grad()
def beam_search(
    read: Read,
    prompts: Sequence[Sequence[int]],
    how: BeamSearch,
    *,
    most_slots: int,
    device: torch.device,
    spans: Mapping[str, PackedSpans] | None = None,
) -> list[Found]:
    """The continuation of each prompt that scores best among those that were followed.

    Every rank that takes part must call it.

    Args:
        read: what computes.
        prompts: tokens of each.
        how: to search.
        most_slots: positions that the decoder has; no prompt is longer.
        device: where the model is.
        spans: of the prompts, packed for [B, S] where S is the longest prompt.

    Raises:
        ValueError: there is nothing to generate.
        FloatingPointError: the model diverged, or its weights are damaged.
    """
    if how.max_new_tokens < 1 or how.num_beams < 1:
        raise ValueError("beam search needs a beam and a new token at least")
    rooms = [min(how.max_new_tokens, most_slots + 1 - len(prompt)) for prompt in prompts]
    searches = [_Search(how, room) for room in rooms]
    cache = Cache(min(most_slots, max(map(len, prompts)) + max(rooms)))
    reading = Reading.of(prompts, cache, device=device, spans=spans)
    while True:
        logits = read(reading)
        reading.done()
        if not logits.isfinite().all():
            raise FloatingPointError("what the model predicts is not finite")
        log_probabilities = logits.log_softmax(dim=-1)
        first, sources = 0, list[int]()
        for search in searches:
            num_live = len(search.live)
            if num_live:
                rows = log_probabilities[first : first + num_live]
                sources += [first + source for source in search.advance(rows)]
            first += num_live
        if not sources:
            return [max(search.found, key=lambda each: each.score) for search in searches]
        cache.select(sources)
        newest = [[ids[-1]] for search in searches for ids, _ in search.live]
        reading = Reading.of(newest, cache, device=device)
