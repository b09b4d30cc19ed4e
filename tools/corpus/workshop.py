"""The place where a corpus comes to be: what is finished of it, and what was asked for.

While a corpus is built, `.building/` in it holds the recipe, the plan, and a record of each part
that is whole. The manifest at the top, written last, makes it a corpus.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import filelock

from train.data.store.manifest import MANIFEST_NAME
from train.errors import DataError, StorageError
from train.storage.cache import default_cache
from train.storage.place import Place

SPLITS: Final = ("train", "validation")
LICENCES: Final = "licences"
WORKING_DIRECTORY: Final = ".building"
SCRATCH: Final = "scratch"
PARTS: Final = "parts"
"""Below the working directory: what is known of parts, and last the record of each."""
_RECIPE: Final = "recipe.json"
_COPY_BYTES: Final = 8 << 20
_OF_FILES: Final = ("identity", "files", "bytes", "kind")
"""What a recipe says of a source's files."""


class Workshop:
    """A directory or URL that is to hold a corpus."""

    def __init__(self, out: str) -> None:
        """Nothing is looked at yet.

        Args:
            out: as the user wrote it.

        Raises:
            DataError: it is a URL that cannot be written to.
        """
        self.out = out
        with _writable(out):
            self.root = Place.parse(out)
        self.is_remote = self.root.is_remote
        if not self.is_remote:
            self.root = Place.of(Path(os.path.abspath(self.root)))
        self.working = self.root / WORKING_DIRECTORY
        self.scratch = default_cache(f"building {out}") if self.is_remote else Path(self.working)
        """Local directory for what is not whole yet."""

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Let one process at a time build here.

        Raises:
            DataError: another one does.
        """
        name = hashlib.sha256(str(self.root).encode()).hexdigest()[:16]
        if self.is_remote:
            path = self.scratch.with_name(f"{name}.lock")
        else:
            path = Path(self.root.parent / f".{self.root.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(path, timeout=0):
                yield
        except filelock.Timeout as error:
            raise DataError(
                f"Another process is building {self.out} (it holds {path}); wait for it."
            ) from error

    def finished(self, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """The manifest of the corpus that is there, if it was built by this recipe.

        Raises:
            DataError: something else is there, whole or begun.
        """
        manifest = self.read_json(self.root / MANIFEST_NAME)
        begun = self.read_json(self.working / _RECIPE)
        if manifest is None and begun is None:
            with _writable(self.root):
                others = [name for name in self.root.names() if name != WORKING_DIRECTORY]
            if others:
                raise DataError(
                    f"{self.out} exists and is no corpus of this kind (it holds {others[0]}); "
                    "choose another place."
                )
            return None
        there = begun if manifest is None else manifest.get("recipe", {})
        differing = differences(there, recipe)
        if differing:
            state = "an unfinished corpus" if manifest is None else "a corpus"
            raise DataError(
                f"{self.out} holds {state} of other arguments or inputs ({'; '.join(differing)}). "
                "Choose another place, go back to the same arguments and inputs, or delete it."
            )
        return manifest

    @property
    def is_begun(self) -> bool:
        """Whether a build was begun here that is not finished."""
        return self.read(self.working / _RECIPE) is not None

    def give_way(self, recipe: Mapping[str, Any]) -> bool:
        """Remove what was begun by another recipe, if no part of it was finished.

        Returns:
            Whether something was removed.
        """
        begun = self.read_json(self.working / _RECIPE)
        if begun is None or not differences(begun, recipe):
            return False
        if self.read(self.root / MANIFEST_NAME) is not None:
            return False
        if any(name.endswith(".json") for name in self.names(self.working / PARTS)):
            return False
        self.discard()
        return True

    def begin(self, recipe: Mapping[str, Any]) -> None:
        """Note what is being built, and clear away what a killed process left half written."""
        with _writable(self.root):
            self.scratch.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.scratch / SCRATCH, ignore_errors=True)
            if not self.is_remote:
                for path in Path(self.root).glob("**/.*.tmp-*"):
                    path.unlink()
        self.write_json(self.working / _RECIPE, recipe)

    def end(self, manifest: Mapping[str, Any]) -> None:
        """Commit the corpus."""
        self.write_json(self.root / MANIFEST_NAME, manifest)
        self.clear()

    def discard(self) -> None:
        """Remove all that was built and not committed; there was nothing when it began."""
        # Records first: shards that one of them tells of must be there.
        built = (self.root / name for name in (*SPLITS, LICENCES))
        for directory in (self.working / PARTS, *built):
            with _writable(directory):
                if directory.exists():
                    directory.remove()
        self.clear()

    def clear(self) -> None:
        """Remove working records."""
        with _writable(self.root):
            if self.working.exists():
                self.working.remove()
        if self.is_remote:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def deliver_to(self, directory: Place) -> Callable[[str, Path | bytes], None]:
        """Something that puts files into a directory of the corpus, each whole or not at all."""

        def deliver(name: str, content: Path | bytes) -> None:
            target = directory / name
            with _writable(target):
                if isinstance(content, bytes):
                    target.write(content)
                elif self.is_remote:
                    with target.create() as sink, content.open("rb") as file:
                        shutil.copyfileobj(file, sink, _COPY_BYTES)
                    content.unlink()
                else:
                    Path(directory).mkdir(parents=True, exist_ok=True)
                    with content.open("rb") as file:
                        os.fsync(file.fileno())
                    content.rename(Path(target))

        return deliver

    def write(self, path: Place, data: bytes) -> None:
        """Write a small file at once."""
        self.deliver_to(path.parent)(path.name, data)

    def write_json(self, path: Place, value: Any) -> None:
        """Write a JSON file at once."""
        self.write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read(self, path: Place) -> bytes | None:
        """A small file; None if there is none."""
        with _writable(path):
            try:
                return path.read()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_json(self, path: Place) -> dict[str, Any] | None:
        """An object in a JSON file; None if there is none.

        Raises:
            DataError: it is something else.
        """
        data = self.read(path)
        if data is None:
            return None
        try:
            value = json.loads(data)
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); delete {self.out}.") from error
        if not isinstance(value, dict):
            raise DataError(f"{path} holds no JSON object; delete {self.out}.")
        return value

    def names(self, directory: Place) -> list[str]:
        """What lies in a directory of the corpus."""
        with _writable(directory):
            return directory.names()


def differences(there: Any, wanted: Any, name: str = "") -> list[str]:
    """Where two recipes differ, one sentence's part for each."""
    if name == "sources" and there:
        return _source_differences(there, wanted)
    if isinstance(there, dict) and isinstance(wanted, dict):
        return [
            found
            for key in sorted({*there, *wanted})
            for found in differences(
                there.get(key), wanted.get(key), f"{name}.{key}" if name else key
            )
        ]
    if isinstance(there, list) and isinstance(wanted, list) and len(there) == len(wanted):
        return [
            found
            for number, (old, new) in enumerate(zip(there, wanted, strict=True))
            for found in differences(old, new, f"{name}[{number}]")
        ]
    if there == wanted:
        return []
    return [f"{name} {json.dumps(there)}, now {json.dumps(wanted)}"]


def _source_differences(
    there: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]
) -> list[str]:
    before, now = ([str(source["name"]) for source in sources] for sources in (there, wanted))
    if before != now:
        return [f"sources {', '.join(before)}, now {', '.join(now)}"]
    found: list[str] = []
    for name, old, new in zip(now, there, wanted, strict=True):
        if any(old.get(key) != new.get(key) for key in _OF_FILES):
            found.append(f"the files of source {name} changed")
        for key in sorted({*old, *new} - {*_OF_FILES}):
            found += differences(old.get(key), new.get(key), f"source {name}: {key}")
    return found


@contextlib.contextmanager
def _writable(path: Place | str) -> Generator[None]:
    try:
        yield
    except StorageError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(
            f"Cannot use {path}: {error.strerror or error}. Check the path and its permissions."
        ) from error
