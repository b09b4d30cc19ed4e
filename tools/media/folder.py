"""A folder of records that is written file by file: a build that was stopped goes on."""

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tools.packages.kept import sha256
from tools.packages.used import Packages
from train.errors import DataError, InUseError, StorageError
from train.storage.host_lock import UNSUPPORTED, try_lock

MANIFEST_NAME: Final = "manifest.json"
"""Lies in a folder that is whole."""
BUILDING_NAME: Final = "building.json"
"""Lies in a folder that is not: what was asked, and which files are finished."""
_LOCK_NAME: Final = ".lock"
_ROWS_AT_ONCE: Final = 256

Row = Mapping[str, Any]


class Folder:
    """Written file by file; each is whole when it has its name.

    Args:
        path: of the folder.
        asked: what makes its content: what was begun goes on with the same alone.

    Attributes:
        manifest: of a folder that is whole; None of one to be written.

    Raises:
        DataError: it holds something else, or its record is damaged.
        StorageError: it cannot be made.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]):
        self._path = path
        self._state: dict[str, Any] = {**asked, "files": {}, "left_out": {}, "sources": []}
        self.manifest = _read(path / MANIFEST_NAME)
        begun = self.manifest or _read(path / BUILDING_NAME)
        if begun is not None:
            if begun["files"]:
                _require_same(path, begun, asked)
                self._state = begun
        elif path.exists() and (not path.is_dir() or {*path.iterdir()} - {path / _LOCK_NAME}):
            raise DataError(f"{path} holds something else: name another directory, or empty it")

    @contextlib.contextmanager
    def writing(self) -> Generator[None]:
        """Hold the folder while it is written.

        Raises:
            InUseError: another process writes it.
            StorageError: there is no room, or it may not be written.
        """
        with self._told():
            self._path.mkdir(parents=True, exist_ok=True)
            try:
                lock = try_lock(self._path / _LOCK_NAME)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                lock = -1
        if lock is None:
            raise InUseError(f"{self._path} is being built by another process: wait for its end")
        try:
            with self._told():
                if self.manifest is None:
                    self._record(BUILDING_NAME)
                yield
        finally:
            if lock >= 0:
                with contextlib.suppress(OSError):
                    (self._path / _LOCK_NAME).unlink()
                os.close(lock)

    def add(
        self,
        name: str,
        schema: pa.Schema,
        make: Callable[[], Iterable[Row]],
        packages: Packages,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        """Write a file of records, unless it is finished.

        Args:
            name: path within the folder.
            schema: of the records.
            make: gives them.
            packages: those used so far, for the manifest.
            left_out: counts what gave no record by reason, once all are made.

        Raises:
            DataError: there are no records.
            OSError: it cannot be written.
        """
        if name in self._state["files"]:
            packages.report(f"{name}: there already")
            return
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        num_records = _write(part, schema, make())
        if not num_records:
            raise DataError(f"{name}: the packages give no records for it; see what was built")
        about = {"records": num_records, "bytes": part.stat().st_size, "sha256": sha256(part)}
        os.replace(part, path)
        self._state["files"][name] = about
        self._state["left_out"] |= dict(left_out or {})
        self._note(packages)
        self._record(BUILDING_NAME)
        packages.report(f"{name}: {num_records:,} records")

    def finish(
        self, left_out: Mapping[str, int], *, tasks: Sequence[str], **besides: object
    ) -> dict[str, Any]:
        """The manifest, when all files are written.

        Args:
            left_out: counts what gave no record, by reason.
            tasks: directories of tasks, each of which tells its sources itself, as those of
                `tools.tasks build` do.
            besides: what else it tells.

        Raises:
            OSError: it cannot be written.
        """
        counts = {**left_out, **self._state["left_out"]}
        self._state |= {"left_out": {key: count for key, count in counts.items() if count}}
        self._state |= besides
        for name in tasks:
            about = {"task": Path(name).name, "sources": self._state["sources"]}
            _replace(self._path / name / MANIFEST_NAME, about)
        self._record(MANIFEST_NAME)
        (self._path / BUILDING_NAME).unlink(missing_ok=True)
        return self._state

    def _note(self, packages: Packages) -> None:
        """Keep what was used, also by a build that is stopped now."""
        known = {source["name"]: source for source in (*self._state["sources"], *packages.used)}
        self._state["sources"] = [known[name] for name in sorted(known)]
        directory = self._path / "licences"
        directory.mkdir(exist_ok=True)
        for source, text in packages.licence_texts.items():
            (directory / f"{source.replace('/', '_')}.txt").write_text(text)

    def _record(self, name: str) -> None:
        _replace(self._path / name, self._state)

    @contextlib.contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"{self._path}: cannot be written ({error.strerror or error}); what is finished is "
                "kept: make room there and build again, or name another directory"
            ) from error


def _replace(path: Path, content: object) -> None:
    """Write JSON, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    os.replace(part, path)


def _write(path: Path, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """Write records; how many."""
    num_records = 0
    left = iter(rows)
    # A file of our own: pyarrow gives up the reason of what fails in its destructor.
    with (
        path.open("wb") as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", write_page_checksum=True, store_schema=False
        ) as writer,
    ):
        while some := [*islice(left, _ROWS_AT_ONCE)]:
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
            num_records += len(some)
    return num_records


def _read(path: Path) -> dict[str, Any] | None:
    """What a folder's record says; None where there is none."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): name another directory") from error
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise DataError(f"{path} is no record of a build: name another directory")
    return found


def _require_same(path: Path, begun: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    differing: Sequence[str] = [key for key, value in asked.items() if begun.get(key) != value]
    if differing:
        key = differing[0]
        raise DataError(
            f"{path} was built with {key} {begun.get(key)!r}, and {asked[key]!r} is asked now: "
            "name another directory"
        )
