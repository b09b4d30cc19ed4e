"""The completions protocol: what a request may hold, and what it is answered with.

Source: OpenAI's API reference, "Completions (legacy)", which `lm-eval`'s local-completions speaks.
"""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import override

from model.generation.picking import Ending, Sampling
from tools.serve.items import GivenItems, Sent
from train.asked import Asked
from train.errors import UserError
from train.items import Bounds

MOST_TOP = 20
"""Likeliest tokens that are told of beside each."""
MOST_SEQUENCES = 256
"""Continuations that one request may ask for."""
MOST_STOP_STRINGS = 16
_MOST_FAULTS = 8
"""That are told at a time."""
Tokens = list[Annotated[int, Field(ge=0)]]
Request = TypeVar("Request", bound="ContinuationRequest")


class StreamOptions(BaseModel):
    """What a stream has besides."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class ContinuationRequest(BaseModel, ABC):
    """What requests of both protocols may hold; `top_k` is part of neither, but of many servers.

    Keys of the protocol that would change an answer and that we do not know are refused unless they
    have the value that changes nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    identity: ClassVar[str]
    """Beginning of an answer's id."""
    meant: ClassVar[Mapping[str, str]] = {
        # Of several kinds, and of what changes nothing, the library's messages say too little.
        "stop": f"give a text, or {MOST_STOP_STRINGS} at most",
        "logit_bias": "is not done here: leave it out",
        "presence_penalty": "is not done here: leave it out",
        "frequency_penalty": "is not done here: leave it out",
    }
    """What a key of the request is to be, told in place of the library's own messages."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_SEQUENCES)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOP_STRINGS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: str | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @abstractmethod
    def prompts(self, modality: str | None) -> list[str | list[int]]:
        """One or several.

        Args:
            modality: of the encoder that reads text; None without one.

        Raises:
            UserError: there is none, or its marks make no sense.
        """

    @property
    @abstractmethod
    def most_new_tokens(self) -> int | None:
        """How many tokens to generate at most, if it says so."""

    @property
    @abstractmethod
    def usual_new_tokens(self) -> int:
        """How many tokens to generate at most where it does not say so."""

    @property
    def must_have_room(self) -> bool:
        """Whether it is refused where fewer tokens than it asks for have room behind a prompt."""
        return False

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest tokens to tell of with each; None: of no log-probabilities."""
        return None

    @property
    def echoes(self) -> bool:
        """Whether the prompt is part of the answer."""
        return False

    @property
    def copies(self) -> int:
        """Continuations of each prompt."""
        return self.n or 1

    @abstractmethod
    def given(self, bounds: Bounds, *, most: int) -> GivenItems:
        """The items that come with it.

        Args:
            bounds: of each.
            most: that prompts may show.

        Raises:
            UserError: one is not as it should be written; the message names it.
        """

    @abstractmethod
    def without_items(self) -> Self:
        """What is left of it once these are read."""

    @abstractmethod
    def choice(
        self,
        index: int,
        text: str,
        *,
        ending: Ending | None,
        log_probabilities: dict[str, Any] | None,
        is_first: bool,
    ) -> dict[str, Any]:
        """A choice, or what is new of it, as the protocol writes it."""

    @abstractmethod
    def answer(
        self,
        identity: str,
        choices: Sequence[dict[str, Any]],
        usage: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """An answer, or a piece of one, as the protocol writes it."""

    def asked(self, modality: str | None) -> list[Asked]:
        """One for each continuation: all of the first prompt, then all of the second.

        Args:
            modality: as for `prompts`.

        Raises:
            UserError: there are too many, or what is asked is not known here.
        """
        if self.stream_options is not None and not self.stream:
            raise UserError("stream_options: is for streams alone: leave it out, or set stream")
        prompts = self.prompts(modality)
        if len(prompts) * self.copies > MOST_SEQUENCES:
            raise UserError(
                f"prompt: {len(prompts)} prompts by n={self.copies} are more than "
                f"{MOST_SEQUENCES}: ask for less at a time"
            )
        seed = secrets.randbits(62) if self.seed is None else self.seed % 2**63
        stop = self.stop or []
        most = self.most_new_tokens
        return [
            Asked(
                prompt=prompt,
                max_new_tokens=self.usual_new_tokens if most is None else most,
                sampling=Sampling(
                    temperature=1.0 if self.temperature is None else self.temperature,
                    top_p=1.0 if self.top_p is None else self.top_p,
                    top_k=self.top_k,
                    # Copies differ; prompts do not: each answer is that of its prompt alone.
                    seed=(seed + copy) % 2**63,
                ),
                stop=(stop,) if isinstance(stop, str) else tuple(stop),
                num_top=self.num_top,
                echoes=self.echoes and self.num_top is not None,
            )
            for prompt in prompts
            for copy in range(self.copies)
        ]


class CompletionRequest(ContinuationRequest):
    """Prompts to be continued; `items` are ours: what marks such as `[[image:cat]]` name."""

    identity: ClassVar[str] = "cmpl"
    meant: ClassVar[Mapping[str, str]] = {
        **ContinuationRequest.meant,
        "prompt": "give a text, token ids from 0 on, or a list of either",
        "items": "give data: URLs by name",
        "suffix": "is not done here: leave it out",
    }

    prompt: str | Tokens | list[str] | list[Tokens]
    items: dict[str, str] | None = None
    """By name, each as a `data:` URL."""
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    echo: bool | None = False
    suffix: Literal[""] | None = None

    @override
    def prompts(self, modality: str | None) -> list[str | list[int]]:
        prompt = self.prompt
        if not prompt and isinstance(prompt, list):
            raise UserError("prompt: is an empty list: give a prompt")
        if isinstance(prompt, str):
            return [prompt]
        if prompt and all(isinstance(each, int) for each in prompt):
            return [[each for each in prompt if isinstance(each, int)]]
        return [each for each in prompt if not isinstance(each, int)]

    @property
    @override
    def most_new_tokens(self) -> int | None:
        return self.max_tokens if "max_tokens" in self.model_fields_set else None

    @property
    @override
    def must_have_room(self) -> bool:
        return self.most_new_tokens is not None

    @property
    @override
    def usual_new_tokens(self) -> int:
        return 16

    @property
    @override
    def num_top(self) -> int | None:
        return self.logprobs

    @property
    @override
    def echoes(self) -> bool:
        return bool(self.echo)

    @override
    def given(self, bounds: Bounds, *, most: int) -> GivenItems:
        urls = (self.items or {}).items()
        items = {name: Sent(key=f"items.{name}", url=url) for name, url in urls}
        return GivenItems(items, bounds, most=most)

    @override
    def without_items(self) -> Self:
        return self.model_copy(update={"items": None})

    @override
    def asked(self, modality: str | None) -> list[Asked]:
        if self.best_of not in (None, self.copies):
            raise UserError("best_of: only n of n are given: leave it out, or set it to n")
        if self.items and self.echo:
            raise UserError("echo: what items take has no text: leave it out, or them")
        return super().asked(modality)

    @override
    def choice(
        self,
        index: int,
        text: str,
        *,
        ending: Ending | None,
        log_probabilities: dict[str, Any] | None,
        is_first: bool,
    ) -> dict[str, Any]:
        return {
            "text": text,
            "index": index,
            "logprobs": log_probabilities,
            "finish_reason": ending,
        }

    @override
    def answer(
        self,
        identity: str,
        choices: Sequence[dict[str, Any]],
        usage: dict[str, Any] | None,
    ) -> dict[str, Any]:
        return answer("text_completion", identity, self.model, choices, usage)


def read_request(body: bytes, kind: type[Request]) -> Request:
    """What a client has sent.

    Args:
        body: JSON.
        kind: of which protocol.

    Raises:
        UserError: it is no JSON, or asks for what is not there; each fault with its key.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        faults: dict[str, str] = {}
        for each in error.errors(include_url=False, include_context=False, include_input=False):
            place = [*map(str, each["loc"])] or ["the request"]
            told = kind.meant.get(place[0], each["msg"])
            if each["type"] == "missing":
                told = each["msg"]
            if each["type"] == "extra_forbidden":
                told = "is not known here: leave it out"
            # Of a message, its part; of all else the key says enough.
            key = ".".join(place[:4]) if place[0] == "messages" else place[0]
            faults.setdefault(key, told)
        some = list(faults.items())[:_MOST_FAULTS]
        raise UserError("; ".join(f"{key}: {told}" for key, told in some)) from None


def answer(
    kind: str,
    identity: str,
    model: str,
    choices: Sequence[dict[str, Any]],
    usage: dict[str, Any] | None,
) -> dict[str, Any]:
    """An answer of a kind, or a piece of one."""
    told: dict[str, Any] = {
        "id": identity,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
    }
    return told if usage is None else told | {"usage": usage}


def fault(message: str, *, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """What a request is refused with."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
