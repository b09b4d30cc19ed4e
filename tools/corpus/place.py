"""Where a corpus is written: whole or not at all, and never over another one."""

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import filelock
import numpy as np
import numpy.typing as npt

from model import torchvision_free
from train.data.store.index import INDEX_NAME
from train.data.store.manifest import MANIFEST_NAME
from train.errors import DataError, StorageError
from train.storage import place as storage

torchvision_free.install()

from streaming import MDSWriter  # noqa: E402  # after install()

FORMAT_VERSION: Final = 1
TOKENIZER_NAME: Final = "tokenizer.json"
TOKEN_COUNTS_NAME: Final = "token_counts.npy"
SPLITS: Final = ("train", "validation")
SHARD_BYTES: Final = 1 << 22
_HASHES: Final = ("sha1", "xxh64")
_WAIT_SECONDS: Final = 900.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """A directory, or a URL in object storage, that is to hold a corpus.

    Attributes:
        out: as the user wrote it.
        scratch: local directory for building what is then uploaded.
    """

    out: str
    scratch: Path

    @property
    def is_remote(self) -> bool:
        """Whether it is a URL."""
        return self._target.is_remote

    @property
    def _target(self) -> storage.Place:
        try:
            return storage.Place.parse(self.out)
        except StorageError as error:
            raise DataError(str(error)) from error

    @property
    def _local(self) -> Path:
        if self.is_remote:
            return self.scratch / "upload" / self.out.split("://", 1)[1].replace("/", "_")
        return Path(self._target).absolute()

    def finished(self, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """The manifest of the corpus that is there, if it was built by this recipe.

        Raises:
            DataError: something else is there.
        """
        manifest = self._manifest()
        if manifest is None:
            return None
        there = manifest.get("recipe", {})
        differences = [
            f"{key} {there.get(key)!r}, not {recipe.get(key)!r}"
            for key in sorted({*there, *recipe})
            if there.get(key) != recipe.get(key)
        ]
        if differences:
            raise DataError(
                f"{self.out} holds another corpus ({'; '.join(differences)}); choose another "
                "directory, or delete that one."
            )
        return manifest

    @contextmanager
    def lock(self) -> Generator[None]:
        """Let one process at a time build here.

        Raises:
            DataError: another one does not end.
        """
        path = self._local.with_name(f".{self._local.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(path, timeout=_WAIT_SECONDS):
                yield
        except filelock.Timeout as error:
            raise DataError(
                f"Waited {_WAIT_SECONDS:g} s for another process to build {self.out}; see whether "
                f"it hangs."
            ) from error
        except OSError as error:
            raise DataError(f"Cannot write {self.out}: {error.strerror or error}.") from error

    @contextmanager
    def fill(self, *, report: Callable[[str], None]) -> Generator[Path]:
        """A directory to build in, which takes its place when the block ends without an error.

        Raises:
            DataError: it cannot be written or uploaded.
        """
        partial = self._local.with_name(f".{self._local.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if self.is_remote:
                self._upload(partial, report=report)
            else:
                os.rename(partial, self._local)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _manifest(self) -> dict[str, Any] | None:
        if self.is_remote:
            try:
                return json.loads((self._target / MANIFEST_NAME).read())
            except FileNotFoundError:
                return None
            except StorageError as error:
                raise DataError(str(error)) from error
        directory = self._local
        if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
            return None
        try:
            return json.loads((directory / MANIFEST_NAME).read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.out} exists and is not a corpus; choose another directory, or delete it."
            ) from error

    def _upload(self, directory: Path, *, report: Callable[[str], None]) -> None:
        # The manifest at the top goes last: with it the corpus counts as there.
        names = sorted(
            (path.relative_to(directory).as_posix() for path in directory.rglob("*")
             if path.is_file()),
            key=lambda name: (name == MANIFEST_NAME, name.endswith(INDEX_NAME), name),
        )  # fmt: skip
        try:
            for name in names:
                report(f"uploading {name}")
                with (self._target / name).create() as sink, (directory / name).open("rb") as file:
                    shutil.copyfileobj(file, sink, SHARD_BYTES)
        except StorageError as error:
            raise DataError(str(error)) from error


def write_split(
    directory: Path,
    samples: Iterable[Mapping[str, npt.NDArray[Any]]],
    *,
    columns: Mapping[str, str],
    vocabulary: int,
) -> tuple[int, npt.NDArray[np.int64]]:
    """Write MDS shards of about 4 MiB, hashes in the index.

    Args:
        directory: new.
        samples: columns of each sample, `tokens` [S + 1] and perhaps `scored` [S + 1] among them.
        columns: MDS encodings by name.
        vocabulary: V.

    Returns:
        Number of samples, and [V] how often each token is a target.
    """
    num_samples = 0
    counts = np.zeros(vocabulary, dtype=np.int64)
    with MDSWriter(
        out=str(directory), columns=dict(columns), hashes=list(_HASHES), size_limit=SHARD_BYTES
    ) as writer:
        for sample in samples:
            writer.write(dict(sample))
            targets = sample["tokens"][1:]
            if "scored" in sample:
                targets = targets[sample["scored"][1:] != 0]
            # Faster than counting over the whole vocabulary for every sample.
            np.add.at(counts, targets, 1)
            num_samples += 1
    return num_samples, counts


def finish(
    directory: Path,
    manifest: Mapping[str, Any],
    *,
    tokenizer: bytes,
    token_counts: npt.NDArray[np.int64],
) -> None:
    """Add what lies beside the shards, to the corpus and to each split, so that both stand alone.

    Args:
        directory: of the corpus.
        manifest: what `ShardStore.require` and people want to know.
        tokenizer: content of tokenizer.json.
        token_counts: [V] how often each token is a target in the training split.
    """
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    for place in (directory, *(directory / split for split in SPLITS)):
        (place / TOKENIZER_NAME).write_bytes(tokenizer)
        np.save(place / TOKEN_COUNTS_NAME, token_counts, allow_pickle=False)
        (place / MANIFEST_NAME).write_text(text, encoding="utf-8")
