"""Text as it comes is the text of all tokens at once, and ends before the first stop string."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.corpora import write_tokenizer
from train.words import Words

PARAGRAPH = 1


@pytest.fixture(scope="module", params=["bytes", "wordpiece"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "wordpiece":
        pieces = ["<s>", "</s>", "a", "##b", "it", ".", "'", "s", "##é", ","]
        made = Tokenizer(
            models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="a")
        )
        made.decoder = decoders.WordPiece()
        return made
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return Tokenizer.from_file(str(path))


def words_of(tokenizer: Tokenizer, stop: Sequence[str] = ()) -> Words:
    return Words(lambda ids: tokenizer.decode(list(ids)), paragraph=PARAGRAPH, stop=stop)


def whole(tokenizer: Tokenizer, tokens: list[int]) -> str:
    lines: list[list[int]] = [[]]
    for token in tokens:
        if token == PARAGRAPH:
            lines.append([])
        else:
            lines[-1].append(token)
    return "\n\n".join(tokenizer.decode(line) for line in lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_pieces_are_the_text_of_all(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = st.integers(1, tokenizer.get_vocab_size() - 1)
    tokens = data.draw(st.lists(st.one_of(ids, st.just(PARAGRAPH)), max_size=30))
    words = words_of(tokenizer)
    before = ""
    for token in tokens:
        words.add(token)
        assert words.text.startswith(before)
        before = words.text
    words.finish()
    assert words.text == whole(tokenizer, tokens)
    assert len(words.offsets) == len(tokens)
    assert words.offsets == sorted(words.offsets)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_the_stop_string_that_is_whole_first_ends_it(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = st.integers(1, tokenizer.get_vocab_size() - 1)
    tokens = data.draw(st.lists(ids, max_size=30))
    text = whole(tokenizer, tokens)
    bounds = st.integers(0, len(text))
    places = [sorted((data.draw(bounds), data.draw(bounds))) for _ in range(2)]
    strings = [*(text[start:stop] for start, stop in places), "\U0010ffff", ""]
    words = words_of(tokenizer, strings)
    told = ""
    for token in tokens:
        words.add(token)
        assert words.text[: words.sure].startswith(told), "what was told is taken back"
        told = words.text[: words.sure]
    words.finish()
    found = [
        (text.index(string) + len(string), text.index(string))
        for string in strings
        if string and string in text
    ]
    assert words.text == text[: min(found)[1] if found else None]
    assert words.is_stopped == bool(found)
