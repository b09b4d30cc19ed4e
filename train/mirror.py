"""What a run is, kept in a store besides: a cluster that shares nothing else goes on from there.

Below the mirror's URL lie the files of the run's directory by their own names, and its checkpoints,
which lie nowhere else. Who has the lease of these writes the mirror. `mirror.json` says which
directory wrote it last: another one that goes on first takes over all that is there. Files are
brought up to date before a checkpoint counts, so that they know of all its steps.
"""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from train.errors import RunDirectoryError, UserError
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.storage.record import Count, Record, content_of, parse

MIRROR_NAME: Final = "mirror.json"
SUPERSEDED_NAME: Final = "superseded"
_BYTES_AT_MOST: Final = 1 << 16
_FILE_BYTES_AT_MOST: Final = 1 << 34


class _Written(Record):
    """The last writing of a mirror.

    Attributes:
        by: the directory that wrote, by a name that no other has.
        count: how often any has begun to.
    """

    by: str = ""
    count: Count = 0


class _Known(Record):
    """What a directory knows of its mirror, see `Mirror`.

    Attributes:
        me: the name of the directory.
        held: the writing that its files come from.
        next: the writing that it was about to do, and may have done.
    """

    me: str
    held: _Written
    next: _Written


class Mirror:
    """The mirror of a run's directory; used by the one process that has its lease.

    Args:
        place: of the mirror.
        directory: of the run, on this cluster.
    """

    def __init__(self, place: Place, directory: RunDirectory) -> None:
        self.place = place
        self._directory = directory
        self._known_file = Place.of(directory.path / f".{MIRROR_NAME}")
        self._seen: dict[str, tuple[int, int]] = {}

    @property
    def config(self) -> Place:
        """The configuration of the run that it mirrors, where there is one."""
        return self.place / self._directory.config.name

    def bring(self) -> str | None:
        """Makes the directory hold what the mirror does, and the mirror the directory's to write.

        Nothing is brought where this directory wrote last. What was here and is another there is
        kept in `superseded/`.

        Returns:
            What is to be said of it, if anything.

        Raises:
            UserError: what is known of the mirror is damaged, or something cannot be read or
                written.
        """
        try:
            return self._bring()
        except UserError:
            raise
        except OSError as error:
            raise RunDirectoryError(
                f"{self._directory} cannot take over {self.place} ({error.strerror}): choose "
                "another run_directory, or make room there"
            ) from None

    def _bring(self) -> str | None:
        there = self._written(self.place / MIRROR_NAME)
        known = self._known()
        told: str | None = None
        if there is not None and there not in (known.held, known.next):
            count = sum(self._brought(name, there) for name in self._names())
            told = f"{count} files of the run brought from {self.place}" if count else None
        elif there is None:
            there = _Written()
        following = _Written(by=known.me, count=there.count + 1)
        known = _Known(me=known.me, held=there, next=following)
        self._known_file.write(known.model_dump_json().encode())
        (self.place / MIRROR_NAME).write(following.model_dump_json().encode())
        return told

    def push(self) -> None:
        """Writes what has changed here since the last time; after `bring`.

        Raises:
            OSError: something cannot be written.
        """
        for path in self._files():
            found = path.stat()
            name = path.relative_to(self._directory.path).as_posix()
            if self._seen.get(name) == (found.st_size, found.st_mtime_ns):
                continue
            (self.place / name).write(path.read_bytes())
            self._seen[name] = found.st_size, found.st_mtime_ns

    def finish(self) -> None:
        """Writes what has changed at last.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.push()
        except UserError:
            raise
        except OSError as error:
            raise RunDirectoryError(
                f"{error.filename} cannot be copied to {self.place} ({error.strerror}): run again "
                "to do it"
            ) from None

    def _known(self) -> _Known:
        with contextlib.suppress(FileNotFoundError):
            content = content_of(self._known_file, limit_bytes=_BYTES_AT_MOST)
            remedy = "remove it, to take over what the mirror has"
            name = str(self._known_file)
            return parse(_Known, content, name=name, error=RunDirectoryError, remedy=remedy)
        nothing = _Written()
        return _Known(me=uuid.uuid4().hex, held=nothing, next=nothing)

    def _written(self, place: Place) -> _Written | None:
        try:
            content = content_of(place, limit_bytes=_BYTES_AT_MOST)
        except FileNotFoundError:
            return None
        remedy = "remove it, to go on from this directory's own files"
        return parse(_Written, content, name=str(place), error=RunDirectoryError, remedy=remedy)

    def _names(self) -> list[str]:
        """Of all files there that a directory takes over; its configuration is its own."""
        kept = {path.name for path in self._directory.mirrored} - {self._directory.config.name}
        return [
            found.name
            for found in self.place.files()
            if PurePosixPath(found.name).parts[0] in kept and ".." not in found.name.split("/")
        ]

    def _brought(self, name: str, there: _Written) -> bool:
        """Take a file over; whether it is another than was here."""
        content = (self.place / name).read(limit_bytes=_FILE_BYTES_AT_MOST)
        path = self._directory.path / name
        if path.exists():
            if path.read_bytes() == content:
                return False
            aside = self._directory.path / SUPERSEDED_NAME / str(there.count) / name
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside)
        path.parent.mkdir(parents=True, exist_ok=True)
        Place.of(path).write(content)
        return True

    def _files(self) -> Iterator[Path]:
        """All that is to be in the mirror."""
        for path in self._directory.mirrored:
            within = sorted(path.rglob("*")) if path.is_dir() else [path]
            yield from (each for each in within if each.is_file() and not each.is_symlink())
