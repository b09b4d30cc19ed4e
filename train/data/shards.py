"""Random access to the samples of an MDS directory, local or in object storage.

The files and their decoding are mosaicml-streaming's; its `StreamingDataset` is not used, because
there a missing shard ends the epoch early or hangs, and its shared memory outlives a killed run.
Here nothing is shared, every read happens in the calling thread, and whatever is wrong with a shard
is an error that names it.
"""

import contextlib
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import filelock
import numpy as np
import numpy.typing as npt

from train.data.index import INDEX_NAME, MANIFEST_NAME, MDSReader, parse_index, parse_manifest
from train.data.object_store import MissingObjectError, ObjectStore
from train.data.sample import Sample
from train.errors import DataError

from streaming.base.hashing import get_hash, is_hash  # isort: skip

logger = logging.getLogger(__name__)

_FASTEST_HASHES: Final = ("xxh3_64", "xxh64", "xxh128", "xxh3_128", "xxh32")
_MAX_OPEN_SHARDS: Final = 64


class ShardStore:
    """The samples of one MDS directory, by number.

    A shard is checked against the size and hash in the index the first time that this process
    opens it. At most 64 shards are open at once, each costing a file descriptor and 4 bytes a
    sample. Threads may share a store; processes on one host may share its cache.
    """

    def __init__(
        self,
        root: str,
        *,
        cache: Path | None = None,
        timeout_seconds: float = 60.0,
        retries: int = 2,
    ) -> None:
        """Read the index and the manifest; shards follow when they are asked for.

        Args:
            root: a directory, or a URL such as `s3://bucket/corpus/train`.
            cache: where remote files are kept; by default below `~/.cache/semicausal`, named after
                the URL. It holds every shard that was read: nothing is evicted.
            timeout_seconds: deadline for each attempt to fetch a remote file.
            retries: further attempts, where trying again may help.

        Raises:
            DataError: there is no usable MDS directory at `root`.
        """
        self.root = root.rstrip("/") if "://" in root else str(Path(root).expanduser())
        self._remote: ObjectStore | None = None
        self._patience_seconds = timeout_seconds * (retries + 1) + 30.0
        if "://" in root:
            self._remote = ObjectStore(root, timeout_seconds=timeout_seconds, retries=retries)
            self._directory = (cache or default_cache(self.root)).expanduser()
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(
                    f"Cannot create the data cache {self._directory} ({error.strerror}); choose "
                    "another directory for it."
                ) from error
        else:
            self._directory = Path(self.root)
        index = self._read_index()
        self.fingerprint: str = hashlib.sha256(index).hexdigest()
        """SHA-256 of the index: equal on two ranks or two runs if and only if the data are."""
        self._shards = parse_index(index, place=self.root, directory=str(self._directory))
        self._ends = np.cumsum([shard.samples for shard in self._shards])
        manifest = self.read_beside(MANIFEST_NAME)
        self.manifest: dict[str, Any] = (
            {} if manifest is None else parse_manifest(manifest, place=self.root)
        )
        """What the corpus builder noted beside the index; empty if it noted nothing."""
        self._opened: OrderedDict[int, _OpenShard] = OrderedDict()
        self._verified: set[int] = set()
        self._lock = threading.Lock()

    @property
    def shard_sizes(self) -> list[int]:
        """Samples in each shard, in the order in which sample ids count through them."""
        return [shard.samples for shard in self._shards]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, sample_id: int) -> Sample:
        """The sample with this number, 0 <= number < len(self).

        Raises:
            DataError: its shard is missing, cut short or damaged, or could not be fetched in time.
            IndexError: there is no such number.
        """
        if not 0 <= sample_id < len(self):
            raise IndexError(f"{self.root} has samples 0 to {len(self) - 1}, not {sample_id}")
        number = int(np.searchsorted(self._ends, sample_id, side="right"))
        shard = self._shards[number]
        place = sample_id - (int(self._ends[number]) - shard.samples)
        with self._lock:
            data = self._open(number).read(place)
        try:
            return _sample(sample_id, shard.decode_sample(data))
        except (ValueError, TypeError, KeyError, IndexError, AssertionError) as error:
            raise DataError(
                f"Sample {place} of {self._name(shard)} cannot be decoded ({error}); build the "
                "corpus again."
            ) from error

    def __iter__(self) -> Iterator[Sample]:
        return (self[sample_id] for sample_id in range(len(self)))

    def close(self) -> None:
        """Close the open shards; the store stays usable and opens them again when asked."""
        with self._lock:
            while self._opened:
                self._opened.popitem()[1].close()

    def require(
        self,
        *,
        tokenizer_sha256: str | None = None,
        sequence_tokens: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        """Check that the corpus is the one that a model or another corpus expects.

        Args:
            tokenizer_sha256: hash of the tokenizer file that the model was made for.
            sequence_tokens: S; the corpus stores S + 1 tokens a sample.
            vocabulary: ids that the model knows.

        Raises:
            DataError: it is not, or has no manifest to tell.
        """
        wanted = {
            "tokenizer_sha256": tokenizer_sha256,
            "sequence_tokens": sequence_tokens,
            "vocabulary": vocabulary,
        }
        faults: list[str] = []
        for key, value in wanted.items():
            if value is None:
                continue
            if key not in self.manifest:
                raise DataError(
                    f"{self.root} has no {MANIFEST_NAME} that states its {key}, so it cannot be "
                    "checked; build it with `python -m tools.corpus build`."
                )
            found = self.manifest[key]
            if found != value:
                faults.append(_MISMATCH[key].format(found=found, wanted=value))
        if faults:
            raise DataError(f"{self.root} does not fit: " + "; ".join(faults) + ".")

    def _open(self, number: int) -> "_OpenShard":
        opened = self._opened.get(number)
        if opened is not None:
            self._opened.move_to_end(number)
            return opened
        shard = self._shards[number]
        path = self._directory / shard.raw_data.basename
        name = self._name(shard)
        if self._remote is not None and number not in self._verified:
            self._ensure_cached(shard, path)
        elif number not in self._verified:
            fault = _fault(shard, path)
            if fault is not None:
                raise DataError(
                    f"Shard {name} {fault}; copy it again from where the corpus came from, or "
                    "build the corpus again."
                )
        self._verified.add(number)
        opened = _OpenShard(path, name=name, samples=shard.samples)
        self._opened[number] = opened
        while len(self._opened) > _MAX_OPEN_SHARDS:
            self._opened.popitem(last=False)[1].close()
        return opened

    def _ensure_cached(self, shard: MDSReader, path: Path) -> None:
        """Bring a remote shard into the cache, whole and checked; one process does the work."""
        assert self._remote is not None, "only a remote store has a cache"
        with self._cache_lock(shard.raw_data.basename):
            if path.exists():
                if _fault(shard, path) is None:
                    return
                # The corpus was rebuilt under the same URL, or the cache's disk went bad.
                logger.warning("%s is stale or damaged and is fetched again", path)
                path.unlink()
            try:
                self._remote.fetch(shard.raw_data.basename, path)
            except MissingObjectError as error:
                raise DataError(
                    f"Shard {self._name(shard)} is missing; upload it again, or build the corpus "
                    "again."
                ) from error
            fault = _fault(shard, path)
            if fault is not None:
                path.unlink(missing_ok=True)
                raise DataError(
                    f"Shard {self._name(shard)} {fault}; upload it again, or build the corpus "
                    "again."
                )

    @contextlib.contextmanager
    def _cache_lock(self, name: str) -> Generator[None]:
        path = self._directory / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(path, timeout=self._patience_seconds):
                yield
        except filelock.Timeout as error:
            raise DataError(
                f"Waited {self._patience_seconds:g} s for another process to fetch "
                f"{self.root}/{name}; see whether it hangs, or give this run its own cache."
            ) from error

    def _read_index(self) -> bytes:
        if self._remote is None:
            if not self._directory.exists():
                raise DataError(
                    f"There is no data directory {self.root}; build one with `python -m "
                    "tools.corpus build`, or correct the path."
                )
            if not self._directory.is_dir():
                raise DataError(f"{self.root} is a file; give the directory that holds the shards.")
            if not any(self._directory.iterdir()):
                raise DataError(
                    f"The data directory {self.root} is empty; build a corpus with `python -m "
                    "tools.corpus build`."
                )
        index = self.read_beside(INDEX_NAME)
        if index is None:
            hint = ""
            if self.read_beside(f"train/{INDEX_NAME}") is not None:
                hint = f" (did you mean {self.root}/train?)"
            raise DataError(
                f"{self.root} is not an MDS directory: it has no {INDEX_NAME}{hint}. Build one "
                "with `python -m tools.corpus build`."
            )
        return index

    def read_beside(self, name: str) -> bytes | None:
        """A small file that lies beside the index, always fresh; None if there is none.

        Args:
            name: such as `tokenizer.json`, which the corpus builder puts there.

        Raises:
            DataError: it could not be read in time.
        """
        path = self._directory / name
        try:
            if self._remote is None:
                return path.read_bytes()
            with self._cache_lock(name):
                fresh = path.with_name(f"{path.name}.{os.getpid()}.fresh")
                try:
                    self._remote.fetch(name, fresh)
                    return fresh.read_bytes()
                finally:
                    fresh.unlink(missing_ok=True)
        except (FileNotFoundError, MissingObjectError):
            return None
        except OSError as error:
            raise DataError(f"Cannot read {self.root}/{name}: {error.strerror}.") from error

    def _name(self, shard: MDSReader) -> str:
        return f"{self.root}/{shard.raw_data.basename}"


_MISMATCH: Final = {
    "tokenizer_sha256": (
        "it was built with another tokenizer (SHA-256 {found:.12}…, expected {wanted:.12}…): use "
        "the corpus that the model was trained on, or build one with `--tokenizer` and the "
        "model's tokenizer.json"
    ),
    "sequence_tokens": (
        "its samples are {found} tokens long and the run wants {wanted}: set the sequence length "
        "to {found}, or build the corpus with `--sequence-tokens {wanted}`"
    ),
    "vocabulary": (
        "its vocabulary has {found} entries and the model's {wanted}: set the model's vocabulary "
        "to {found}, or build the corpus with `--vocabulary {wanted}`"
    ),
}


class _OpenShard:
    """A shard file and where its samples lie in it.

    Reads with `pread` and not through a memory map: a file that is cut short while it is mapped
    kills the process, while a short read is an error like any other.
    """

    def __init__(self, path: Path, *, name: str, samples: int) -> None:
        self._name = name
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"Shard {name} cannot be opened: {error.strerror}.") from error
        # The header of an MDS shard: the number of samples, then where each begins, then the end.
        header = np.frombuffer(self._pread(4 * (samples + 2), 0), np.uint32)
        if header[0] != samples or (np.diff(header[1:].astype(np.int64)) < 0).any():
            self.close()
            raise DataError(
                f"Shard {name} does not hold the {samples} samples that its index promises; build "
                "the corpus again."
            )
        self._begins: npt.NDArray[np.uint32] = header[1:]

    def read(self, place: int) -> bytes:
        begin, end = int(self._begins[place]), int(self._begins[place + 1])
        return self._pread(end - begin, begin)

    def close(self) -> None:
        os.close(self._descriptor)

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise DataError(f"Shard {self._name} cannot be read: {error.strerror}.") from error
        if len(data) != length:
            raise DataError(
                f"Shard {self._name} became shorter while it was read; copy it again from where "
                "the corpus came from."
            )
        return data


