"""What a model is asked: how likely texts are behind a context, or what it says there."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final

from train.data.sample import SampleItem

RULES: Final = 1
"""Of what an answer is; raised when the same request would be answered otherwise."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the model reads first.

    Attributes:
        tokens: from `<s>` on.
        spans: half-open ranges of them that the encoder reads.
        items: of other modalities, whose slots among the tokens hold padding.
    """

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...] = ()
    items: tuple[SampleItem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Tokens behind a context.

    Attributes:
        tokens: at least one.
        given: the first this many are read, and their likelihood does not count.
    """

    tokens: tuple[int, ...]
    given: int = 0


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """How likely are these continuations of a context?"""

    context: Context
    continuations: tuple[Continuation, ...]

    @property
    def slots(self) -> int:
        """Of the longest row that is read."""
        longest = max(len(each.tokens) for each in self.continuations)
        return len(self.context.tokens) + longest - 1


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What does the model say behind a context?

    Attributes:
        context: what it reads.
        max_new_tokens: at most this many.
        stop_tokens: each of them ends the answer, and is no part of it.
        beams: 1 is greedy.
        length_penalty: the power of the length by which beams' likelihood is divided.
    """

    context: Context
    max_new_tokens: int
    stop_tokens: tuple[int, ...] = ()
    beams: int = 1
    length_penalty: float = 0.0

    @property
    def slots(self) -> int:
        """Of the longest row that may be read."""
        return len(self.context.tokens) + self.max_new_tokens - 1


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What a model says of a continuation.

    Attributes:
        log_likelihood: of all its tokens that count, in nats.
        tokens: that count.
        is_greedy: whether each of them was the likeliest.
    """

    log_likelihood: float
    tokens: int
    is_greedy: bool


def key_of(weights: str, request: Any, *parts: Any) -> str:
    """Equal for two requests if and only if the same is asked of the same weights.

    Args:
        weights: which they are.
        request: a part of one, as `asdict` takes it.
        parts: the rest of it.
    """
    told = (_without_names(asdict(part)) for part in (request, *parts))
    names = (type(part).__name__ for part in (request, *parts))
    asked = [RULES, weights, *({name: part} for name, part in zip(names, told, strict=True))]
    return sha256(json.dumps(asked, separators=(",", ":")).encode()).hexdigest()[:32]


def _without_names(part: dict[str, Any]) -> dict[str, Any]:
    """What is asked, without what items are called; of their files the hash."""
    if "context" in part:
        return part | {"context": _without_names(part["context"])}
    rest = {key: value for key, value in part.items() if key != "items"}
    # What is asked without items has the key that it had before there were any.
    items = [
        [item["kind"], item["start"], item["stop"], sha256(item["data"]).hexdigest()]
        for item in part.get("items", ())
    ]
    return rest | ({"items": items} if items else {})
