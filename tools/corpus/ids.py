"""Ids that the user's own column gives: whether two documents have the same."""

import hashlib
import json
from collections.abc import Sequence
from typing import Final

import numpy as np

from tools.corpus.workshop import Workshop
from train.errors import DataError

IDS: Final = "ids"
_DIGEST_BYTES: Final = 16


def write_ids(workshop: Workshop, part: int, ids: Sequence[str]) -> None:
    """Note the ids of a part."""
    workshop.write(workshop.working / IDS / f"{part:05}.json", json.dumps(ids).encode())


def require_unique(workshop: Workshop, *, parts: int, field: str) -> None:
    """Check that no two documents have the same id.

    Raises:
        DataError: two have.
    """
    digests = [
        b"".join(
            hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
            for name in _read(workshop, part)
        )
        for part in range(parts)
    ]
    whole = np.frombuffer(b"".join(digests), dtype=f"V{_DIGEST_BYTES}")
    first = np.unique(whole, return_index=True)[1]
    repeated = np.setdiff1d(np.arange(len(whole)), first)
    if not len(repeated):
        return
    ends = np.cumsum([len(found) // _DIGEST_BYTES for found in digests])
    part = int(np.searchsorted(ends, repeated[0], side="right"))
    ids = _read(workshop, part)
    name = ids[int(repeated[0]) - int(ends[part]) + len(ids)]
    raise DataError(
        f"{len(repeated):,} documents have the id of another, such as {name}: `{field}` does not "
        "tell them apart. Delete what was built, and build without --id-field or with another."
    )


def _read(workshop: Workshop, part: int) -> list[str]:
    data = workshop.read(workshop.working / IDS / f"{part:05}.json")
    assert data is not None, "written before the part's record"
    return json.loads(data)
