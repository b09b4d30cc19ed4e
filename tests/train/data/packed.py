"""Packed samples with paragraphs, and what holds for any choice of spans in them."""

import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
from hypothesis import strategies as st

from train.data.sample import Sample
from train.data.spans.places import Spans
from train.data.spans.text import TextSpansConfig
from train.data.tokens import SpecialTokens

Kind = TypeVar("Kind", bound=TextSpansConfig)

SPECIAL = SpecialTokens()
WORD = 9


@dataclass(frozen=True)
class Seeded(Generic[Kind]):
    """A kind of spans under a seed."""

    config: Kind
    seed: int = 0

    def choose(self, sample: Sample, *, epoch: int, choice: int = 0) -> Spans:
        return self.config.choose(
            sample, seed=self.seed, epoch=epoch, choice=choice, special=SPECIAL
        )


def document(*paragraphs: int, start: bool = True) -> list[int]:
    """`<s>`, and paragraphs of these many words, each closed by `</s>`, the last by `</d>`."""
    tokens = [SPECIAL.start] if start else []
    for place, words in enumerate(paragraphs):
        last = place == len(paragraphs) - 1
        tokens += [WORD] * words + [SPECIAL.document if last else SPECIAL.paragraph]
    return tokens


def pack(*documents: list[int], id: int = 0, source: int = 0) -> Sample:
    """Documents behind each other, and where they lie."""
    ends = np.cumsum([len(one) for one in documents])
    return Sample(
        id=id,
        tokens=np.array([token for one in documents for token in one], dtype=np.int64),
        documents=np.stack([ends - [len(one) for one in documents], ends], axis=1),
        source=source,
    )


@st.composite
def packed_samples(draw: st.DrawFn) -> Sample:
    """Up to six documents, each with `<s>` or all but the first without, some of them cut."""
    start = draw(st.booleans())
    lengths = st.lists(st.integers(0, 150), min_size=1, max_size=8)
    documents = [
        document(*draw(lengths), start=start or place == 0)
        for place in range(draw(st.integers(1, 6)))
    ]
    # The last tokens of a document may be in another sequence.
    documents = [one[: max(2, len(one) - draw(st.sampled_from([0, 0, 1, 7])))] for one in documents]
    return pack(*documents, id=draw(st.integers(0, 2**40)), source=draw(st.integers(0, 3)))


def check_places(sample: Sample, spans: Spans) -> None:
    """Spans rise, do not overlap and hold a token; none holds an end, a start or a last token."""
    assert sample.documents is not None
    assert spans.dtype == np.int64
    assert spans.shape == (len(spans), 2)
    for start, stop in spans:
        assert start < stop
        inside = sample.tokens[start:stop].tolist()
        assert not {SPECIAL.start, SPECIAL.document} & set(inside)
        owners = [(a, b) for a, b in sample.documents if a <= start < b]
        assert len(owners) == 1
        assert stop < owners[0][1], "never across documents, nor to the last token of one"
    for (_, stop), (start, _) in pairwise(spans.tolist()):
        assert stop <= start


def in_another_process(code: str) -> str:
    """What code prints there."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
