"""Which rows of a task a run has read: overlaps of their texts with the documents of its ledger.

A row is found in a document where they share as many words in a row as `WORDS`, or where the
document holds one of the row's texts whole that has fewer, but `FEWEST_WORDS`. Texts of a row are
its columns, not what a template makes of them: templates are shared by design. Case, punctuation
and spaces do not count. In scripts that put no spaces between words (Chinese, Japanese, Thai, Lao,
Khmer, Burmese, Tibetan) each sign counts as half a word.

Source: the 13-grams of GPT-3 (Brown et al. 2005.14165, appendix C).
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from train.data.ledger_check import Findings, Ledger, history
from train.data.plan import StepPlan, identities
from train.data.tokens import SpecialTokens
from train.errors import DataError

WORDS: Final = 13
FEWEST_WORDS: Final = 5
"""Texts of fewer words say nothing: they occur everywhere."""

_UNSPACED: Final = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_WORD: Final = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")
_SIGN: Final = re.compile(f"[{_UNSPACED}]")

Words = tuple[str, ...]
Part = tuple[int, int, int, int]
"""Source, number of the document, and the range of its tokens; -1 is its end."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a row shares with a document.

    Attributes:
        row: name of the row.
        source: name of the source that the document is of.
        number: of the document in it.
        document: its id.
        steps: at which the run has read it, in rising order.
        shared: the first words that they share.
        share: of the row's runs of words, those that the document holds.
    """

    row: str
    source: str
    number: int
    document: str
    steps: list[int]
    shared: str
    share: float


@dataclass(kw_only=True)
class Contamination:
    """What was found.

    Attributes:
        rows: looked for.
        silent: rows with too few words to be found.
        documents: read by the run.
        steps: of the run.
        overlaps: rows and documents, by row.
        note: what was not looked at, if anything.
    """

    rows: int = 0
    silent: int = 0
    documents: int = 0
    steps: int = 0
    overlaps: list[Overlap] = field(default_factory=list[Overlap])
    note: str = ""


def contamination(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    ledger: Ledger,
    plan: StepPlan,
    tokenizer: Tokenizer,
) -> Contamination:
    """Looks for rows in what a run has really read.

    Args:
        rows: name and columns of each.
        ledger: of the run.
        plan: of the run: its sources, and what was read where the ledger holds digests only.
        tokenizer: that its documents were written with.

    Raises:
        DataError: the ledger is damaged or does not fit the plan; a document cannot be read.
    """
    known = _Known()
    names: list[str] = []
    counts: list[int] = []
    found = Contamination()
    for name, values in rows:
        own = {run for text in texts(values) for run in runs_of(words(text))}
        names.append(name)
        counts.append(len(own))
        found.silent += not own
        for run in own:
            known.add(run, len(names) - 1)
    found.rows = len(names)
    steps = steps_of(ledger, plan)
    found.documents = len({part[:2] for part in steps})
    found.steps = len({step for each in steps.values() for step in each})
    shared: dict[tuple[int, int, int], set[Words]] = defaultdict(set)
    read_at: dict[tuple[int, int, int], set[int]] = defaultdict(set)
    first: dict[tuple[int, int, int], Words] = {}
    paragraph = SpecialTokens.from_vocabulary(tokenizer.get_vocab()).paragraph
    for part in sorted(steps):
        source, number, begin, end = part
        tokens = plan.sources.all[source].corpus.train.columns(number)["tokens"]
        part_tokens = tokens[begin : None if end < 0 else end]
        # Decoded at once, the last word of a paragraph and the first of the next would be one.
        ends = np.flatnonzero(part_tokens == paragraph)
        paragraphs = (tokenizer.decode(each.tolist()) for each in np.split(part_tokens, ends))
        for run, row in known.within(words("\n".join(paragraphs))):
            key = (row, source, number)
            shared[key].add(run)
            first.setdefault(key, run)
            read_at[key].update(steps[part])
    for (row, source, number), held in sorted(shared.items()):
        corpus = plan.sources.all[source]
        found.overlaps.append(
            Overlap(
                row=names[row],
                source=corpus.name,
                number=number,
                document=str(corpus.corpus.train.columns(number)["id"]),
                steps=sorted(read_at[row, source, number]),
                shared=" ".join(first[row, source, number]),
                share=len(held) / counts[row],
            )
        )
    return found


def steps_of(ledger: Ledger, plan: StepPlan) -> dict[Part, list[int]]:
    """At which steps each part of a document was read, in the history that counts.

    Raises:
        DataError: the ledger tells of another run.
    """
    findings = Findings()
    made = history(ledger, findings, entries=plan.entries, steps=plan.mixture.steps)
    if findings.faults:
        raise DataError(f"the ledger cannot be relied on: {findings.faults[0]}")
    found: dict[Part, list[int]] = defaultdict(list)
    for step in sorted(made):
        for record in made[step]:
            parts = record.identities
            if parts is None:  # beyond the file's limit there is a digest only
                stop = record.first + record.entries
                parts = identities(plan.step(step, first=record.first, stop=stop))
            for _, source, _, number, begin, end in parts.tolist():
                found[source, number, begin, end].append(step)
    return found


def texts(value: Any) -> Iterator[str]:
    """All texts in a record, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for each in value:
            yield from texts(each)


def words(text: str) -> list[str]:
    """Words in lower case, and signs that are none by themselves, without what lies between."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def runs_of(found: Sequence[str]) -> Iterator[Words]:
    """What a text is found by: runs of `WORDS` words, or all of it if it has fewer."""
    # In halves: exact, and one sign is one.
    ends = [0, *accumulate(1 if _SIGN.match(word) else 2 for word in found)]
    if ends[-1] < 2 * FEWEST_WORDS:
        return
    stop = 0
    for start in range(len(found)):
        while stop < len(found) and ends[stop] - ends[start] < 2 * WORDS:
            stop += 1
        if start and ends[stop] - ends[start] < 2 * WORDS:
            return
        yield tuple(found[start:stop])


class _Known:
    """Runs of words, found in a text by their first ones."""

    def __init__(self) -> None:
        self._rows: dict[Words, list[int]] = defaultdict(list)
        self._lengths: dict[Words, set[int]] = defaultdict(set)

    def add(self, run: Words, row: int) -> None:
        """A run that a row has."""
        self._rows[run].append(row)
        self._lengths[run[:FEWEST_WORDS]].add(len(run))

    def within(self, found: Sequence[str]) -> Iterator[tuple[Words, int]]:
        """The runs that a text holds, and the rows that have them."""
        for start in range(len(found) - FEWEST_WORDS + 1):
            begin = tuple(found[start : start + FEWEST_WORDS])
            for length in self._lengths.get(begin, ()):
                run = tuple(found[start : start + length])
                for row in self._rows.get(run, ()):
                    yield run, row
