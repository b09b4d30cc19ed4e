"""How an answer about a picture counts against those of ten people."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from typing_extensions import override

from train.scores.measure import Mean

_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_OF_A_NUMBER: Final = re.compile(r"\d,\d")
_PERIOD: Final = re.compile(r"\.(?!\d)")
_MOST_PERIODS: Final = 32
"""That are dropped: the script hands a flag over where a count is meant."""
_NUMBERS: Final[Mapping[str, str]] = {
    "none": "0",
    **{
        word: str(number)
        for number, word in enumerate(
            ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
        )
    },
}
_ARTICLES: Final = frozenset({"a", "an", "the"})

_CONTRACTED: Final = (
    *("ain't", "aren't", "can't", "could've", "couldn't", "couldn't've", "didn't", "doesn't"),
    *("don't", "hadn't", "hadn't've", "hasn't", "haven't", "he'd", "he'd've", "he's"),
    *("how'd", "how'll", "how's", "isn't", "it'd", "it'd've", "it'll", "ma'am"),
    *("mightn't", "mightn't've", "might've", "mustn't", "must've", "needn't", "not've", "o'clock"),
    *(
        "oughtn't",
        "shan't",
        "she'd've",
        "should've",
        "shouldn't",
        "shouldn't've",
        "somebody'd've",
        "somebody'll",
    ),
    *(
        "somebody's",
        "someone'd",
        "someone'd've",
        "someone'll",
        "someone's",
        "something'd",
        "something'd've",
        "something'll",
    ),
    *("that's", "there'd", "there'd've", "there're", "there's", "they'd", "they'd've", "they'll"),
    *("they're", "they've", "'twas", "wasn't", "we'd've", "we've", "weren't", "what'll"),
    *("what're", "what's", "what've", "when's", "where'd", "where's", "where've", "who'd"),
    *("who'd've", "who'll", "who's", "who've", "why'll", "why're", "why's", "won't"),
    *(
        "would've",
        "wouldn't",
        "wouldn't've",
        "y'all",
        "y'all'll",
        "y'all'd've",
        "you'd",
        "you'd've",
    ),
    *("you'll", "you're", "you've", "'ow's'at"),
)
"""Words that are known without one of their apostrophes."""


def _without_one(word: str) -> list[str]:
    places = [at for at, sign in enumerate(word) if sign == "'"]
    return [word[:at] + word[at + 1 :] for at in places]


_CONTRACTIONS: Final[Mapping[str, str]] = {
    **{short: word for word in _CONTRACTED for short in _without_one(word)},
    "somebody'd": "somebodyd",  # as the script has it
}


class VqaAccuracy(Mean):
    """A third for each who says the same, at most 1; the mean over who of the ten is left out.

    Where all people say the same, an answer is compared as it stands; else all are normalised.

    Source: GT-Vision-Lab/VQA, `vqaEval.py`; visualqa.org/evaluation.
    """

    @override
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        said, given = _plain(answer), [_plain(each) for each in right]
        if len({*given}) > 1:
            said, given = normalised(said), [normalised(each) for each in given]
        same = given.count(said)
        # Those who say the same have one less among the others.
        others = same * min(1, (same - 1) / 3) + (len(given) - same) * min(1, same / 3)
        return [others / len(given)]


def normalised(text: str) -> str:
    """Lower case, digits for small numbers, apostrophes back; no articles, nor most signs.

    Source: `processPunctuation` and `processDigitArticle` of `vqaEval.py`.
    """
    is_number = _COMMA_OF_A_NUMBER.search(text) is not None
    found = text
    for sign in _PUNCTUATION:
        is_beside_space = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if is_beside_space or is_number else " ")
    found = _PERIOD.sub("", found, count=_MOST_PERIODS)
    words = [_NUMBERS.get(word, word) for word in found.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
