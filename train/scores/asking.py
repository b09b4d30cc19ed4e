"""From examples of a task to requests: the tokens of contexts and answers."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from model.semicausal import ModelConfig
from train.asked import Prompt, PromptEncoder, item_vectors, text_encoder, text_modality
from train.data.segments import Segment, TextSegment
from train.errors import DataError
from train.scores.request import Context, Continuation, Generation, Likelihoods
from train.scores.scorer import Asked
from train.tasks.example import Example
from train.tasks.fitting import Fitting
from train.tasks.task import Task


class Asking:
    """Makes requests of a task's examples.

    Tokens are those that a corpus of the same documents would hold (`tools.corpus.encoding`).

    Args:
        tokenizer: that the model was trained with.
        model: what is asked. Without an encoder of text its decoder reads the tokens of spans.
    """

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig):
        self._tokenizer = tokenizer
        encoder = text_encoder(model)
        self._vectors = item_vectors(model)
        self._encoder = PromptEncoder(
            tokenizer, modality=text_modality(model), vectors=self._vectors
        )
        self.special = self._encoder.special
        self._longest = None if encoder is None else encoder[1].longest_span
        self._most_slots = model.decoder.max_tokens

    def request(self, example: Example, task: Task) -> tuple[Asked, int]:
        """What the model is asked, and how many tokens of the row's spans had no room in it.

        What the model has room for decides where spans are cut (`train.tasks.fitting`), as
        `tools.tasks corpus --experiment` has it for training; a sequence may be longer here.

        Raises:
            DataError: it has no room for the rest, or a text makes no tokens.
        """
        scoring = task.scoring
        spared = scoring.max_new_tokens if scoring.kind == "generate" else 0
        fit = Fitting(
            tokenizer=self._tokenizer,
            span_tokens=self._longest,
            sequence_tokens=self._most_slots - spared,
            vectors=self._vectors,
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
            *before, text = (self._encoder.tokens(segment) for segment in choice.segments)
            if not text:
                raise DataError(f"{example.id}: the choice {choice.text!r} makes no tokens")
            given = [token for tokens in before for token in tokens]
            continuations.append(Continuation(tokens=(*given, *text), given=len(given)))
        return Likelihoods(context=context, continuations=tuple(continuations)), dropped

    def context(self, segments: Sequence[Segment], *, name: str = "the prompt") -> Context:
        """What the model reads before it answers.

        Args:
            segments: of it.
            name: of what it belongs to, for messages.

        Raises:
            DataError: a span is longer than the encoder reads, or no encoder reads an item.
        """
        return self._readable(self._encoder.segments(segments, name=name), name=name)

    def prompt(self, prompt: str) -> Context:
        """What the model reads of a prompt.

        Raises:
            UserError: as `context`; or the marks of its spans make no sense.
        """
        return self._readable(self._encoder(prompt), name="the prompt")

    def _readable(self, read: Prompt, *, name: str) -> Context:
        items = tuple(read.items)
        if self._longest is None:
            return Context(tokens=tuple(read.tokens), items=items)
        for begin, end in read.spans:
            if end - begin > self._longest:
                raise DataError(
                    f"{name}: a span has {end - begin} tokens and the encoder reads "
                    f"{self._longest}: write several shorter ones"
                )
        return Context(tokens=tuple(read.tokens), spans=tuple(read.spans), items=items)

    def _size(self, segments: Sequence[TextSegment]) -> int:
        return sum(len(self._encoder.tokens(segment)) for segment in segments)
