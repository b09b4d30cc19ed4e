"""How tokens are written in answers, and where they stand in what was sent."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from model.generation.picking import Token

_MOST_SKIPPED = 80
"""Signs of a prompt between two that were read; a tokenizer may change others."""


class Spelling:
    """How tokens are written in answers: as their text, or by name where that says too little.

    Args:
        decode: text of tokens.
        name: of a token in the vocabulary.
    """

    def __init__(self, decode: Callable[[list[int]], str], name: Callable[[int], str | None]):
        self._decode = decode
        self._name = name

    def of(self, token: int) -> str:
        """A part of a character, or a special token, has no text of its own."""
        text = self._decode([token])
        return text if text and "\ufffd" not in text else self._name(token) or f"<{token}>"

    def log_probabilities(
        self, tokens: Sequence[Token], offsets: Sequence[int], *, num_top: int
    ) -> dict[str, Any]:
        """The `logprobs` of a choice: the first token of a prompt has none."""
        known = [math.isfinite(token.log_probability) for token in tokens]
        return {
            "tokens": [self.of(token.id) for token in tokens],
            "token_logprobs": [
                token.log_probability if is_known else None
                for token, is_known in zip(tokens, known, strict=True)
            ],
            "top_logprobs": [
                self._top(token) if is_known and num_top else None
                for token, is_known in zip(tokens, known, strict=True)
            ],
            "text_offset": list(offsets),
        }

    def _top(self, token: Token) -> dict[str, float]:
        """The likeliest and the one that was chosen; no two share a key."""
        told: dict[str, float] = {}
        for other, log_probability in (*token.top, (token.id, token.log_probability)):
            text = self.of(other)
            if text in told and told[text] != log_probability:
                text = self._name(other) or f"<{other}>"
            told[text] = log_probability
        return told


def places_in(prompt: str, read: str, offsets: Sequence[int]) -> list[int]:
    """Where tokens begin in a prompt, of which marks and some white space were not read.

    Args:
        prompt: as it was written.
        read: text of its tokens.
        offsets: where each token begins in it.
    """
    places: list[int] = []
    at = 0
    for sign in read:
        found = prompt.find(sign, at, at + _MOST_SKIPPED)
        # Of a blank line that is shown, perhaps one line end was written.
        is_there = found >= 0 and (not sign.isspace() or not prompt[at:found].strip("[]\\ \n"))
        at = found if is_there else at
        places.append(at)
        at += is_there
    places.append(at)
    return [places[offset] for offset in offsets]
