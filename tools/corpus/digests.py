"""Digests of ids and texts, very many at a time: which of them are equal to an earlier one."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

DIGEST_BYTES: Final = 16

Digests = npt.NDArray[np.void]
"""[n] digests of 16 bytes."""


def digest(data: bytes) -> bytes:
    """Of some bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def gathered(digests: Iterable[bytes]) -> Digests:
    """Digests as an array."""
    return np.frombuffer(b"".join(digests), dtype=f"V{DIGEST_BYTES}")


def repeats(digests: Digests) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which digests, [k], stood before, and [k] where each of them stood first."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    originals = first[inverse]
    repeated = np.flatnonzero(originals != np.arange(len(digests)))
    return repeated, originals[repeated]


def located(number: Any, sizes: Sequence[int]) -> tuple[int, int]:
    """In which of some groups, laid one after the other, a number lies, and where in it."""
    ends = np.cumsum(sizes)
    group = int(np.searchsorted(ends, number, side="right"))
    return group, int(number - ends[group] + sizes[group])
