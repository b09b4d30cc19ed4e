"""From examples of a task to requests: the tokens of contexts and answers."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tokenizers import Tokenizer

from model.semicausal import ModelConfig
from train.asked import text_encoder
from train.data.segments import BLANK_LINES, TextSegment, paragraphs
from train.data.tokens import SpecialTokens
from train.errors import DataError
from train.prompt import TEXT, parse
from train.scores.request import Context, Continuation, Generation, Likelihoods
from train.scores.scorer import Asked
from train.tasks.example import Example
from train.tasks.fitting import Fitting
from train.tasks.task import Task

_MARK: Final = re.compile(r"(?<!\\)(\\*+)(\[\[|\]\])")  # as `train.prompt` reads them


class Asking:
    """Makes requests of a task's examples.

    Tokens are those that a corpus of the same documents would hold (`tools.corpus.encoding`): each
    paragraph and each span is encoded by itself, and `</s>` ends paragraphs.

    Args:
        tokenizer: that the model was trained with.
        model: what is asked. Without an encoder of text its decoder reads the tokens of spans.
    """

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig):
        # As a corpus has it: `</s>` in a text is four characters.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.special = SpecialTokens.from_vocabulary(tokenizer.get_vocab())
        encoder = text_encoder(model)
        self._longest = None if encoder is None else encoder[1].longest_span
        self._most_slots = model.decoder.max_tokens

    def request(self, example: Example, task: Task) -> tuple[Asked, int]:
        """What the model is asked, and how many tokens of the row's spans had no room in it.

        Spans are cut as they are for training, see `train.tasks.fitting`.

        Raises:
            DataError: it has no room for the rest, or a text makes no tokens.
        """
        scoring = task.scoring
        spared = scoring.max_new_tokens if scoring.kind == "generate" else 0
        fit = Fitting(
            tokenizer=self._tokenizer,
            span_tokens=self._longest,
            sequence_tokens=self._most_slots - spared,
        )
        behind = [choice.segments for choice in example.choices] if not spared else []
        longest = max(behind, key=self._size, default=())
        segments, dropped = fit(example.context, longest, name=example.id)
        context = self.context(segments, name=example.id)
        if scoring.kind == "generate":
            return Generation(
                context=context,
                max_new_tokens=scoring.max_new_tokens,
                stop_tokens=(self.special.paragraph, self.special.document),
                beams=scoring.beams,
                length_penalty=scoring.length_penalty if scoring.beams > 1 else 0.0,
            ), dropped
        continuations: list[Continuation] = []
        for choice in example.choices:
            *before, text = (self._tokens_of(segment) for segment in choice.segments)
            if not text:
                raise DataError(f"{example.id}: the choice {choice.text!r} makes no tokens")
            given = [token for tokens in before for token in tokens]
            continuations.append(Continuation(tokens=(*given, *text), given=len(given)))
        return Likelihoods(context=context, continuations=tuple(continuations)), dropped

    def context(self, segments: Sequence[TextSegment], *, name: str = "the prompt") -> Context:
        """What the model reads before it answers.

        Args:
            segments: of it.
            name: of what it belongs to, for messages.

        Raises:
            DataError: a span is longer than the encoder reads.
        """
        tokens = [self.special.start]
        spans: list[tuple[int, int]] = []
        for segment in segments:
            found = self._tokens_of(segment)
            if segment.is_span and found and self._longest is not None:
                if len(found) > self._longest:
                    raise DataError(
                        f"{name}: a span has {len(found)} tokens and the encoder reads "
                        f"{self._longest}: write several shorter ones"
                    )
                spans.append((len(tokens), len(tokens) + len(found)))
            tokens += found
            if segment.ends_paragraph and found:
                tokens.append(self.special.paragraph)
        return Context(tokens=tuple(tokens), spans=tuple(spans))

    def tokens(self, text: str) -> list[int]:
        """Of a text, without the end of its last paragraph."""
        return self._tokens_of(TextSegment(text=text))

    def _size(self, segments: Sequence[TextSegment]) -> int:
        return sum(len(self._tokens_of(segment)) for segment in segments)

    def _tokens_of(self, segment: TextSegment) -> list[int]:
        texts = [segment.text] if segment.is_span else paragraphs(segment.text)
        found: list[int] = []
        for text in texts:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if found and ids:
                found.append(self.special.paragraph)
            found += ids
        return found


def shown(segments: Sequence[TextSegment]) -> str:
    """Segments as a prompt: spans in `[[ ]]`, paragraphs apart by a blank line.

    A bracket right before a mark cannot be told from it: a space comes between.
    """
    found = ""
    for segment in segments:
        text = _MARK.sub(r"\1\1\\\2", segment.text)
        if segment.is_span:
            # Spaces before a span would be the span's.
            found = _before_mark(found.rstrip(" "), "[") + f"[[{_before_mark(text, ']')}]]"
        else:
            found += text
        found += "\n\n" if segment.ends_paragraph else ""
    return found


def _before_mark(text: str, bracket: str) -> str:
    """A text that a mark follows, whose meaning its last signs would take."""
    if text.endswith(bracket):
        return f"{text} "
    return text + "\\" * (len(text) - len(text.rstrip("\\")))


def segments_of(prompt: str, *, modality: str = TEXT) -> list[TextSegment]:
    """What `shown` has shown, as far as it becomes the same tokens.

    Args:
        prompt: with marks as `train/prompt.py` reads them.
        modality: of the encoder that reads text.

    Raises:
        UserError: a mark makes no sense.
    """
    found: list[TextSegment] = []
    for part in parse(prompt, modality=modality):
        text = part.text
        begins = text[: len(text) - len(text.lstrip())]
        if not part.is_span and BLANK_LINES.search(begins) and found:
            found[-1] = replace(found[-1], ends_paragraph=True)
        if part.is_span or text.strip():
            ends = not part.is_span and BLANK_LINES.search(text[len(text.rstrip()) :]) is not None
            found.append(
                TextSegment(text=text, is_span=part.is_span, is_scored=False, ends_paragraph=ends)
            )
    return found
