"""The chat protocol: messages, whose parts are text and items, become one prompt.

A message of the user is a prompt (`train/prompt.py`), each part a line of it; an answer follows
behind a space and ends its paragraph, as examples of tasks have it. The model is told of no roles,
for it has learned none.

Source: OpenAI's API reference, "Chat completions".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import override

from model.generation.picking import Ending
from tools.serve.items import GivenItems, Sent
from tools.serve.protocol import ContinuationRequest, answer
from train.data.document import MEDIA, Kind
from train.errors import UserError
from train.items import Bounds
from train.prompt import escaped, parse

_AS_MANY_AS_FIT: Final = 2**31


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Part):
    """A prompt, or a part of one."""

    type: Literal["text"]
    text: str


class Url(_Part):
    """The bytes of a file as a `data:` URL."""

    url: str
    detail: Literal["auto"] | None = None


class ImagePart(_Part):
    """A picture."""

    type: Literal["image_url"]
    image_url: Url


class VideoPart(_Part):
    """A clip; no part of OpenAI's protocol, but of many servers."""

    type: Literal["video_url"]
    video_url: Url


class Sound(_Part):
    """The bytes of a file in base 64."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus"]


class SoundPart(_Part):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: Sound


Part = Annotated[TextPart | ImagePart | SoundPart | VideoPart, Field(discriminator="type")]

_KINDS: Final[Mapping[type[_Part], Kind]] = {
    ImagePart: Kind.IMAGE,
    SoundPart: Kind.AUDIO,
    VideoPart: Kind.VIDEO,
}
"""Modalities of parts that are no text."""


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(BaseModel):
    """What somebody said."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts)]
    name: str | None = None


class ChatRequest(ContinuationRequest):
    """A conversation to be continued by an answer."""

    identity: ClassVar[str] = "chatcmpl"
    meant: ClassVar[Mapping[str, str]] = {
        **ContinuationRequest.meant,
        "logprobs": "is done by /v1/completions alone: leave it out",
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Literal[False] | None = None

    @override
    def prompts(self, modality: str | None) -> list[str | list[int]]:
        if self.messages[-1].role != "user":
            raise UserError("messages: the last one is not of the user: add what is asked")
        return ["".join(self.pieces(modality))]

    def pieces(self, modality: str | None) -> Iterator[str]:
        """The prompt in pieces, one of each message, so that many are joined once.

        Args:
            modality: as for `prompts`.

        Raises:
            UserError: marks of one make no sense.
        """
        end = ""  # two signs, if there are as many
        for number, message in enumerate(self.messages):
            key = f"messages.{number}"
            if message.role == "assistant":
                said = _said(message, key)
                is_apart = not end or end[-1].isspace() or said[:1].isspace()
                piece = f"{'' if is_apart else ' '}{said}\n\n"
            else:
                written = _written(message, key, modality)
                if message.role == "user" and number + 1 < len(self.messages):
                    written = written.rstrip(" ")  # an answer brings its own
                piece = written if end in ("", "\n\n") else f"\n\n{written}"
            yield piece
            end = (end + piece[-2:])[-2:]

    @property
    @override
    def most_new_tokens(self) -> int | None:
        most = self.max_completion_tokens
        return self.max_tokens if most is None else most

    @property
    @override
    def usual_new_tokens(self) -> int:
        return _AS_MANY_AS_FIT

    @override
    def given(self, bounds: Bounds, *, most: int) -> GivenItems:
        return GivenItems(dict(self._sent()), bounds, most=most)

    @override
    def without_items(self) -> Self:
        return self.model_copy(update={"messages": []})

    def _sent(self) -> Iterator[tuple[str, Sent]]:
        for number, message in enumerate(self.messages):
            for place, part in enumerate(message.content):
                key = f"messages.{number}.content.{place}"
                match part:
                    case SoundPart():
                        yield key, Sent(key=key, data=part.input_audio.data)
                    case ImagePart():
                        yield key, Sent(key=key, url=part.image_url.url)
                    case VideoPart():
                        yield key, Sent(key=key, url=part.video_url.url)
                    case _:
                        pass

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
        role = {"role": "assistant"} if is_first else {}
        return {
            "index": index,
            "delta" if self.stream else "message": {**role, "content": text},
            "logprobs": None,
            "finish_reason": ending,
        }

    @override
    def answer(
        self,
        identity: str,
        choices: Sequence[dict[str, Any]],
        usage: dict[str, Any] | None,
    ) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.stream else "chat.completion"
        return answer(kind, identity, self.model, choices, usage)


def _said(message: Message, key: str) -> str:
    """An answer of before, in which nothing is a mark."""
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    if len(texts) < len(message.content):
        raise UserError(f"{key}: answers are text alone: leave the other parts out")
    return escaped("".join(texts)).rstrip()


def _written(message: Message, key: str, modality: str | None) -> str:
    """A message as a prompt, in which items stand under their keys: each part is a line.

    Parts that are to be of one line have a space where they meet.
    """
    lines: list[str] = []
    end = ""
    for place, part in enumerate(message.content):
        here = f"{key}.content.{place}"
        if isinstance(part, TextPart):
            new = part.text
            try:
                parse(new, modality=modality)  # one not closed would swallow those behind it
            except UserError as error:
                raise UserError(f"{here}: {error}") from None
        else:
            new = f"[[{MEDIA[_KINDS[type(part)]]}:{here}]]"
        is_apart = not end or end.isspace() or new[:1].isspace()
        lines.append(new if is_apart else f"\n{new}")
        end = lines[-1][-1:] or end
    return "".join(lines)
