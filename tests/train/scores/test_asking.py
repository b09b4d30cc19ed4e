"""Prompts and tokens of examples."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.corpora import write_tokenizer
from tests.train.scores.models import MODEL
from tools.corpus.encoding import Encoded, Encoder
from tools.corpus.entries import Entry
from tools.corpus.tokenizer import CorpusTokenizer
from train.data.document import Document
from train.data.segments import TextSegment
from train.prompt import segments_of, shown
from train.scores.asking import Asking
from train.scores.request import Likelihoods
from train.tasks.example import Choice, Example
from train.tasks.task import Task

TEXTS = st.text(alphabet=r"ab[]\ " + "\n", min_size=1, max_size=9)


TASK = Task.model_validate(
    {
        "name": "t",
        "cluster": "c",
        "source": {"directory": "none"},
        "answer": {"kind": "choice", "choices": "choices", "label": "label"},
        "templates": [{"name": "plain", "input": "unused"}],
        "scoring": {"kind": "likelihood"},
        "metrics": ["accuracy"],
    }
)


@st.composite
def contexts(draw: st.DrawFn) -> list[TextSegment]:
    found: list[TextSegment] = []
    for _ in range(draw(st.integers(1, 4))):
        is_span = draw(st.booleans())
        text = draw(TEXTS)
        if not text.strip() or (is_span and "\n" in text):
            text = "a"
        text = text if is_span else (" " * text.startswith(" ") + text.strip())
        if text.rstrip(" \n")[-1:] in ("[", "]"):
            text += "b"  # a bracket right before a mark cannot be told from it
        if found and not (is_span or found[-1].is_span):
            # Texts that go on with each other become one, whose tokens may be others.
            found[-1] = replace(found[-1], ends_paragraph=True)
        found.append(
            TextSegment(
                text=text, is_span=is_span, is_scored=False, ends_paragraph=draw(st.booleans())
            )
        )
    return found


_TOKENIZERS: dict[str, Tokenizer] = {}


def asking(directory: Path) -> Asking:
    write_tokenizer(directory / "tokenizer.json")
    return Asking(Tokenizer.from_file(str(directory / "tokenizer.json")), MODEL)


def test_a_prompt_is_the_same_tokens(tmp_path: Path) -> None:
    made = asking(tmp_path)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(contexts())
    def check(segments: list[TextSegment]) -> None:
        prompt = shown(segments)
        assert made.context(segments_of(prompt)) == made.context(segments), prompt

    check()


def test_an_example_is_the_tokens_that_a_corpus_holds(tmp_path: Path) -> None:
    """The builder's own encoding of the example's document, context and answer."""
    made = asking(tmp_path)
    tokenizer = CorpusTokenizer.from_file(tmp_path / "tokenizer.json")
    example = Example(
        id="t/test:0",
        template="plain",
        context=(
            TextSegment(text="the page", is_span=True, is_scored=False),
            TextSegment(text="maps\r\n\r\na </s> bus\n of", is_scored=False),
            TextSegment(text=" it", is_span=True, is_scored=False, ends_paragraph=False),
            TextSegment(text=" is:", is_scored=False, ends_paragraph=False),
        ),
        choices=(Choice(text="the kernel"), Choice(text="page", before="a device")),
        gold=0,
        answers=("the kernel",),
        group="0",
    )
    asked, dropped = made.request(example, TASK)
    assert isinstance(asked, Likelihoods)
    assert dropped == 0
    for choice, continuation in zip(example.choices, asked.continuations, strict=True):
        pieces = example.document(choice)
        entry = Entry(id="t", pieces=pieces)
        (stored,) = Encoder(tokenizer, has_media=False)([entry])
        assert isinstance(stored, Encoded)
        document = Document.from_columns(dict(stored.columns))
        *tokens, paragraph, end = document.tokens.tolist()
        assert (paragraph, end) == (1, 2)
        assert [0, *tokens] == [*asked.context.tokens, *continuation.tokens]
        assert [*asked.context.spans] == [(a + 1, b + 1) for a, b in document.spans.tolist()]
        # `</s>` and `</d>` behind the answer are scored in training, and do not count here.
        assert document.scored.sum() - 2 == len(continuation.tokens) - continuation.given


def test_paragraphs_and_spans_are_encoded_by_themselves(tmp_path: Path) -> None:
    made = asking(tmp_path)

    def tokens(text: str) -> tuple[int, ...]:
        return made.context([TextSegment(text=text, ends_paragraph=False)]).tokens[1:]

    segments = [
        TextSegment(text="the page", is_span=True, ends_paragraph=True),
        TextSegment(text="maps\n\na bus", ends_paragraph=False),
    ]
    context = made.context(segments)
    first, second = tokens("the page"), [*tokens("maps"), 1, *tokens("a bus")]
    assert context.tokens == (0, *first, 1, *second)
    assert context.spans == ((1, 1 + len(first)),)