def default_cache(url: str) -> Path:
    """Where the shards of a URL are kept on this host unless a place is named."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "semicausal" / "shards" / hashlib.sha256(url.encode()).hexdigest()[:16]


def _fault(shard: MDSReader, path: Path) -> str | None:
    """What is wrong with a shard file, as the end of a sentence; None if nothing is."""
    info = shard.raw_data
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if len(data) != info.bytes:
        return f"has {len(data):,} bytes where the index says {info.bytes:,}"
    known = [name for name in info.hashes if is_hash(name)]
    if not known:
        logger.warning("%s is used unchecked: the index records no hash of it", path)
        return None
    algorithm = next((name for name in _FASTEST_HASHES if name in known), sorted(known)[0])
    if get_hash(algorithm, data) != info.hashes[algorithm]:
        return f"is damaged: its {algorithm} hash is not the one in the index"
    return None


def _sample(sample_id: int, columns: dict[str, Any]) -> Sample:
    tokens = columns["tokens"]
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        raise ValueError(f"tokens are {tokens.dtype} of shape {tokens.shape}")
    spans = columns.get("spans")
    scored = columns.get("scored")
    if spans is not None and (spans.ndim != 2 or spans.shape[1] != 2):
        raise ValueError(f"spans have shape {spans.shape}, not [k, 2]")
    if scored is not None and scored.shape != tokens.shape:
        raise ValueError(f"scored has shape {scored.shape}, tokens {tokens.shape}")
    return Sample(
        id=sample_id,
        tokens=tokens.astype(np.int64),
        spans=None if spans is None else spans.astype(np.int64),
        scored=None if scored is None else scored.astype(np.bool_),
    )
