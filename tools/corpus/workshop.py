"""The place where a corpus comes to be: what is finished of it, and what was asked for.

While a corpus is built, `.building/` in it holds the recipe, the plan, and notes about each part,
of which the record comes last. The manifest at the top, written last of all, makes it a corpus.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tools.corpus import inputs
from tools.corpus.writing import npy
from train.data.store.manifest import MANIFEST_NAME
from train.errors import DataError
from train.storage.cache import default_cache
from train.storage.lease import LEASE_PREFIXES, Lease
from train.storage.place import Place

SPLITS: Final = ("train", "validation")
LICENCES: Final = "licences"
WORKING_DIRECTORY: Final = ".building"
_RECIPE: Final = "recipe.json"
_COPY_BYTES: Final = 8 << 20
_OF_FILES: Final = ("identity", "files", "bytes", "kind")
"""What a recipe says of a source's files."""

# Notes about parts, by their numbers.
RECORD: Final = "parts/{:05}.json"
"""With it a part is whole."""
COUNTS: Final = "parts/{:05}.counts.npy"
"""[V] how often each token is a target."""
IDS: Final = "ids/{:05}.json"
"""Of its documents, where a column gives them."""
FINGERPRINTS: Final = "digests/{:05}.npz"
"""Of its documents, where duplicates are sought."""
SIGNATURES: Final = "signatures"
"""Directory of these documents' hashes, a directory for each bucket."""
PAIRS: Final = "pairs/{:05}.dups"
"""Of a bucket: documents whose hashes in it are equal."""
KEEP: Final = "duplicates/{:05}.keep.npy"
"""[n] which of its documents stay."""


