"""What has room in a model."""

import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from train.data.document import Kind
from train.data.segments import MediaSegment, Segment, TextSegment
from train.errors import DataError
from train.tasks.fitting import Fitting


def byte_tokenizer() -> Tokenizer:
    """A token for each byte, so that sizes can be counted by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: at for at, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = byte_tokenizer()


def span(text: str) -> TextSegment:
    return TextSegment(text=text, is_span=True, is_scored=False)


def asked(text: str) -> TextSegment:
    return TextSegment(text=text, is_scored=False, ends_paragraph=False)


def fitted(
    fitting: Fitting, context: Sequence[TextSegment], answer: str, *, name: str = "x"
) -> tuple[list[TextSegment], int]:
    """What has room of a context of texts."""
    found, dropped = fitting(context, [TextSegment(text=answer)], name=name)
    texts = [part for part in found if isinstance(part, TextSegment)]
    assert len(texts) == len(found)
    return texts, dropped


def fit(
    context: Sequence[TextSegment], answer: str, *, spans: int, sequence: int
) -> tuple[list[str], int]:
    fitting = Fitting(tokenizer=TOKENIZER, span_tokens=spans, sequence_tokens=sequence)
    found, dropped = fitted(fitting, context, answer, name="x/train:3")
    assert [part.is_span for part in found if not part.is_span] == [False] * sum(
        not part.is_span for part in context
    )
    return [part.text for part in found], dropped


def test_what_has_room_stays_as_it_is() -> None:
    assert fit([span("abc"), asked("Q:")], " yes", spans=3, sequence=14) == (["abc", "Q:"], 0)


def test_a_long_span_becomes_several_and_nothing_is_lost() -> None:
    fitting = Fitting(tokenizer=TOKENIZER, span_tokens=4, sequence_tokens=99)
    found, dropped = fitted(fitting, [span("abcdefghij"), asked("Q:")], " y")
    assert [part.text for part in found] == ["abcd", "efgh", "ij", "Q:"]
    assert [part.ends_paragraph for part in found] == [False, False, True, False]
    assert all(part.is_span and not part.is_scored for part in found[:3])
    assert dropped == 0


def test_spaces_stay_where_a_tokenizer_says_that_words_have_none() -> None:
    """As those of GPT-2 and RoBERTa do; without its space a word is other tokens, and more."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*signs, "Ġa", "Ġb", "Ġab"]
    merges = [("Ġ", "a"), ("Ġ", "b"), ("Ġa", "b")]
    tokenizer = Tokenizer(models.BPE({sign: at for at, sign in enumerate(known)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    fitting = Fitting(tokenizer=tokenizer, span_tokens=3, sequence_tokens=99)
    found, _ = fitted(fitting, [span("a ab ab ab ab ab ab")], " y")
    assert [part.text for part in found] == ["a ab ab", " ab ab ab", " ab"]
    assert [len(tokenizer.encode(part.text)) for part in found] == [3, 3, 1]


def test_the_longest_span_is_shortened_first() -> None:
    context = [span("a" * 20), span("b" * 10), asked("Q:")]
    # Of 30: 2 for <s> and </d>, 5 the answer, 3 the question, 2 the ends of spans.
    assert fit(context, " yes", spans=50, sequence=30) == (["a" * 9, "b" * 9, "Q:"], 12)


@pytest.mark.parametrize("seed", range(20))
def test_all_together_never_exceed_a_sequence(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choices("aé日 🙂\n", k=chance.randint(2, 80)))
    longest, sequence = chance.randint(4, 30), chance.randint(30, 90)
    texts, dropped = fit(
        [span("x" + text), asked("Question:")], " no", spans=longest, sequence=sequence
    )
    spans = texts[:-1]
    assert ("x" + text).startswith("".join(spans))
    assert max(len(part.encode()) for part in spans) <= longest
    ends = 5  # <s>, </d>, and </s> behind spans, question and answer
    slots = sum(len(part.encode()) for part in texts) + len(" no") + ends
    assert slots <= sequence
    # Nothing is dropped without need: one character more would not have had room.
    assert (dropped == 0) == (spans == [] or "".join(spans) == "x" + text)
    assert dropped == 0 or slots > sequence - 4


@pytest.mark.parametrize("longest", range(3, 9))
def test_a_piece_that_becomes_more_tokens_is_shorter(longest: int) -> None:
    """As of WordPiece, where the rest of a word that is cut is spelled anew."""
    known = ["[UNK]", "re", "##read", "##ing", "read", "##in", "##g", "i", "##n", "aloud"]
    tokenizer = Tokenizer(
        models.WordPiece({sign: at for at, sign in enumerate(known)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = " ".join(["rereading aloud", "rereading"] * 9)
    fitting = Fitting(tokenizer=tokenizer, span_tokens=longest, sequence_tokens=999)
    found, dropped = fitted(fitting, [span(text)], "read")
    assert dropped == 0
    assert "".join(part.text for part in found) == text
    sizes = [len(tokenizer.encode(part.text)) for part in found]
    assert max(sizes) <= longest
    if longest in (4, 5):
        assert sum(sizes) > len(tokenizer.encode(text)), "or nothing was tried"
    short = Fitting(tokenizer=tokenizer, span_tokens=longest, sequence_tokens=24)
    found, dropped = fitted(short, [span(text)], "read")
    assert dropped > 0
    sizes = [len(tokenizer.encode(part.text)) for part in found]
    assert sum(sizes) + len(["<s>", "</s>", "read", "</s>", "</d>"]) <= 24
    assert max(sizes) <= longest


@pytest.mark.parametrize(
    ("context", "answer", "told"),
    [
        ([span("abc")], " " + "y" * 40, "x/train:3: the answer has 42 tokens, and a sequence 30"),
        ([asked("q" * 40)], " y", "x/train:3: what is asked and answered has more than the 30"),
    ],
)
def test_what_has_no_room_is_named(context: list[TextSegment], answer: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        fit(context, answer, spans=9, sequence=30)


def test_an_item_takes_its_slots_and_stays_whole() -> None:
    item = MediaSegment(kind=Kind.IMAGE, data=b"x", size=(2, 3))

    def area(size: Sequence[int]) -> int:
        return size[0] * size[1]

    def within(sequence_tokens: int) -> tuple[Segment, ...]:
        fitting = Fitting(
            tokenizer=TOKENIZER,
            span_tokens=9,
            sequence_tokens=sequence_tokens,
            vectors={Kind.IMAGE: area},
        )
        found, _ = fitting([item, span("a" * 9), asked("Q:")], [TextSegment(text=" y")], name="x")
        return found

    # 2 for <s> and </d>, 3 the answer, 3 the question, 6 the item, 10 the span.
    assert within(24) == (item, span("a" * 9), asked("Q:"))
    assert within(20) == (item, span("a" * 5), asked("Q:"))
    with pytest.raises(DataError, match="x: what is asked and answered has more than the 18"):
        within(18)


def test_an_item_that_no_encoder_reads() -> None:
    item = MediaSegment(kind=Kind.IMAGE, data=b"x", size=(2, 3))
    fitting = Fitting(tokenizer=TOKENIZER, span_tokens=9, sequence_tokens=99)
    with pytest.raises(DataError, match="x: no encoder is known that reads its image"):
        fitting([item], [TextSegment(text=" y")], name="x")


def test_an_item_that_is_too_large_for_its_encoder() -> None:
    def refused(size: Sequence[int]) -> int:
        raise ValueError(f"has a sound of {size[0]} seconds: leave it out")

    item = MediaSegment(kind=Kind.AUDIO, data=b"x", size=(40, 1))
    fitting = Fitting(
        tokenizer=TOKENIZER, span_tokens=9, sequence_tokens=99, vectors={Kind.AUDIO: refused}
    )
    with pytest.raises(DataError, match="x has a sound of 40 seconds: leave it out"):
        fitting([item], [TextSegment(text=" y")], name="x")
