"""Random access to the samples of an MDS directory, local or in object storage.

The files are mosaicml-streaming's; its `StreamingDataset` is not used, because there a missing
shard ends the epoch early or hangs, and its shared memory outlives a killed run. Here nothing is
shared, and whatever is wrong with a shard is an error that names it, in the thread that reads.
"""

import bisect
import contextlib
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from train.data.document import ITEM_COLUMNS, LENGTH_COLUMNS, LENGTHS_NAME, MEDIA
from train.data.store.index import (
    INDEX_BYTES_AT_MOST,
    INDEX_NAME,
    LengthsIndex,
    parse_index,
    parse_lengths_index,
)
from train.data.store.manifest import (
    MANIFEST_BYTES_AT_MOST,
    MANIFEST_NAME,
    Manifest,
    parse_manifest,
    require_lengths,
    require_promised,
    require_sha256,
)
from train.data.store.open_shard import EvictedError, OpenShard
from train.errors import DataError, StorageError
from train.storage.cache import CheckedFiles
from train.storage.config import StorageConfig
from train.storage.place import Place
from train.storage.stored_file import StoredFile

_MAX_OPEN_SHARDS: Final = 64
_MAX_UNLINKED_SHARDS: Final = 8
_UNDECODABLE: Final = (ValueError, TypeError, KeyError, IndexError, AssertionError, AttributeError)


