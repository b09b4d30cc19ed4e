"""Documents with items against loops over their segments."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.document import SIZE_NUMBERS, Document, Kind
from train.data.slots import slotted

FILLER = 3

VECTORS = {
    Kind.IMAGE: lambda size: size[0] * size[1],
    Kind.AUDIO: lambda size: 1,
}


@st.composite
def segments(draw: st.DrawFn) -> list[tuple[Kind, Any, bool]]:
    """Text, spans of text, and pictures by their sizes, in any order; one of text at least."""
    kinds = st.sampled_from([Kind.TEXT, Kind.TEXT_SPAN, Kind.IMAGE])
    found: list[tuple[Kind, Any, bool]] = []
    for kind in [*draw(st.lists(kinds, max_size=9)), Kind.TEXT]:
        if kind == Kind.IMAGE:
            side = st.integers(1, 4)
            found.append((kind, (draw(side), draw(side)), False))
        else:
            text = draw(st.lists(st.integers(10, 99), min_size=1, max_size=5))
            found.append((kind, text, kind == Kind.TEXT and draw(st.booleans())))
    return found


def stored(parts: list[tuple[Kind, Any, bool]]) -> Document:
    payload, sizes, tokens = b"", [], []
    rows: list[tuple[int, int, int]] = []
    for number, (kind, content, scored) in enumerate(parts):
        if kind == Kind.IMAGE:
            data = bytes([number]) * (1 + number)
            payload += data
            sizes.append([*content, *[0] * (SIZE_NUMBERS - 2)])
            rows.append((kind, len(data), 0))
        else:
            tokens += content
            rows.append((kind, len(content), scored))
    return Document.from_columns(
        {
            "id": "x",
            "tokens": np.array(tokens, np.uint16),
            "segments": np.array(rows, np.int32),
            "payload": payload,
            "sizes": np.array(sizes, "<u4").tobytes(),
        }
    )


@settings(max_examples=300, deadline=None)
@given(segments())
def test_items_have_their_slots_where_they_stand(parts: list[tuple[Kind, Any, bool]]) -> None:
    tokens: list[int] = []
    scored: list[bool] = []
    spans: list[list[int]] = []
    items: list[tuple[int, int, bytes]] = []
    for number, (kind, content, is_scored) in enumerate(parts):
        begin = len(tokens)
        if kind == Kind.IMAGE:
            tokens += [FILLER] * (content[0] * content[1])
            items.append((begin, len(tokens), bytes([number]) * (1 + number)))
        else:
            tokens += content
        if kind == Kind.TEXT_SPAN:
            spans.append([begin, len(tokens)])
        scored += [is_scored] * (len(tokens) - begin)

    found = slotted(stored(parts), VECTORS, filler=FILLER)

    assert found.tokens.tolist() == tokens
    assert found.scored.tolist() == scored
    assert found.spans.tolist() == spans
    assert [(start, stop, item.data) for item, start, stop in found.items] == items


def test_a_size_that_nobody_recorded() -> None:
    document = stored([(Kind.IMAGE, (0, 0), False), (Kind.TEXT, [7], True)])
    with pytest.raises(ValueError, match="an item whose size was not recorded"):
        slotted(document, VECTORS, filler=FILLER)
    with pytest.raises(ValueError, match="sizes have shape"):
        Document.from_columns(
            {
                "id": "x",
                "tokens": np.array([7]),
                "segments": np.array([[2, 1, 0], [0, 1, 1]]),
                "payload": b"x",
                "sizes": b"",
            }
        )
