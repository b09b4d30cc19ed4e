"""How captions count, as COCO's server counts them: BLEU-4, ROUGE-L, CIDEr-D.

Words are those of Stanford's PTBTokenizer, which that server runs in Java, as far as captions hold
them (docs/decisions/0053-captions-without-java.md).
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from typing_extensions import override

from train.scores.bleu import Bleu
from train.scores.measure import Floats, Mean, Metric

_ORDER: Final = 4
_BETA: Final = 1.2
"""Weight of recall against precision in ROUGE-L."""
_SIGMA: Final = 6.0
"""Of the penalty for another length in CIDEr-D, in words."""
_SCALE: Final = 10.0

_DROPPED: Final = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", ";", '"'})
_BRACKETS: Final[Mapping[str, str]] = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
}
_PARTED: Final[Mapping[str, tuple[str, str]]] = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
}
_STRAIGHT: Final = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "\n": " "})
_WORD: Final = re.compile(
    r"""
      (?:https?://|www\.)\S+[^\s.,!?;:'")] | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
    | (?P<dropped> \.{3,} | -{3,} | [–—] )
    | [!?]{2,}
    | (?: (?:\b[a-z]\.)+ | \b(?:mr|mrs|ms|dr|prof|st|ave|jr|sr|vs|inc|corp|ltd|mt|ft|etc)\. )(?!\w)
    | \w+?(?=n't\b) | n't\b | '(?:s|m|d|ll|re|ve)\b
    | \d+(?:[.,:/]\d+)+(?:st|nd|rd|th)?
    | o'clock | 'n' | '\d\ds?\b | </?[a-z]\w*> | \b[a-z]\+\+ | \#[a-z]\w*
    | \w+(?:[-&/.]\w+)*
    | --? | \S
    """,
    re.VERBOSE,
)


def words(text: str) -> list[str]:
    """What counts as words of a caption: lower case, clitics apart, without punctuation."""
    found: list[str] = []
    for match in _WORD.finditer(text.lower().translate(_STRAIGHT)):
        word = match[0]
        if match["dropped"] or word in _DROPPED:
            continue
        found += _PARTED.get(word, (_BRACKETS.get(word, word),))
    return found


class CaptionBleu(Bleu):
    """BLEU-4 of all rows together; the right answer whose length is nearest tells how long."""

    tokenizer = "none"
    smoothing = "none"

    @override
    def prepared(self, text: str) -> str:
        return " ".join(words(text))


class CaptionRouge(Mean):
    """ROUGE-L of the best precision and the best recall over a row's right answers."""

    @override
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        said = words(answer)
        pairs = [(wanted, _longest_common(said, wanted)) for wanted in map(words, right)]
        precision = max(common / max(1, len(said)) for _, common in pairs)
        recall = max(common / max(1, len(wanted)) for wanted, common in pairs)
        if not precision or not recall:
            return [0.0]
        return [(1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)]


class Cider(Metric):
    """CIDEr-D, from 0 to 10: words count that few other rows have in what is right there.

    All rows that are asked tell which these are: of a few rows of a task it is on another scale.

    Source: Vedantam et al. 2015, §4 and §8; `cider_scorer.py` of coco-caption.
    """

    @override
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        return self.counts([answer], [right])[0]

    @override
    def counts(self, answers: Sequence[str], right: Sequence[Sequence[str]]) -> list[list[float]]:
        wanted = [[_grams(each) for each in some] for some in right]
        rows_with = Counter(gram for some in wanted for gram in set().union(*some))
        rarity = _Rarity(rows_with, len(wanted))
        return [
            [_SCALE * fmean(rarity.likeness(_grams(answer), each) for each in some)]
            for answer, some in zip(answers, wanted, strict=True)
        ]

    @override
    def together(self, counts: Floats) -> Floats:
        return counts[..., 1] / counts[..., 0]


Gram = tuple[str, ...]


class _Rarity:
    """How much each n-gram weighs.

    Args:
        rows_with: rows that have it in what is right.
        num_rows: of all.
    """

    def __init__(self, rows_with: Mapping[Gram, int], num_rows: int):
        self._rows_with = rows_with
        self._most = math.log(num_rows)

    def likeness(self, said: Mapping[Gram, int], wanted: Mapping[Gram, int]) -> float:
        """Mean cosine over orders, from 0 to 1; what is said too often counts as if it were not."""
        total = 0.0
        for order in range(1, _ORDER + 1):
            here, there = self._weights(said, order), self._weights(wanted, order)
            norm = math.sqrt(_squares(here) * _squares(there))
            if norm:
                shared = sum(
                    min(here[gram], there[gram]) * there[gram]
                    for gram in here.keys() & there.keys()
                )
                total += shared / norm
        longer = _length(said) - _length(wanted)
        return total / _ORDER * math.exp(-(longer**2) / (2 * _SIGMA**2))

    def _weights(self, grams: Mapping[Gram, int], order: int) -> dict[Gram, float]:
        return {
            gram: times * (self._most - math.log(max(1, self._rows_with.get(gram, 0))))
            for gram, times in grams.items()
            if len(gram) == order
        }


def _grams(text: str) -> Counter[Gram]:
    found = words(text)
    return Counter(
        tuple(found[at : at + order])
        for order in range(1, _ORDER + 1)
        for at in range(len(found) - order + 1)
    )


def _squares(weights: Mapping[Gram, float]) -> float:
    return sum(weight**2 for weight in weights.values())


def _length(grams: Mapping[Gram, int]) -> int:
    """Pairs of words, which is what is compared."""
    return sum(times for gram, times in grams.items() if len(gram) == 2)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Words of the longest sequence that is in both, with gaps."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for at, each in enumerate(other):
            row.append(before[at] + 1 if word == each else max(row[at], before[at + 1]))
    return row[-1]
