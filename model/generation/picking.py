"""Picking the next token of each row: greedy, or a draw from a part of the distribution."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn; greedy by default.

    Attributes:
        temperature: divides the logits before all else; 0 is greedy.
        top_k: draw among this many likeliest tokens; None: all.
        top_p: smallest set of tokens that holds this much probability; 0 is greedy, 1 all.
        seed: of the row's own stream, so that a draw does not depend on what else is generated.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 0.0
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        """Whether it is the likeliest token whatever the seed."""
        return self.temperature <= 0 or self.top_p <= 0 or self.top_k == 1


GREEDY = Sampling()
"""The likeliest token each time."""


Ending = Literal["stop", "length"]
"""Why a row has ended: a stop token or a complete choice; or so many tokens, or no more room."""


class Token(NamedTuple):
    """A token that was picked, or given.

    Attributes:
        id: in the vocabulary.
        log_probability: by the model alone, before temperature, cuts and constraints, in nats; NaN
            where nobody asked for it.
        top: the likeliest tokens and their log-probabilities, as many as were asked for.
    """

    id: int
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()


def pick(
    logits: Float[Tensor, "V"], sampling: Sampling, generator: torch.Generator | None = None
) -> int:
    """Choose one token: the likeliest if greedy, else a draw from the top-k and top-p nucleus."""
    if sampling.is_greedy:
        return int(logits.argmax())
    # The likeliest is 0 whatever the temperature, where the others may become -inf.
    least = torch.finfo(logits.dtype).tiny
    logits = (logits - logits.max()) / max(sampling.temperature, least)
    probabilities, order = torch.softmax(logits, dim=-1).sort(descending=True)
    if sampling.top_k is not None:
        probabilities, order = probabilities[: sampling.top_k], order[: sampling.top_k]
        probabilities = probabilities / probabilities.sum()
    # A token stays while the mass before it is below top_p, and the likeliest always does.
    before = probabilities.cumsum(0) - probabilities
    kept = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    kept[0] = probabilities[0]
    return int(order[torch.multinomial(kept, 1, generator=generator)])


def likeliest(logits: Float[Tensor, "B V"]) -> list[int]:
    """The likeliest token of each row.

    Raises:
        FloatingPointError: a row is not finite.
    """
    maxima, tokens = logits.max(dim=-1)  # NaN, where there is one
    if not all(map(isfinite, maxima.tolist())):
        raise FloatingPointError("what the model predicts is not finite")
    return tokens.tolist()


def told(
    logits: Float[Tensor, "W V"], tokens: Sequence[int], *, num_top: Sequence[int]
) -> list[Token]:
    """Tokens with their log-probabilities.

    Args:
        logits: of the slots before them.
        tokens: one a row.
        num_top: how many of the likeliest to tell of, for each row.
    """
    log_probabilities = logits.float().log_softmax(dim=-1)
    ids = torch.tensor(tokens, device=logits.device)
    chosen = log_probabilities.gather(1, ids[:, None])[:, 0].tolist()
    most = min(max(num_top, default=0), logits.shape[1])
    tops: list[list[tuple[int, float]]] = [[] for _ in tokens]
    if most:
        values, places = log_probabilities.topk(most, dim=-1)
        tops = [
            list(zip(*pair, strict=True))
            for pair in zip(places.tolist(), values.tolist(), strict=True)
        ]
    return [
        Token(token, chance, tuple(top[:count]))
        for token, chance, top, count in zip(tokens, chosen, tops, num_top, strict=True)
    ]