class ShardStore:
    """The samples of one MDS directory, by number.

    A shard is checked against the size and hash in the index the first time that this process
    opens it. At most 64 shards are open at once, each costing a file descriptor and 4 bytes a
    sample. Threads may share a store; processes open one each, and those of a host share its cache.
    """

    def __init__(
        self, root: str, *, cache: Path | None = None, storage: StorageConfig | None = None
    ) -> None:
        """Read the index and the manifest; shards follow when they are asked for.

        Args:
            root: a directory, or a URL such as `s3://bucket/corpus/train`.
            cache: where remote files are kept; by default below `~/.cache/semicausal`, named after
                the URL.
            storage: how to reach them, and how much the cache may hold.

        Raises:
            DataError: there is no usable MDS directory at `root`.
        """
        with _data_errors():
            self.place = Place.parse(root, storage)
            if not self.place.is_remote:
                _require_directory(self.place)
            self._files = CheckedFiles(self.place, cache)
        self.root = str(self.place)
        index = self._read_index()
        manifest = self.read_beside(MANIFEST_NAME, limit_bytes=MANIFEST_BYTES_AT_MOST)
        self.manifest = (
            Manifest() if manifest is None else parse_manifest(manifest, place=self.root)
        )
        """What the corpus builder noted beside the index; empty if it noted nothing."""
        require_sha256(self.manifest, index, place=self.root, name=INDEX_NAME)
        self.index = parse_index(index, place=self.root)
        self._bounds: list[int] = [0, *np.cumsum(self.index.samples).tolist()]
        require_promised(self.manifest, place=self.root, samples=len(self))
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def shard_sizes(self) -> list[int]:
        """Samples in each shard, in the order in which sample ids count through them."""
        return self.index.samples.tolist()

    @property
    def shard_bytes(self) -> list[int]:
        """Size of each shard's file, in the same order."""
        return [file.num_bytes for file in self.index.files]

    def __len__(self) -> int:
        return self._bounds[-1]

    def columns(self, sample_id: int) -> dict[str, Any]:
        """The columns of the sample with this number, 0 <= number < len(self), as stored.

        Raises:
            DataError: its shard is missing, cut short or damaged, or could not be fetched in time.
            IndexError: there is no such number.
        """
        if not 0 <= sample_id < self._bounds[-1]:
            raise IndexError(f"{self.root} has samples 0 to {len(self) - 1}, not {sample_id}")
        shard = bisect.bisect_right(self._bounds, sample_id) - 1
        place = sample_id - self._bounds[shard]
        try:
            return self.index.columns[shard].decode(self._read(shard, place))
        except _UNDECODABLE as error:
            raise DataError(
                f"Sample {place} of {self.root}/{self.index.files[shard].name} cannot be decoded "
                f"({error}); build the corpus again."
            ) from error

    @property
    def totals(self) -> npt.NDArray[np.int64]:
        """[shards, 6] sums of `LENGTH_COLUMNS` over each shard, in a corpus of documents.

        Raises:
            DataError: the corpus has no lengths.
        """
        return self.lengths_index.totals

    def lengths(self, shard: int) -> npt.NDArray[np.uint32]:
        """[n, 6] `LENGTH_COLUMNS` of each document in a shard, without reading the shard.

        Raises:
            DataError: the corpus has no lengths, or those of the shard are missing or damaged, or
                could not be fetched in time.
        """
        name, lengths = self._table(self.lengths_index.files[shard])
        shape = (int(self.index.samples[shard]), len(LENGTH_COLUMNS))
        sums = self.lengths_index.totals[shard]
        if lengths.shape != shape or (lengths.sum(axis=0, dtype=np.int64) != sums).any():
            raise DataError(
                f"{name} does not hold the lengths that {LENGTHS_NAME} promises; build the corpus "
                "again."
            )
        return lengths

    def items(self, shard: int) -> npt.NDArray[np.uint32]:
        """[m, 7] `ITEM_COLUMNS` of each item in a shard, without reading the shard.

        Raises:
            DataError: as `lengths`.
        """
        listed = self.lengths_index.items[shard]
        if listed is None:
            return np.zeros((0, len(ITEM_COLUMNS)), np.uint32)
        name, items = self._table(listed.file)
        wanted = self.lengths_index.totals[shard, -len(MEDIA) :].tolist()
        if items.ndim != 2 or items.shape[1] != len(ITEM_COLUMNS):
            raise DataError(f"{name} holds no table of items; build the corpus again.")
        documents, kinds = items[:, 0].astype(np.int64), items[:, 2]
        is_sized = items[:, 3:].any(axis=1)
        if (
            [np.count_nonzero(kinds == kind) for kind in MEDIA] != wanted
            or [np.count_nonzero(is_sized & (kinds == kind)) for kind in MEDIA] != listed.sized
            or (np.diff(documents) < 0).any()
            or documents.max(initial=0) >= self.index.samples[shard]
        ):
            raise DataError(
                f"{name} does not hold the items that {LENGTHS_NAME} promises; build the corpus "
                "again."
            )
        return items

    def _table(self, file: StoredFile) -> tuple[str, npt.NDArray[np.uint32]]:
        """The name of a file of numbers beside a shard, and what it holds."""
        content = b""
        while len(content) < file.num_bytes:  # it may be evicted just now
            with _data_errors(), open(self._files.open(file), "rb") as opened:
                opened.seek(0)  # it was written or checked through the same descriptor
                content = opened.read()
        name = f"{self.root}/{file.name}"
        table = parse_array(content, name=name)
        if table.dtype != np.uint32:
            raise DataError(f"{name} holds no uint32 array; build the corpus again.")
        return name, table

    def prefetch(self, shards: Iterable[int]) -> None:
        """Begin to bring shards, and their lengths, from object storage into the cache.

        Returns at once; the first ones are brought first, and what is too much now is left out:
        call it again later. What goes wrong shows where the shard is read.

        Args:
            shards: their numbers, those that are wanted first at first.
        """
        self._files.prefetch(self._with_lengths(shards))

    def close(self) -> None:
        """Stop reading ahead and close the open shards; when asked, the store opens them again."""
        self._files.close()
        with self._lock:
            while self._opened:
                self._opened.popitem()[1].close()

    def read_beside(self, name: str, *, limit_bytes: int) -> bytes | None:
        """A file that lies beside the index, always fresh; None if there is none.

        Args:
            name: such as `tokenizer.json`, which the corpus builder puts there.
            limit_bytes: refuse one that is larger.

        Raises:
            DataError: it is no file, or could not be read in time.
        """
        try:
            with _data_errors():
                return (self.place / name).read(limit_bytes=limit_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"Cannot read {self.place / name}: {error.strerror}.") from error

    def _read(self, shard: int, place: int) -> bytes:
        while True:
            try:
                with self._lock:
                    opened = self._opened.get(shard)
                    if opened is not None:
                        self._opened.move_to_end(shard)
                        return opened.read(place)
                # Not under the lock: other threads go on while this one waits for the store.
                opened = self._open(shard)
                with self._lock:
                    if shard in self._opened:  # another one was quicker
                        opened.close()
                    else:
                        self._opened[shard] = opened
                        self._close_some()
            except EvictedError:
                with self._lock:
                    evicted = self._opened.pop(shard, None)
                    if evicted is not None:
                        evicted.close()

    def _close_some(self) -> None:
        while len(self._opened) > _MAX_OPEN_SHARDS:
            self._opened.popitem(last=False)[1].close()
        # Evicted, and on the disk until closed: that counts against no limit.
        unlinked = [shard for shard, opened in self._opened.items() if opened.is_unlinked]
        for shard in unlinked[:-_MAX_UNLINKED_SHARDS]:
            self._opened.pop(shard).close()

    def _open(self, shard: int) -> OpenShard:
        file = self.index.files[shard]
        with _data_errors():
            descriptor = self._files.open(file)
        return OpenShard(
            descriptor,
            name=f"{self.root}/{file.name}",
            samples=int(self.index.samples[shard]),
            columns=self.index.columns[shard],
            is_cached=self.place.is_remote,
        )

    def _with_lengths(self, shards: Iterable[int]) -> Iterator[StoredFile]:
        for shard in shards:
            if "lengths_index" in self.__dict__:
                yield self.lengths_index.files[shard]
                if (items := self.lengths_index.items[shard]) is not None:
                    yield items.file
            yield self.index.files[shard]

    @cached_property
    def lengths_index(self) -> LengthsIndex:
        """Where the lengths of its documents are.

        Raises:
            DataError: the corpus has no lengths.
        """
        data = self.read_beside(LENGTHS_NAME, limit_bytes=INDEX_BYTES_AT_MOST)
        if data is None:
            raise DataError(
                f"{self.root} has no {LENGTHS_NAME}, which lists how long its documents are; "
                "build it with `python -m tools.corpus`."
            )
        require_sha256(self.manifest, data, place=self.root, name=LENGTHS_NAME)
        lengths = parse_lengths_index(data, place=self.root, index=self.index)
        sums = lengths.totals.sum(axis=0).tolist()
        require_lengths(self.manifest, place=self.root, name=LENGTHS_NAME, totals=sums)
        return lengths

    def _read_index(self) -> bytes:
        index = self.read_beside(INDEX_NAME, limit_bytes=INDEX_BYTES_AT_MOST)
        if index is None:
            hint = ""
            if (self.place / f"train/{INDEX_NAME}").exists():
                hint = f" (did you mean {self.root}/train?)"
            raise DataError(
                f"{self.root} is not an MDS directory: it has no {INDEX_NAME}{hint}. Correct the "
                "path, or build one with `python -m tools.corpus build`."
            )
        return index


