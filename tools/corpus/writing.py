"""Shards of one split of one part, each with its file of lengths."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from model import torchvision_free
from train.data.document import ITEM_COLUMNS, LENGTH_COLUMNS, MEDIA
from train.errors import DataError

torchvision_free.install()

from streaming import MDSWriter  # noqa: E402  # after install()
from streaming.base.hashing import get_hash  # noqa: E402  # after install()

SHARD_HASHES: Final = ("sha1", "xxh64")
LENGTHS_HASH: Final = "xxh64"
MOST_SHARD_BYTES: Final = 1 << 31
"""Offsets in a shard are 32 bits wide."""

Deliver = Callable[[str, Path | bytes], None]
"""Puts a file, by its path or its content, under a name into the split."""


class ShardRecord(BaseModel):
    """A shard as the index lists it, and its lengths as `lengths.json` does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: dict[str, Any]
    lengths: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Of the shard."""
        return int(self.index["raw_data"]["bytes"])


class ShardWriter(MDSWriter):
    """Writes shards to a scratch directory and hands each on as soon as it is whole.

    Attributes:
        records: of the shards that were handed on.
    """

    def __init__(
        self, scratch: Path, columns: Mapping[str, str], *, stem: str, size: int, deliver: Deliver
    ) -> None:
        """Begin with no shard.

        Args:
            scratch: new directory.
            columns: MDS encodings by name.
            stem: first part of the names of shards.
            size: limit of a shard in bytes.
            deliver: takes shards and lengths.
        """
        super().__init__(
            out=str(scratch), columns=dict(columns), hashes=list(SHARD_HASHES), size_limit=size
        )
        self.records: list[ShardRecord] = []
        self._scratch = scratch
        self._stem = stem
        self._deliver = deliver
        self._lengths: list[tuple[int, ...]] = []
        self._items: list[Sequence[tuple[int, ...]]] = []

    def add(
        self,
        columns: Mapping[str, Any],
        lengths: tuple[int, ...],
        items: Sequence[tuple[int, ...]] = (),
    ) -> None:
        """Write a document; perhaps a shard becomes full and is handed on.

        Raises:
            DataError: the document is larger than any shard can be.
        """
        num_bytes = columns["tokens"].nbytes + len(columns.get("payload", b""))
        if num_bytes >= MOST_SHARD_BYTES:
            raise DataError(
                f"{columns['id']} has {num_bytes:,} bytes, and a document must stay below 2 GiB; "
                "cut it."
            )
        self._lengths.append(lengths)
        self._items.append(items)
        self.write(dict(columns))

    def flush_shard(self) -> None:
        """Write the documents that wait as a shard, and hand it on."""
        count = len(self.new_samples)
        if not count:  # what comes is larger than a shard may be
            return
        # The document that did not fit is known by its lengths already.
        lengths, self._lengths = self._lengths[:count], self._lengths[count:]
        items, self._items = self._items[:count], self._items[count:]
        super().flush_shard()
        entry = self.shards[-1]
        written = self._scratch / entry["raw_data"]["basename"]
        name = f"{self._stem}.shard-{len(self.records):05}"
        entry["raw_data"]["basename"] = f"{name}.mds"
        rows = np.array(lengths, dtype=np.uint32)
        self._deliver(f"{name}.mds", written)
        totals = [int(total) for total in rows.sum(axis=0, dtype=np.int64)]
        assert len(totals) == len(LENGTH_COLUMNS), "a number for each column"
        described = self._table(f"{name}.lengths.npy", rows)
        described |= {"documents": count, "totals": totals}
        if any(items):
            of_items = np.array(
                [(place, *item) for place, each in enumerate(items) for item in each], np.uint32
            )
            is_sized = of_items[:, 3:].any(axis=1)
            described["items"] = self._table(f"{name}.items.npy", of_items) | {
                "sized": [int((is_sized & (of_items[:, 2] == kind)).sum()) for kind in MEDIA]
            }
            assert of_items.shape[1] == len(ITEM_COLUMNS), "a number for each column"
        self.records.append(ShardRecord(index=entry, lengths=described))

    def _table(self, name: str, rows: npt.NDArray[np.uint32]) -> dict[str, Any]:
        """Hand on a file of numbers, and describe it."""
        data = npy(rows)
        self._deliver(name, data)
        hashes = {LENGTHS_HASH: get_hash(LENGTHS_HASH, data)}
        return {"basename": name, "bytes": len(data), "hashes": hashes}


def npy(array: npt.NDArray[Any]) -> bytes:
    """The content of a file that holds an array."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
