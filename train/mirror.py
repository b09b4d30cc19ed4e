"""What a run is, kept in a store besides: a cluster that shares nothing else goes on from there.

Below the mirror's URL lie the files of the run's directory by their own names, and its checkpoints,
which lie nowhere else. Who has the lease of these writes the mirror. `mirror.json` says which
directory wrote it last: another one that goes on first takes over all that is there, and puts all
that it had aside. Files are brought up to date before a checkpoint counts, so that they know of all
its steps.
"""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from train.errors import RunDirectoryError, StorageError, UserError
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

    @property
    def left_out(self) -> Place:
        """The steps that the run leaves out: where they count, see `is_ahead`."""
        file = self._directory.left_out
        return self.place / file.name if self.is_ahead() else Place.of(file)

    def is_ahead(self) -> bool:
        """Whether its files count, and not those here, since another directory wrote it last.

        Raises:
            UserError: what is known of the mirror is damaged, or cannot be read.
        """
        return self._is_ahead(self._written(), self._known())

    def bring(self) -> str | None:
        """Makes the directory hold what the mirror does, and the mirror the directory's to write.

        Nothing is brought where this directory wrote last. What was here and is another there, or
        is not there, is kept in `superseded/`.

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
        there, known = self._written(), self._known()
        told = self._taken_over() if self._is_ahead(there, known) else None
        me = known.me if known is not None else uuid.uuid4().hex
        there = there or _Written()
        following = _Written(by=me, count=there.count + 1)
        known = _Known(me=me, held=there, next=following)
        self._known_file.write(known.model_dump_json().encode())
        (self.place / MIRROR_NAME).write(following.model_dump_json().encode())
        return told

    def _is_ahead(self, there: _Written | None, known: _Known | None) -> bool:
        if there is None:  # nobody has begun to write, or the note was removed
            return known is None and self.config.exists()
        return known is None or there not in (known.held, known.next)

    def _taken_over(self) -> str | None:
        """Have the mirror's files in the place of those here; what is to be said of it."""
        own = self._directory
        # Of each cluster: how the run is started there, and what its keeper has seen.
        stay = {own.config, own.choice, own.attempts}
        names = self._names()
        aside = _Aside(own.path)
        for path in [each for each in self._files() if each not in stay]:
            if path.relative_to(own.path).as_posix() not in names:
                aside.put(path)  # of steps that nobody has gone on from
        count = sum(self._brought(name, aside) for name in names)
        told = f"{count} files of the run brought from {self.place}"
        if aside.count:
            return f"{told}; {aside.count} that were here lie in {aside.path}"
        return told if count else None

    def push(self) -> None:
        """Writes what has changed here since the last time; after `bring`.

        Raises:
            OSError: something cannot be written.
        """
        for path in self._files():
            name = path.relative_to(self._directory.path).as_posix()
            try:
                found = path.stat()
                if self._seen.get(name) == (found.st_size, found.st_mtime_ns):
                    continue
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # another program writes there, too, such as an evaluation
            except OSError as error:
                raise StorageError(
                    f"{path} cannot be read ({error.strerror}), which {self.place} is to hold: "
                    "change its permissions, or move it away"
                ) from error
            (self.place / name).write(content)
            self._seen[name] = found.st_size, found.st_mtime_ns

    def forget(self, path: Path) -> None:
        """Remove a file from the mirror that is to be no more.

        Raises:
            OSError: it cannot be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            (self.place / path.relative_to(self._directory.path).as_posix()).remove()

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

    def _known(self) -> _Known | None:
        """What this directory knows of it; None if it never had to do with it."""
        try:
            content = content_of(self._known_file, limit_bytes=_BYTES_AT_MOST)
        except FileNotFoundError:
            return None
        remedy = "remove it, to take over what the mirror has"
        name = str(self._known_file)
        return parse(_Known, content, name=name, error=RunDirectoryError, remedy=remedy)

    def _written(self) -> _Written | None:
        place = self.place / MIRROR_NAME
        try:
            content = content_of(place, limit_bytes=_BYTES_AT_MOST)
        except FileNotFoundError:
            return None
        remedy = "remove it, to go on from this directory's own files where it has written there"
        return parse(_Written, content, name=str(place), error=RunDirectoryError, remedy=remedy)

    def _names(self) -> list[str]:
        """Of all files there that a directory takes over; its configuration is its own."""
        kept = {path.name for path in self._directory.mirrored} - {self._directory.config.name}
        return [
            found.name
            for found in self.place.files()
            if PurePosixPath(found.name).parts[0] in kept and ".." not in found.name.split("/")
        ]

    def _brought(self, name: str, aside: "_Aside") -> bool:
        """Take a file over; whether it is another than was here."""
        content = (self.place / name).read(limit_bytes=_FILE_BYTES_AT_MOST)
        path = self._directory.path / name
        if path.exists():
            if path.read_bytes() == content:
                return False
            aside.put(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Place.of(path).write(content)
        return True

    def _files(self) -> Iterator[Path]:
        """All that is to be in the mirror; not what is half written."""
        for path in self._directory.mirrored:
            within = sorted(path.rglob("*")) if path.is_dir() else [path]
            for each in within:
                if each.is_file() and not each.is_symlink() and not each.name.startswith("."):
                    yield each


class _Aside:
    """A new directory for what is superseded, made with the first file.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        above = directory / SUPERSEDED_NAME
        earlier = [int(name) for name in Place.of(above).names() if name.isdecimal()]
        self.path = above / str(max(earlier, default=0) + 1)
        self.count = 0

    def put(self, path: Path) -> None:
        """Move a file of the run there.

        Raises:
            OSError: it cannot be moved.
        """
        target = self.path / path.relative_to(self._directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        self.count += 1
