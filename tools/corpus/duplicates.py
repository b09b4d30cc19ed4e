"""Finds documents that are like an earlier one: equal but for case and space, or nearly equal.

First every part's documents are reduced to fingerprints, in parallel; then one process goes through
these in the global order and says which documents stay. The split comes after it, so that no
document of validation has its like in training.
"""

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash
from datasketch import MinHash, MinHashLSH

from tools.corpus.digests import digest, gathered, repeats
from tools.corpus.entries import Entry, MediaPiece
from tools.corpus.part import BadList, Job
from tools.corpus.pool import Report
from tools.corpus.request import SHINGLE_WORDS, Dedup
from tools.corpus.workshop import FINGERPRINTS, KEEP
from train.data.segments import TextSegment

_SHINGLES_AT_ONCE: Final = 1 << 14
_SCHEME: Final = "affine32"
# Candidates are compared once more, so missing one is worse than looking at one too many.
_WEIGHTS: Final = (0.1, 0.9)
# Scripts without spaces have a word in each character.
_WORDS: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|\w+")


class Fingerprinter:
    """Reduces the documents of parts to fingerprints."""

    def __init__(self, job: Job) -> None:
        """Draw the permutations, the same in every process."""
        self._job = job
        self._dedup = job.request.dedup
        self._empty = MinHash(
            self._dedup.permutations, hashfunc=xxhash.xxh32_intdigest, scheme=_SCHEME
        )

    def __call__(self, number: int, report: Report) -> list[str]:
        """Note the fingerprints of a part.

        Returns:
            What is bad in it.

        Raises:
            DataError: more is bad than may be.
        """
        bad = BadList(self._job.request.skip_bad)
        digests: list[bytes] = []
        signatures: list[npt.NDArray[np.uint32]] = []
        for entry in self._job.read(number, bad.add, report):
            digests.append(digest_of(entry))
            if self._dedup.method == "minhash":
                signatures.append(self._signature(entry))
        content = io.BytesIO()
        np.savez(
            content,
            digests=gathered(digests),
            signatures=np.array(signatures, np.uint32).reshape(-1, self._dedup.permutations),
        )
        self._job.workshop.note(FINGERPRINTS, number, content.getvalue())
        return bad.found

    def _signature(self, entry: Entry) -> npt.NDArray[np.uint32]:
        """MinHash of the text; zeros, which no MinHash is, where near is not near enough."""
        minhash = self._empty.copy()
        if entry.has_media:  # "a photo of a dog" is written under many photos
            return np.zeros(len(minhash), np.uint32)
        shingles = _shingles(normalised(entry))
        while some := list(islice(shingles, _SHINGLES_AT_ONCE)):
            minhash.update_batch(some)
        return minhash.hashvalues


def normalised(entry: Entry) -> str:
    """The text of a document without what makes no difference: case, space, ways to write é."""
    text = " ".join(piece.text for piece in entry.pieces if isinstance(piece, TextSegment))
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def digest_of(entry: Entry) -> bytes:
    """Equal for documents of equal text, and equal payloads, whatever their ids."""
    payloads = (piece.data for piece in entry.pieces if isinstance(piece, MediaPiece))
    whole = (b"\0" + hashlib.sha256(data).digest() for data in payloads)
    return digest(b"".join((normalised(entry).encode(), *whole)))


def decide(job: Job) -> None:
    """Note which documents of each part stay, unless an earlier run did."""
    workshop, dedup, parts = job.workshop, job.request.dedup, range(len(job.plan.parts))
    if workshop.noted(KEEP) == set(parts):
        return
    loaded = [workshop.read_note(FINGERPRINTS, number) for number in parts]
    digests = [arrays["digests"] for arrays in loaded]
    keep = np.ones(sum(map(len, digests)), dtype=bool)
    keep[repeats(np.concatenate(digests))[0]] = False
    if dedup.method == "minhash":
        _drop_near(np.concatenate([arrays["signatures"] for arrays in loaded]), keep, dedup)
    ends = np.cumsum([len(of_part) for of_part in digests])
    for number, of_part in enumerate(np.split(keep, ends[:-1])):
        workshop.note(KEEP, number, of_part)


def _drop_near(
    signatures: npt.NDArray[np.uint32], keep: npt.NDArray[np.bool_], dedup: Dedup
) -> None:
    """Clear `keep` where a document is near to one before it that stays."""
    index = MinHashLSH(threshold=dedup.threshold, num_perm=dedup.permutations, weights=_WEIGHTS)
    permutations = MinHash(dedup.permutations, scheme=_SCHEME).permutations
    for number in np.flatnonzero(keep & signatures.any(axis=1)).tolist():
        own = MinHash(hashvalues=signatures[number], permutations=permutations, scheme=_SCHEME)
        near = np.array(index.query(own), dtype=np.int64)
        similarity = (signatures[near] == signatures[number]).mean(axis=1)
        if (similarity >= dedup.threshold).any():
            keep[number] = False
        else:
            index.insert(number, own, check_duplication=False)


def _shingles(text: str) -> Iterator[bytes]:
    words = _WORDS.findall(text)
    if len(words) < SHINGLE_WORDS:
        yield text.encode()
    for begin in range(len(words) - SHINGLE_WORDS + 1):
        yield " ".join(words[begin : begin + SHINGLE_WORDS]).encode()