class Workshop:
    """A directory or URL that is to hold a corpus.

    Attributes:
        out: as the user wrote it.
        root: where the corpus comes to be.
        working: directory in it of what is known meanwhile.
        scratch: local directory for what is not whole yet.
    """

    def __init__(self, out: str) -> None:
        """Nothing is looked at yet.

        Args:
            out: as the user wrote it.

        Raises:
            StorageError: it is a URL that cannot be written to.
        """
        self.out = out
        self.root = inputs.placed(out)
        self.working = self.root / WORKING_DIRECTORY
        if self.root.is_remote:
            self.scratch = default_cache(f"building {self.root}")
        else:
            self.scratch = Path(self.working / "scratch")
        self._joined: bytes | None = None

    @property
    def is_begun(self) -> bool:
        """Whether something is being built here, or was and is not done."""
        return (self.working / _RECIPE).exists()

    @contextlib.contextmanager
    def lock(self) -> Generator[Lease]:
        """Let one process at a time build here.

        Raises:
            InUseError: another one does.
        """
        with Lease(self.root, instead="choose another place") as lease:
            lease.take()
            yield lease

    def begin(
        self, recipe: Mapping[str, Any], *, report: Callable[[str], None]
    ) -> dict[str, Any] | None:
        """Note what is being built, and clear away what a killed process left half written.

        What was begun by another recipe gives way if no part of it was finished.

        Args:
            recipe: all that the result depends on.
            report: told what is removed.

        Returns:
            The manifest, if the corpus is there already.

        Raises:
            DataError: something else is there, whole or begun.
        """
        manifest = self._read_json(self.root / MANIFEST_NAME)
        begun = self._read_json(self.working / _RECIPE)
        there = begun if manifest is None else manifest.get("recipe", {})
        differing = [] if there is None else differences(there, recipe)
        if there is None:
            ours = (WORKING_DIRECTORY, *LEASE_PREFIXES)
            others = [name for name in self.root.names() if not name.startswith(ours)]
            if others:
                raise DataError(
                    f"{self.out} exists and is no corpus of this kind (it holds {others[0]}); "
                    "choose another place."
                )
        elif differing and manifest is None and not self.noted(RECORD):
            self.discard()
            report(
                f"{self.out}: what was begun with other arguments or inputs is removed; no part of "
                "it was finished"
            )
        elif differing:
            raise self._another(
                "an unfinished corpus" if manifest is None else "a corpus", differing
            )
        if manifest is not None:
            self.clear()
            return manifest
        shutil.rmtree(self.scratch, ignore_errors=True)
        if not self.root.is_remote:
            for path in Path(self.root).glob("**/.*.tmp-*"):
                path.unlink(missing_ok=True)
        self.write(self.working / _RECIPE, as_json(recipe))
        return None

    def join(self, recipe: Mapping[str, Any]) -> None:
        """Work on what another process has begun, for as long as that is what is being built.

        Args:
            recipe: of what this process was asked to work on.

        Raises:
            DataError: nothing, or something else, is being built.
        """
        content = self.read(self.working / _RECIPE)
        begun = self._read_json(self.working / _RECIPE)
        if begun is None:
            raise DataError(
                f"nothing is being built in {self.out}, as far as this host sees: build with "
                "--tasks, into a place that all nodes share"
            )
        if differing := differences(begun, recipe):
            raise self._another("an unfinished corpus", differing)
        self._joined = content
        self.scratch = self.scratch / f"job-{os.environ.get('SLURM_JOB_ID', os.getpid())}"

    def discard(self) -> None:
        """Remove all that was built and not committed; there was nothing when it began."""
        # Records first: shards that one of them tells of must be there.
        built = (self.root / name for name in (*SPLITS, LICENCES))
        for directory in ((self.working / RECORD).parent, *built):
            if directory.exists():
                directory.remove()
        self.clear()

    def clear(self) -> None:
        """Remove working records."""
        if self.working.exists():
            self.working.remove()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def deliver(self, directory: Place, name: str, content: Path | bytes) -> None:
        """Put a file into a directory of the corpus, whole or not at all.

        Raises:
            DataError: what this process has joined is not being built any more.
        """
        if self._joined is not None and self.read(self.working / _RECIPE) != self._joined:
            raise DataError(f"another build has begun in {self.out}, or this one is done")
        target = directory / name
        if isinstance(content, bytes):
            target.write(content)
        elif target.is_remote:
            with target.create() as sink, content.open("rb") as file:
                shutil.copyfileobj(file, sink, _COPY_BYTES)
            content.unlink()
        else:
            Path(directory).mkdir(parents=True, exist_ok=True)
            with content.open("rb") as file:
                os.fsync(file.fileno())
            content.rename(Path(target))

    def write(self, path: Place, data: bytes) -> None:
        """Write a small file at once."""
        self.deliver(path.parent, path.name, data)

    def read(self, path: Place) -> bytes | None:
        """A small file; None if there is none."""
        try:
            return path.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def note(self, kind: str, part: int, content: Any) -> None:
        """Note something about a part: bytes, a file, an array or, in JSON, something else."""
        if isinstance(content, np.ndarray):
            content = npy(content)
        elif not isinstance(content, bytes | Path):
            content = json.dumps(content).encode()
        path = self.working / kind.format(part)
        self.deliver(path.parent, path.name, content)

    def noted(self, kind: str) -> set[int]:
        """The parts of which something was noted."""
        directory, _, ending = kind.partition("/{:05}")
        names = (name.removesuffix(ending) for name in (self.working / directory).names())
        return {int(name) for name in names if name.isdecimal()}

    def noted_by_name(self, kind: str, parts: Iterable[int]) -> set[int]:
        """Those of some parts of which something was noted, each asked for.

        A network's file system may show a directory as it was a minute ago, but finds in it what it
        is first asked for.
        """
        return {part for part in parts if (self.working / kind.format(part)).exists()}

    def lacking(self, name: str) -> DataError:
        """An error that says that a working record, which was written, is not there."""
        return DataError(
            f"{self.working / name} is gone, or this host does not see it: run the same command "
            "again; if that does not help, delete what was built"
        )

    def read_note(self, kind: str, part: int) -> Any:
        """What was noted about a part: arrays, or else bytes.

        Raises:
            DataError: it is not there.
        """
        data = self.read(self.working / kind.format(part))
        if data is None:
            raise self.lacking(kind.format(part))
        if kind.endswith((".npy", ".npz")):
            return np.load(io.BytesIO(data), allow_pickle=False)
        return data

    def fetched(self, *names: str) -> Path:
        """A directory of the working records as a local one, copied where it is in a store."""
        place, local = self.working, self.scratch
        for name in names:
            place, local = place / name, local / name
        if not place.is_remote:
            return Path(place)
        local.mkdir(parents=True, exist_ok=True)
        for name in place.names():
            (local / name).write_bytes((place / name).read())
        return local

    def _another(self, state: str, differing: Sequence[str]) -> DataError:
        return DataError(
            f"{self.out} holds {state} of other arguments or inputs ({'; '.join(differing)}). "
            "Choose another place, go back to the same arguments and inputs, or delete it."
        )

    def _read_json(self, path: Place) -> dict[str, Any] | None:
        """An object in a JSON file; None if there is none."""
        data = self.read(path)
        if data is None:
            return None
        with contextlib.suppress(ValueError):
            if isinstance(value := json.loads(data), dict):
                return value
        raise DataError(f"{path} holds no JSON object; delete {self.out}.")


def as_json(value: Any) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Where two recipes differ, one sentence's part for each."""
    sources = there.get("sources", []), wanted["sources"]
    before, now = ([str(source["name"]) for source in each] for each in sources)
    found = _differing(there, wanted, left_out=("sources",))
    if before != now:
        return [*found, f"sources {', '.join(before)}, now {', '.join(now)}"]
    for name, old, new in zip(now, *sources, strict=True):
        if any(old.get(key) != new.get(key) for key in _OF_FILES):
            found.append(f"the files of source {name} changed")
        found += _differing(old, new, left_out=_OF_FILES, before=f"source {name}: ")
    return found


def _differing(
    old: Mapping[str, Any], new: Mapping[str, Any], *, left_out: tuple[str, ...], before: str = ""
) -> list[str]:
    return [
        f"{before}{key} {json.dumps(old.get(key))}, now {json.dumps(new.get(key))}"
        for key in sorted({*old, *new} - {*left_out})
        if old.get(key) != new.get(key)
    ]
