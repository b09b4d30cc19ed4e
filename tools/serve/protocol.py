"""The completions protocol: what a request may hold, and what it is answered with.

Source: OpenAI's API reference, "Completions (legacy)", which `lm-eval`'s local-completions speaks.
"""

import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.generation.picking import Sampling, Token
from train.asked import Asked
from train.errors import UserError

MOST_TOP = 20
"""Likeliest tokens that are told of beside each."""
MOST_SEQUENCES = 256
"""Continuations that one request may ask for."""
MOST_STOP_STRINGS = 16
_MOST_SKIPPED = 80
"""Signs of a prompt between two that were read; a tokenizer may change others."""

Tokens = list[Annotated[int, Field(ge=0)]]


class StreamOptions(BaseModel):
    """What a stream has besides."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """What is asked; `top_k` is no part of the protocol, but of many servers.

    Keys of the protocol that would change an answer and that we do not know are refused unless they
    have the value that changes nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    prompt: str | Tokens | list[str] | list[Tokens]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_SEQUENCES)] | None = 1
    best_of: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    echo: bool | None = False
    stop: str | Annotated[list[str], Field(max_length=MOST_STOP_STRINGS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: str | None = None
    suffix: Literal[""] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and all(isinstance(each, int) for each in prompt):
            return [[each for each in prompt if isinstance(each, int)]]
        return [each for each in prompt if not isinstance(each, int)]

    @property
    def has_most(self) -> bool:
        """Whether it says itself how many tokens to generate."""
        return self.max_tokens is not None and "max_tokens" in self.model_fields_set

    @property
    def copies(self) -> int:
        """Continuations of each prompt."""
        return self.n or 1

    def asked(self) -> list[Asked]:
        """One for each continuation: all of the first prompt, then all of the second.

        Raises:
            UserError: there are too many, or what is asked is not known here.
        """
        if self.best_of not in (None, self.copies):
            raise UserError("best_of: only n of n are given: leave it out, or set it to n")
        if self.stream_options is not None and not self.stream:
            raise UserError("stream_options: is for streams alone: leave it out, or set stream")
        prompts = self.prompts
        if not prompts:
            raise UserError("prompt: is an empty list: give a prompt")
        if len(prompts) * self.copies > MOST_SEQUENCES:
            raise UserError(
                f"prompt: {len(prompts)} prompts by n={self.copies} are more than "
                f"{MOST_SEQUENCES}: ask for less at a time"
            )
        seed = secrets.randbits(62) if self.seed is None else self.seed % 2**63
        stop = self.stop or []
        return [
            Asked(
                prompt=prompt,
                max_new_tokens=16 if self.max_tokens is None else self.max_tokens,
                sampling=Sampling(
                    temperature=1.0 if self.temperature is None else self.temperature,
                    top_p=1.0 if self.top_p is None else self.top_p,
                    top_k=self.top_k,
                    # Copies differ; prompts do not: each answer is that of its prompt alone.
                    seed=(seed + copy) % 2**63,
                ),
                stop=(stop,) if isinstance(stop, str) else tuple(stop),
                num_top=self.logprobs,
                echoes=bool(self.echo) and self.logprobs is not None,
            )
            for prompt in prompts
            for copy in range(self.copies)
        ]


_MEANT: Final = {
    # Of several kinds, and of what changes nothing, the library's messages say too little.
    "prompt": "give a text, token ids from 0 on, or a list of either",
    "stop": f"give a text, or {MOST_STOP_STRINGS} at most",
    "logit_bias": "is not done here: leave it out",
    "presence_penalty": "is not done here: leave it out",
    "frequency_penalty": "is not done here: leave it out",
    "suffix": "is not done here: leave it out",
}


def read_request(body: bytes) -> CompletionRequest:
    """What a client has sent.

    Raises:
        UserError: it is no JSON, or asks for what is not there; each fault with its key.
    """
    try:
        return CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        faults: dict[str, str] = {}
        for each in error.errors(include_url=False, include_context=False, include_input=False):
            key = str(each["loc"][0]) if each["loc"] else "the request"
            told = _MEANT.get(key, each["msg"])
            if each["type"] == "missing":
                told = each["msg"]
            if each["type"] == "extra_forbidden":
                told = "is not known here: leave it out"
            faults.setdefault(key, told)
        raise UserError("; ".join(f"{key}: {told}" for key, told in faults.items())) from None


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


def completion(
    identity: str, model: str, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None
) -> dict[str, Any]:
    """An answer, or a piece of one."""
    told: dict[str, Any] = {
        "id": identity,
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
    }
    return told if usage is None else told | {"usage": usage}


def fault(message: str, *, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """What a request is refused with."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
