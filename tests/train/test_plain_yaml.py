"""What a scalar means, what is refused, and that no text takes long."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.soon import soon
from train.plain_yaml import YamlError, dump, parse

MEANINGS: list[tuple[str, Any]] = [
    ("", None),
    ("# nothing", None),
    ("~", None),
    ("null", None),
    ("True", True),
    ("false", False),
    ("5", 5),
    ("+5", 5),
    ("010", 10),
    ("0o10", 8),
    ("0x1F", 31),
    ("3e-4", 3e-4),
    ("1e3", 1000.0),
    (".5", 0.5),
    ("-1.", -1.0),
    ("-.inf", float("-inf")),
    ("!!str 5", "5"),
    ("!!float 5", 5.0),
    *((text, text) for text in ("yes", "off", "y", "1:30", "1e٣", "٣", "1_000", "0x_", "0b11")),
    *((text, text) for text in ("2001-12-14", "2001-13-45", "=", "NULl", "tRUE", "-0x1")),
    ("'5'", "5"),
    ('"\\u00e9"', "é"),
    ("{1: a, null: b, yes: c}", {"1": "a", "null": "b", "yes": "c"}),
    ("b: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}", {"b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}),
    ("{<<: [{x: 1}, {x: 2, y: 2}], z: 3}", {"x": 1, "y": 2, "z": 3}),
    ("&a a: 1\nb: *a", {"a": 1, "b": "a"}),
    ("! 12", "12"),
    ("0." + 200 * "1", float("0." + 200 * "1")),
    ("[&a [1], *a, *a]", [[1], [1], [1]]),
]


@pytest.mark.parametrize(("text", "value"), MEANINGS)
def test_meaning(text: str, value: Any) -> None:
    found = parse(text)
    assert (found, type(found)) == (value, type(value))


MANY = "\n".join(f"k{i}: 1" for i in range(20_000))
DOUBLED = "a: &a [x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefghijklmn", "bcdefghijklmno", strict=True)
)
REFUSED: list[tuple[str | bytes, str]] = [
    ("name: a\n\tsteps: 3", "line 2, column 1: is not YAML: found a tab"),
    ("a: [1", "line 2, column 1: is not YAML: did not find expected ',' or ']'"),
    ("a: b: c", "line 1, column 5: is not YAML: mapping values are not allowed"),
    ("a: 1\nb: {c: 2, c: 3}", "line 2, column 11: c stands there twice"),
    ("a: !!int abc", "line 1, column 4: abc is no int: leave out the tag !!int"),
    ("!!timestamp 2001-13-45", "line 1, column 1: the tag !!timestamp means nothing here"),
    ("!!binary aGk=", "the tag !!binary means nothing here"),
    ("!!python/object/apply:os.getcwd []", "the tag !!python/object/apply:os.getcwd means noth"),
    ("!!set {a}", "the tag !!set means nothing here"),
    ("a: " + 5000 * "9", "line 1, column 4: 9999"),
    ("1e400", "1e400 is beyond any number here"),
    ("a: 1\n--- b", "line 2, column 1: another document begins here"),
    ("&a [*a]", "the anchor &a has not ended before here"),
    ("*a", "the anchor &a has not ended before here"),
    ("<<: 5", "<< merges keys and values"),
    ("{<<: {a: 1}, <<: {b: 1}}", "<< stands there twice"),
    ("? [a]\n: b", "line 1, column 3: a key has to be text"),
    ("a\n\x01", "line 2, column 1: has the character U+0001"),
    ("a \u2028b", "line 1, column 3: has the character U+2028"),
    ("a \ud800", "is no text in UTF-8"),
    (b"\x7fELF\xff\xfe", "is no text in UTF-8"),
    ("{a: " * 400, "is nested deeper than 32 levels"),
    ("[" * 400 + "]" * 400, "line 1, column 34: is nested deeper than 32 levels"),
    ("- " * 5000 + "a", "is nested deeper than 32 levels"),
    ("\n".join(" " * level + "a:" for level in range(1400)), "is nested deeper than 32 levels"),
    ("[" * 500_000, "is nested deeper than 32 levels"),
    (MANY, "holds more than 20,000 values"),
    (DOUBLED, "holds more than 20,000 values"),
    (2**21 * "a", "is longer than 1024 KiB"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=lambda value: repr(value[:20]))
def test_refused_in_one_sentence_and_soon(text: str | bytes, message: str) -> None:
    with soon(), pytest.raises(YamlError) as error:
        parse(text)
    assert message in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("text", ["a #b", "[a, b] # c", "#b", "é日 #b", "'a#' # b"])
def test_a_comment_in_an_override_would_be_a_part_that_is_lost(text: str) -> None:
    parse(text)
    with pytest.raises(YamlError, match="a comment begins here: put the whole value into quotes"):
        parse(text, comments=False)


@pytest.mark.parametrize("text", ["a#b", "'a #b'", "{a: '#'}"])
def test_no_comment_in_an_override(text: str) -> None:
    assert parse(text, comments=False) == parse(text)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([text for text, _ in MEANINGS])
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(TREES)
def test_what_is_written_is_read_as_it_was_by_either_version(tree: Any) -> None:
    text = dump(tree)
    assert parse(text) == tree
    assert yaml.safe_load(text) == tree