def parse_array(content: bytes, *, name: str) -> npt.NDArray[Any]:
    """The array in a file of numpy's, called `name` in messages.

    Raises:
        DataError: there is none.
    """
    try:
        file = io.BytesIO(content)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is of another version")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise ValueError("it is a pickle")
        # Its own word for its size is not taken before anything is allocated.
        if (
            math.prod(shape) * dtype.itemsize != len(content) - file.tell()
            or min(shape, default=0) < 0
        ):
            raise ValueError(f"it is not as long as it says, {shape} of {dtype}")
        flat = np.frombuffer(content, dtype, offset=file.tell())
        return flat.reshape(shape, order="F" if is_fortran else "C")
    except Exception as error:  # of many kinds, as the damage has it
        told = str(error).splitlines()[:1] or [type(error).__name__]
        raise DataError(
            f"{name} holds no array ({told[0][:100]}); build the corpus again."
        ) from error


@contextlib.contextmanager
def _data_errors() -> Generator[None]:
    """What storage says about the files of a corpus is an error of the data."""
    try:
        yield
    except FileNotFoundError:
        raise
    except StorageError as error:
        raise DataError(str(error)) from error


def _require_directory(root: Place) -> None:
    directory = Path(root)
    if not directory.exists():
        hint = ""
        if directory.name == "validation" and directory.parent.is_dir():
            hint = " with a share of documents for validation (--validation)"
        raise DataError(
            f"There is no data directory {root}; build one{hint} with `python -m "
            "tools.corpus build`, or correct the path."
        )
    if not directory.is_dir():
        raise DataError(f"{root} is a file; give the directory that holds the shards.")
    if not any(directory.iterdir()):
        raise DataError(
            f"The data directory {root} is empty; build a corpus with `python -m "
            "tools.corpus build`."
        )
