"""Nearly equal documents: DataTrove's MinHash finds candidates, and whole signatures decide.

    each part ── its signatures, by bucket ──▶ each bucket ── pairs ──▶ clusters ──▶ who stays

Signatures and pairs are DataTrove's first two stages, through files, each part and each bucket by a
process that holds no more than that part, or a few lines of every part. Two documents are a pair if
they agree in all hashes of a bucket. DataTrove then keeps one document of each cluster of pairs,
whichever it is. Here the first stays, and each further one that is near to none that stays: a chain
of ever less like documents is no reason to lose its end.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import xxhash
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupSignature,
)
from datatrove.utils.word_tokenizers import WhitespaceTokenizer
from loguru import logger
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tools.corpus.request import SHINGLE_WORDS, Dedup

logger.disable("datatrove")  # whoever builds is told in our own words

Signatures = npt.NDArray[np.uint32]
"""[n, k] the lower half of each hash of n documents."""

_SHINGLES_AT_ONCE: Final = 1 << 14
# Scripts without spaces have a word in each character.
_WORDS: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|\w+")
# Candidates are compared once more, so missing one is worse than looking at one too many.
_FALSE_WEIGHT, _MISSED_WEIGHT = 0.1, 0.9


@cache
def config_of(dedup: Dedup) -> MinhashConfig:
    """How many buckets of how many hashes: the best for a threshold that the permutations allow."""
    shares = np.linspace(0, 1, 1001)
    is_near = shares >= dedup.threshold

    def error(buckets: int, hashes: int) -> float:
        found = 1 - (1 - shares**hashes) ** buckets
        return float(
            _FALSE_WEIGHT * found[~is_near].sum() + _MISSED_WEIGHT * (1 - found[is_near]).sum()
        )

    choices = (
        (dedup.permutations // hashes, hashes) for hashes in range(1, dedup.permutations + 1)
    )
    buckets, hashes = min(choices, key=lambda choice: error(*choice))
    return MinhashConfig(num_buckets=buckets, hashes_per_bucket=hashes)


def directory_of(bucket: int) -> str:
    """What DataTrove calls the directory of a bucket's signatures."""
    return f"bucket_{bucket:03}"


def file_of(part: int) -> str:
    """What DataTrove calls the file of a part's signatures in each of these directories."""
    return f"{part:05}.minhash.sig"


class Signing(MinhashDedupSignature):
    """DataTrove's first stage over words as they are told apart here.

    Attributes:
        signatures: of the documents that went through it.
    """

    def __init__(self, folder: Path, dedup: Dedup) -> None:
        """Nothing is read yet.

        Args:
            folder: is to hold a file for each bucket.
            dedup: what is near.
        """
        # It is never asked: the shingles are ours. The default would want spaCy.
        words: Any = WhitespaceTokenizer()
        super().__init__(str(folder), config_of(dedup), language=words)
        self._signatures: list[Signatures] = []

    @property
    def signatures(self) -> Signatures:
        """Of all documents that went through it."""
        return np.array(self._signatures, np.uint32).reshape(-1, self.num_hashes)

    def sign(self, texts: Iterable[str | bytes], *, part: int) -> None:
        """Write the signatures of a part's documents.

        Args:
            texts: normalised; bytes where nothing but the same bytes is near enough.
            part: its number.
        """
        documents: Any = (Document(text=cast(str, text), id="") for text in texts)
        self.run(documents, rank=part)

    def get_shingles(self, text: str | bytes) -> npt.NDArray[np.uint64]:
        """Hashes of five words each, [n, 1]."""
        pieces = [text] if isinstance(text, bytes) else _shingles(text)
        return np.fromiter(map(xxhash.xxh64_intdigest, pieces), np.uint64).reshape(-1, 1)

    def get_signature(self, shingles: npt.NDArray[np.uint64]) -> list[list[int]]:
        """The smallest of each hash, by buckets; of a long document some shingles at a time."""
        found: list[list[int]] | None = None
        for begin in range(0, len(shingles), _SHINGLES_AT_ONCE):
            some = super().get_signature(shingles[begin : begin + _SHINGLES_AT_ONCE])
            found = some if found is None else np.minimum(found, some).tolist()
        assert found is not None, "a text without words is a shingle itself"
        self._signatures.append(np.array(found, np.uint64).astype(np.uint32).ravel())
        return found


def write_pairs(signatures: Path, out: Path, dedup: Dedup, *, bucket: int) -> Path:
    """Write which documents agree in a bucket, DataTrove's second stage.

    Args:
        signatures: of all parts, a directory for each bucket.
        out: where to write.
        dedup: what is near.
        bucket: its number.

    Returns:
        The file.
    """
    config = config_of(dedup)
    step = MinhashDedupBuckets(str(signatures), str(out), config=config)
    step.run(None, bucket, config.num_buckets)
    return out / f"{bucket:05}_00.dups"


class Clusters:
    """Documents that hang together by pairs.

    Attributes:
        members: by cluster, [n] numbers `part << 32 | document`, in order.
    """

    def __init__(self, pairs: Iterable[bytes]) -> None:
        """Find them.

        Args:
            pairs: what was written about each bucket.
        """
        table = np.frombuffer(b"".join(pairs), "<u4").astype(np.int64).reshape(-1, 2, 2)
        numbers, places = np.unique(table[..., 0] << 32 | table[..., 1], return_inverse=True)
        ends = places.reshape(-1, 2)
        size = len(numbers)
        graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), (size, size))
        _, labels = connected_components(graph, directed=False)
        order = np.argsort(labels, kind="stable")  # so that members stay in order
        cuts = np.flatnonzero(np.diff(labels[order])) + 1
        self.members: list[npt.NDArray[np.int64]] = np.split(numbers[order], cuts) if size else []
        self._numbers = numbers

    def documents(self, part: int) -> npt.NDArray[np.int64]:
        """[n] those of a part that are in any cluster."""
        begin, end = np.searchsorted(self._numbers, [part << 32, (part + 1) << 32])
        return self._numbers[begin:end] & 0xFFFFFFFF

    def dropped(self, signatures: Signatures, threshold: float) -> npt.NDArray[np.int64]:
        """Documents that are near to one before them that stays.

        Args:
            signatures: of the documents of all parts' `documents`.
            threshold: the share of equal hashes from which on two are near.

        Returns:
            [n, 2] the part of each, and its number there.
        """
        found = [
            number
            for members in self.members
            for number in _dropped(members, signatures[self._places(members)], threshold)
        ]
        numbers = np.array(found, np.int64)
        return np.stack([numbers >> 32, numbers & 0xFFFFFFFF], axis=1)

    def _places(self, members: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self._numbers, members)


def _dropped(
    members: npt.NDArray[np.int64], signatures: Signatures, threshold: float
) -> Iterator[int]:
    """Those of a cluster's members, in order, that are near to an earlier one that stays."""
    staying = np.empty_like(signatures)
    count = 0
    for number, own in zip(members.tolist(), signatures, strict=True):
        if ((staying[:count] == own).mean(axis=1) >= threshold).any():
            yield number
        else:
            staying[count] = own
            count += 1


def _shingles(text: str) -> Iterator[bytes]:
    words = _WORDS.findall(text)
    if len(words) < SHINGLE_WORDS:
        yield text.encode()
    for begin in range(len(words) - SHINGLE_WORDS + 1):
        yield " ".join(words[begin : begin + SHINGLE_WORDS]).encode()
