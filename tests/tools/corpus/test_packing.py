from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.corpus.packing import document_tokens, pack
from train.data.tokens import SpecialTokens

SPECIAL = SpecialTokens()


def test_a_document_marks_its_paragraphs_and_its_end() -> None:
    tokens = document_tokens([np.array([10, 11]), np.array([12])], SPECIAL)
    assert tokens.tolist() == [10, 11, SPECIAL.paragraph, 12, SPECIAL.paragraph, SPECIAL.document]


def test_sequences_run_over_documents() -> None:
    documents = [np.array([10, 11, 1, 2]), np.array([12, 1, 2]), np.array([13, 14, 15, 1, 2])]
    packed = [row.tolist() for row in pack(documents, sequence_tokens=5, special=SPECIAL)]
    assert packed == [[0, 10, 11, 1, 2, 12], [0, 1, 2, 13, 14, 15]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 20))
def test_every_token_is_a_target_once(lengths: list[int], sequence_tokens: int) -> None:
    ends = np.cumsum([0, *lengths])
    stream = np.arange(100, 100 + ends[-1])
    documents = [stream[begin:end] for begin, end in pairwise(ends)]
    rows = list(pack(documents, sequence_tokens=sequence_tokens, special=SPECIAL))
    assert len(rows) == stream.size // sequence_tokens
    assert all(row.size == sequence_tokens + 1 and row[0] == SPECIAL.start for row in rows)
    targets = [token for row in rows for token in row[1:]]
    assert targets == stream[: len(targets)].tolist()
