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
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import xxhash
from datasketch import MinHash, MinHashLSH

from tools.corpus.entries import Bad, Entry, Fields, MediaPiece, TextPiece
from tools.corpus.part import DUPLICATES, BadList, keep_name
from tools.corpus.plan import BuildPlan
from tools.corpus.pool import Report
from tools.corpus.reading import PartReader
from tools.corpus.workshop import Workshop

Method = Literal["exact", "minhash"]

FINGERPRINTS: Final = "fingerprints"
SHINGLE_WORDS: Final = 5
_DONE: Final = "done.json"
_DIGEST_BYTES: Final = 16
_SHINGLES_AT_ONCE: Final = 1 << 14
_REPORT_DOCUMENTS: Final = 256
_SCHEME: Final = "affine32"
# Candidates are compared once more, so missing one is worse than looking at one too many.
_WEIGHTS: Final = (0.1, 0.9)
# Scripts without spaces have a word in each character.
_WORDS: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|\w+")


@dataclass(frozen=True, kw_only=True)
class Dedup:
    """Which documents are duplicates.

    Attributes:
        method: "exact" for equal text, "minhash" for nearly equal text; None to keep all.
        threshold: Jaccard similarity of the sets of five successive words.
        permutations: of MinHash: more of them estimate better and take longer.
    """

    method: Method | None = None
    threshold: float = 0.8
    permutations: int = 128

    def to_recipe(self) -> dict[str, Any]:
        """What the result depends on."""
        if self.method != "minhash":
            return {"method": self.method}
        return {
            "method": self.method,
            "threshold": self.threshold,
            "permutations": self.permutations,
            "shingle_words": SHINGLE_WORDS,
        }


@dataclass(frozen=True, kw_only=True)
class FingerprintSetup:
    """What every process needs to reduce documents."""

    out: str
    plan: BuildPlan
    fields: Fields
    dedup: Dedup
    skip_bad: int

    def __call__(self) -> "Fingerprinter":
        """Get ready, once in each process."""
        return Fingerprinter(self)


class Fingerprinter:
    """Reduces the documents of parts to fingerprints."""

    def __init__(self, setup: FingerprintSetup) -> None:
        """Draw the permutations, the same in every process."""
        self._setup = setup
        self._workshop = Workshop(setup.out)
        self._empty = MinHash(setup.dedup.permutations, hashfunc=_hash, scheme=_SCHEME)

    def __call__(self, number: int, report: Report) -> list[str]:
        """Write the fingerprints of a part.

        Returns:
            What is bad in it.

        Raises:
            DataError: more is bad than may be.
        """
        setup = self._setup
        part = setup.plan.parts[number]
        reader = PartReader(part, source=setup.plan.sources[part.source].name, fields=setup.fields)
        bad = BadList(setup.skip_bad)
        digests: list[bytes] = []
        signatures: list[npt.NDArray[np.uint32]] = []
        done = since = 0
        for item in reader:
            if isinstance(item, Bad):
                bad.add(item)
                continue
            digests.append(digest(item))
            if setup.dedup.method == "minhash":
                signatures.append(self._signature(item))
            since += 1
            if since == _REPORT_DOCUMENTS:
                report(reader.done_bytes - done, since, 0)
                since, done = 0, reader.done_bytes
        report(part.num_bytes - done, since, 0)
        width = setup.dedup.permutations if setup.dedup.method == "minhash" else 0
        content = io.BytesIO()
        np.savez(
            content,
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES),
            signatures=np.array(signatures, np.uint32).reshape(len(signatures), width),
        )
        self._workshop.write(
            self._workshop.working / FINGERPRINTS / fingerprints_name(number), content.getvalue()
        )
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


def fingerprints_name(part: int) -> str:
    """Of the file with a part's fingerprints."""
    return f"{part:05}.npz"


def normalised(entry: Entry) -> str:
    """The text of a document without what makes no difference: case, space, ways to write é."""
    text = " ".join(piece.text for piece in entry.pieces if isinstance(piece, TextPiece))
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def digest(entry: Entry) -> bytes:
    """Equal for documents of equal text, and equal payloads, whatever their ids."""
    found = hashlib.blake2b(normalised(entry).encode(), digest_size=_DIGEST_BYTES)
    for piece in entry.pieces:
        if isinstance(piece, MediaPiece):
            found.update(b"\0" + hashlib.sha256(piece.data).digest())
    return found.digest()


def decide(workshop: Workshop, *, parts: int, dedup: Dedup) -> None:
    """Write which documents of each part stay, unless an earlier run did.

    Args:
        workshop: with the fingerprints of all parts.
        parts: how many there are.
        dedup: what counts as a duplicate.
    """
    directory = workshop.working / DUPLICATES
    if workshop.read(directory / _DONE) is not None:
        return
    loaded = [_load(workshop, number) for number in range(parts)]
    digests = np.concatenate([found["digests"] for found in loaded])
    keep = _first_of_equals(digests)
    if dedup.method == "minhash":
        _drop_near(np.concatenate([found["signatures"] for found in loaded]), keep, dedup)
    ends = np.cumsum([len(found["digests"]) for found in loaded])
    for number, of_part in enumerate(np.split(keep, ends[:-1])):
        content = io.BytesIO()
        np.save(content, of_part, allow_pickle=False)
        workshop.write(directory / keep_name(number), content.getvalue())
    workshop.write_json(directory / _DONE, {"duplicates": int((~keep).sum())})


def _load(workshop: Workshop, part: int) -> dict[str, npt.NDArray[Any]]:
    data = workshop.read(workshop.working / FINGERPRINTS / fingerprints_name(part))
    assert data is not None, "all parts have been reduced"
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _first_of_equals(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    keep = np.zeros(len(digests), dtype=bool)
    whole = np.ascontiguousarray(digests).view(f"V{_DIGEST_BYTES}").ravel()
    # The index of a first occurrence: a stable sort stands behind it.
    keep[np.unique(whole, return_index=True)[1]] = True
    return keep


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


def _hash(data: bytes) -> int:
    return xxhash.xxh32_intdigest(data)
