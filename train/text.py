"""A model and its tokenizer, which continue what is asked (`train/asked.py`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from model.batch import PackedSpans
from model.generation.beam import BeamSearch, beam_search
from model.generation.choices import Choices
from model.generation.decoding import Decoding, Request, Row
from model.generation.picking import Ending, Token
from model.reading import Read
from model.semicausal import SemiCausal
from train.asked import (
    Asked,
    Prompt,
    PromptEncoder,
    item_vectors,
    pack,
    text_encoder,
    text_modality,
    with_contents,
)
from train.data.tokens import TOKENIZER_BYTES_AT_MOST, read_tokenizer
from train.errors import UserError
from train.prompt import Items
from train.storage.place import Place
from train.words import Words

Result = TypeVar("Result")


@dataclass(eq=False)
class Answer:
    """What continues a prompt, as far as it has come.

    Attributes:
        prompt: its prompt.
        row: its tokens.
        words: their text.
    """

    prompt: Prompt
    row: Row
    words: Words
    _read: int = 0

    @property
    def ending(self) -> Ending | None:
        """Why it has ended; None as long as it goes on."""
        return "stop" if self.words.is_stopped else self.row.ending

    @property
    def text(self) -> str:
        """All of it that is certain."""
        return self.words.text if self.ending else self.words.text[: self.words.sure]

    @property
    def tokens(self) -> list[Token]:
        """Those that its text has a part of; without what a stop string takes away."""
        tokens, words = self.row.tokens, self.words
        if not words.is_stopped:
            return tokens
        pairs = zip(tokens, words.offsets, strict=False)
        return [token for token, offset in pairs if offset < len(words.text)]

    def catch_up(self) -> None:
        """Read the tokens that are new."""
        for token in self.row.tokens[self._read :]:
            if not self.words.is_stopped:
                self.words.add(token.id)
        self._read = len(self.row.tokens)
        if self.row.ending is not None:
            self.words.finish()


class Speaker:
    """A model and its tokenizer, which continue prompts (`train/prompt.py`).

    Args:
        model: in eval mode.
        tokenizer: file of the one it was trained with.
        read: what computes; by default the model, which then is whole on this process.

    Raises:
        UserError: the file is missing or is no tokenizer.
    """

    def __init__(self, model: SemiCausal, tokenizer: Place | Path, *, read: Read | None = None):
        try:
            content = Place.of(tokenizer).read(limit_bytes=TOKENIZER_BYTES_AT_MOST)
        except OSError as error:
            told = error.strerror or error
            raise UserError(f"{tokenizer} cannot be read as a tokenizer: {told}") from None
        self.tokenizer = read_tokenizer(content, name=str(tokenizer))
        vocabulary = self.tokenizer.get_vocab()
        self.config = model.config
        self._encoder = PromptEncoder(
            self.tokenizer,
            modality=text_modality(model.config),
            vectors=item_vectors(model.config),
        )
        self.special = self._encoder.special
        self.device = next(model.parameters()).device
        self.read: Read = read or model
        known = model.config.decoder.vocabulary
        if max(vocabulary.values()) >= known:
            raise UserError(
                f"{tokenizer} has tokens up to {max(vocabulary.values())}, the model {known} in "
                "all: name the tokenizer of the corpus that it was trained on"
            )

    def prompt(self, prompt: str | Sequence[int] | Prompt, *, items: Items | None = None) -> Prompt:
        """A prompt in slots, its items read.

        Args:
            prompt: a text, tokens, or what was read before.
            items: what a text's marks of other modalities name; without, these are refused.

        Raises:
            UserError: it is empty, too long, or holds tokens that are not in the vocabulary; it
                marks spans that no encoder can read, or its marks make no sense; an item is not
                there, or cannot be read.
        """
        decoder, reader = self.config.decoder, text_encoder(self.config)
        if isinstance(prompt, str):
            prompt = self._encoder(prompt, items)
        if not isinstance(prompt, Prompt):
            prompt = Prompt(tokens=list(prompt), spans=[])
        tokens, spans = prompt.tokens, prompt.spans
        if not tokens:
            raise UserError("the prompt has no tokens: give it one, such as that of <s>")
        if len(tokens) > decoder.max_tokens:
            shown = sum(item.stop - item.start for item in prompt.items)
            of_items = f", {shown} of them for what it shows" if shown else ""
            raise UserError(
                f"the prompt has {len(tokens)} tokens{of_items}, the model reads "
                f"{decoder.max_tokens}"
            )
        if not all(0 <= token < decoder.vocabulary for token in tokens):
            raise UserError(
                f"the prompt has tokens outside of the vocabulary of {decoder.vocabulary}"
            )
        if spans and reader is None:
            raise UserError("the model has no text encoder: remove the [[ ]] from the prompt")
        if reader is not None and any(b - a > reader[1].longest_span for a, b in spans):
            longest = reader[1].longest_span
            raise UserError(f"a span of the prompt exceeds the encoder's {longest} tokens")
        return with_contents(self.config, prompt)

    def request(self, asked: Asked) -> Request:
        """What is asked, in tokens.

        Raises:
            UserError: the choices make no sense.
        """
        choices = None
        if asked.choices is not None:
            encoded = [
                self.tokenizer.encode(choice, add_special_tokens=False).ids
                for choice in asked.choices
            ]
            try:
                choices = Choices(encoded, stop_token=self.special.document)
            except ValueError as error:
                raise UserError(f"choices: {error}") from None
        return Request(
            max_new_tokens=asked.max_new_tokens,
            sampling=asked.sampling,
            stop_tokens=frozenset({self.special.document}),
            choices=choices,
            num_top=asked.num_top,
            echoes=asked.echoes,
            adapter=asked.adapter,
        )

    def pack(self, prompts: Sequence[Prompt]) -> Mapping[str, PackedSpans] | None:
        """The spans of prompts that are read together."""
        return pack(self.config, prompts, device=self.device)

    def text(self, tokens: Sequence[int]) -> str:
        """Text of tokens; a blank line ends a paragraph, as in prompts."""
        words = self.words()
        for token in tokens:
            words.add(token)
        words.finish()
        return words.text

    def words(self, stop: Sequence[str] = ()) -> Words:
        """What text is made with, token by token."""
        return Words(self._decode, paragraph=self.special.paragraph, stop=stop)

    def complete(self, asked: Sequence[Asked]) -> list[Answer]:
        """Continue all prompts together, each as if it were alone.

        Raises:
            UserError: a prompt cannot be read (see `prompt`), or the model is not finite.
        """
        speech = Speech(self)
        answers = speech.admit(asked)
        while speech.step():
            pass
        return answers

    def search(
        self,
        prompts: Sequence[str | Sequence[int] | Prompt],
        *,
        max_new_tokens: int,
        num_beams: int = 4,
        length_penalty: float = 0.6,
    ) -> list[str]:
        """What a beam search finds behind each prompt (`model.generation.beam.BeamSearch`).

        Raises:
            UserError: as `complete`.
        """
        read = [self.prompt(prompt) for prompt in prompts]
        how = BeamSearch(
            num_beams=num_beams,
            length_penalty=length_penalty,
            max_new_tokens=max_new_tokens,
            stop_token=self.special.document,
        )
        found = _finite(
            lambda: beam_search(
                self.read,
                [prompt.tokens for prompt in read],
                how,
                most_slots=self.config.decoder.max_tokens,
                device=self.device,
                spans=self.pack(read),
            )
        )
        return [self.text(each.ids) for each in found]

    def stream(self, asked: Asked) -> Iterator[str]:
        """The continuation of a prompt, piece by piece.

        Raises:
            UserError: as `complete`.
        """
        speech = Speech(self)
        (answer,) = speech.admit([asked])
        told = 0
        while True:
            if len(text := answer.text) > told:
                yield text[told:]
                told = len(text)
            if answer.ending is not None:
                return
            speech.step()

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens))


class Speech:
    """Answers that a speaker gives together: they come and go, and each is as if it were alone."""

    def __init__(self, speaker: Speaker):
        self._speaker = speaker
        self._decoding = Decoding(
            speaker.read,
            most_slots=speaker.config.decoder.max_tokens,
            device=speaker.device,
        )
        self._answers: list[Answer] = []

    @property
    def answers(self) -> Sequence[Answer]:
        """Those that go on."""
        return self._answers

    def admit(self, asked: Sequence[Asked]) -> list[Answer]:
        """Begin an answer to each prompt, with its first token.

        Raises:
            UserError: as `Speaker.complete`; nothing was begun.
        """
        speaker = self._speaker
        prompts = [speaker.prompt(each.prompt) for each in asked]
        requests = [speaker.request(each) for each in asked]
        rows = _finite(
            lambda: self._decoding.admit(
                [prompt.tokens for prompt in prompts], requests, spans=speaker.pack(prompts)
            )
        )
        answers = [
            Answer(prompt, row, speaker.words(each.stop))
            for prompt, row, each in zip(prompts, rows, asked, strict=True)
        ]
        self._answers += answers
        self._settle(answers)
        return answers

    def step(self) -> list[Answer]:
        """One token more for each; those that got one or have ended.

        Raises:
            UserError: the model is not finite.
        """
        answers = list(self._answers)
        if answers:
            _finite(self._decoding.step)
            self._settle(answers)
        return answers

    def drop(self, answer: Answer) -> None:
        """Go on without one."""
        self._answers.remove(answer)
        if answer.row.ending is None:
            self._decoding.drop(answer.row)

    def _settle(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            answer.catch_up()
            if answer.ending is not None:
                self.drop(answer)


def _finite(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except FloatingPointError as error:
        raise UserError(f"{error}: name another checkpoint, or train on from one") from None
