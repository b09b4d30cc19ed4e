"""What a model is asked: a context, and the answers that are right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from train.data.segments import Segment, TextSegment


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of the texts to choose from.

    Attributes:
        text: whose likelihood counts.
        before: what the decoder reads between context and text, unscored; mostly nothing.
    """

    text: str
    before: str = ""

    @property
    def segments(self) -> tuple[TextSegment, ...]:
        """What follows a context."""
        text = TextSegment(text=f" {self.text}")
        if not self.before:
            return (text,)
        given = TextSegment(text=f" {self.before}", is_scored=False, ends_paragraph=False)
        return (given, text)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A record as one template asks it.

    Attributes:
        id: task, split and number of the record, from 0: `hypernyms/test:17`.
        template: its name.
        context: what is given, unscored; demonstrations are part of it. An answer goes on with its
            last paragraph.
        choices: to choose from; none where the answer is a text of its own.
        gold: which of them is right; None without choices.
        answers: the texts that are right; the first is what is learned.
        group: what records share that are no independent observations.
    """

    id: str
    template: str
    context: tuple[Segment, ...]
    choices: tuple[Choice, ...] = ()
    gold: int | None = None
    answers: tuple[str, ...]
    group: str

    def document(self, choice: Choice | None = None) -> tuple[Segment, ...]:
        """The context and a choice, or else the right answer, scored: what a corpus stores."""
        if choice is None and self.gold is not None:
            choice = self.choices[self.gold]
        return (*self.context, *(choice or Choice(text=self.answers[0])).segments)

    def behind(self, demonstrations: Sequence["Example"]) -> "Example":
        """This example behind others, whose answers the decoder reads, unscored, and `</s>`."""
        shown: list[Segment] = []
        for demonstration in demonstrations:
            *begin, last = (
                replace(part, is_scored=False) if isinstance(part, TextSegment) else part
                for part in demonstration.document()
            )
            assert isinstance(last, TextSegment), "a document ends with an answer"
            shown += [*begin, replace(last, ends_paragraph=True)]
        return replace(self, context=(*shown, *self.context))
