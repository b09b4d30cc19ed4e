"""What a run is, kept in a store besides: a cluster that shares nothing else goes on from there.

    checkpoints/                               they lie nowhere else
    mirror.7.json                              the seventh writing: by whom, and of what pieces
    files/metrics.jsonl/000000000000-7.2       a piece of a file of the run's directory

Who has the lease of the checkpoints writes the mirror. A writing begins with the note of the next
number, which one process alone can create, and its pieces bear the number: so a process that was
suspended, and wakes when another one has taken over, writes over nothing of it. The highest number
counts. Another directory than the one that wrote it first takes over all that is there, and puts
all that it had aside. Files are brought up to date before a checkpoint counts, so that they know of
all its steps.
"""

import contextlib
import logging
import re
import secrets
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from train import pieces
from train.errors import RunDirectoryError, StorageError, UserError
from train.pieces import Piece
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.storage.record import Count, Record, content_of, parse

logger = logging.getLogger(__name__)

MIRROR_NAME: Final = "mirror.json"
"""What a directory knows of its mirror, a hidden file; in a mirror, of an earlier version."""
SUPERSEDED_NAME: Final = "superseded"
_BYTES_AT_MOST: Final = 1 << 16
_NOTE_BYTES_AT_MOST: Final = 1 << 28
_NOTE: Final = re.compile(r"^mirror\.([1-9]\d{0,8})\.json$")
_READ_AT_MOST: Final = 5


class _Written(Record):
    """The last writing of a mirror.

    Attributes:
        by: the directory that wrote, by a name that no other has.
        count: how often any has begun to.
    """

    by: str = ""
    count: Count = 0


class _Note(_Written):
    """A writing, as the mirror keeps it.

    Attributes:
        writer: the process, by a name that no other has.
        files: of what pieces each is.
    """

    writer: str = ""
    files: Mapping[str, Sequence[Piece]] = {}

    @property
    def written(self) -> _Written:
        """Which one it is."""
        return _Written(by=self.by, count=self.count)


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
        self._seen: dict[str, tuple[int, ...]] = {}
        self._note: _Note | None = None
        """This process's own writing, once it has begun."""
        self._pushes = 0
        self._told: set[Path] = set()

    @property
    def config(self) -> Place | None:
        """The configuration of the run that it mirrors, where there is one."""
        return self._lies(self._directory.config, self._there())

    @property
    def left_out(self) -> Place:
        """The steps that the run leaves out: where they count, see `is_ahead`."""
        file, there = self._directory.left_out, self._there()
        if not self._is_ahead(there, self._known()):
            return Place.of(file)
        return self._lies(file, there) or self.place / file.name

    def _lies(self, file: Path, there: _Note | None) -> Place | None:
        """Where a small file lies, which comes in one piece."""
        found = there.files.get(file.name, ()) if there is not None else ()
        return self.place / found[0].key if len(found) == 1 else None

    def is_ahead(self) -> bool:
        """Whether its files count, and not those here, since another directory wrote it last.

        Raises:
            UserError: what is known of the mirror is damaged, or cannot be read.
        """
        return self._is_ahead(self._there(), self._known())

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
        told: str | None = None
        writer = secrets.token_hex(8)
        while self._note is None:
            there, known = self._there(), self._known()
            if self._is_ahead(there, known):
                assert there is not None
                told = self._taken_over(there.files)
            me = known.me if known is not None else uuid.uuid4().hex
            there = there or _Note()
            following = _Written(by=me, count=there.count + 1)
            known = _Known(me=me, held=there.written, next=following)
            self._known_file.write(known.model_dump_json().encode())
            note = _Note(**dict(following), writer=writer, files=there.files)
            self._note_file(note.count).write_new(note.model_dump_json().encode())
            found = self._there()
            # Else one that looked dead has woken, and begun to write meanwhile.
            if found is not None and found.writer == writer:
                self._note = note
        self._clean(self._note)
        return told

    def _is_ahead(self, there: _Note | None, known: _Known | None) -> bool:
        if there is None or known is None:
            return there is not None
        # Where the note was removed nobody knows who wrote; who knows the mirror goes on.
        return there.count > 0 and there.written not in (known.held, known.next)

    def _taken_over(self, files: pieces.Files) -> str | None:
        """Have the mirror's files in the place of those here; what is to be said of it."""
        own = self._directory
        # Of each cluster: how the run is started there, and what its keeper has seen.
        stay = {own.config, own.choice, own.attempts}
        kept = {path.name for path in own.mirrored} - {own.config.name}
        files = {name: of for name, of in files.items() if PurePosixPath(name).parts[0] in kept}
        aside = _Aside(own.path)
        for path in [each for each in self._files() if each not in stay]:
            if path.relative_to(own.path).as_posix() not in files:
                aside.put(path)  # of steps that nobody has gone on from
        count = sum(self._brought(name, of, aside) for name, of in files.items())
        told = f"{count} files of the run brought from {self.place}"
        if aside.count:
            return f"{told}; {aside.count} that were here lie in {aside.path}"
        return told if count else None

    def _brought(self, name: str, of: Sequence[Piece], aside: "_Aside") -> bool:
        """Take a file over; whether it is another than was here."""
        content = pieces.content_of(self.place, of)
        path = self._directory.path / name
        if path.exists():
            if path.read_bytes() == content:
                return False
            aside.put(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Place.of(path).write(content)
        return True

    def push(self) -> None:
        """Writes what has changed here since the last time; after `bring`.

        Raises:
            OSError: something cannot be written.
        """
        assert self._note is not None, "it was never brought"
        self._pushes += 1
        before = self._note.files
        files, seen = dict(before), dict(self._seen)
        for path in self._files():
            name = path.relative_to(self._directory.path).as_posix()
            try:
                status = path.stat()
                looks = status.st_ino, status.st_size, status.st_mtime_ns
                if seen.get(name) == looks:
                    continue
                files[name] = self._sent(path, name, files.get(name, ()), status.st_size)
            except FileNotFoundError:
                continue  # another program writes there, too, such as an evaluation
            seen[name] = looks
        self._note_again(files)
        self._seen = seen
        self._remove(pieces.keys_of(before) - pieces.keys_of(files))

    def _sent(self, path: Path, name: str, of: Sequence[Piece], num_bytes: int) -> list[Piece]:
        assert self._note is not None
        writing = f"{self._note.count}.{self._pushes}"
        try:
            path.open("rb").close()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(
                f"{path} cannot be read ({error.strerror}), which {self.place} is to hold: "
                "change its permissions, or move it away"
            ) from error
        return pieces.sent(self.place, path, name, of, num_bytes=num_bytes, writing=writing)

    def forget(self, path: Path) -> None:
        """Remove a file from the mirror that is to be no more; after `bring`.

        Raises:
            OSError: it cannot be removed.
        """
        assert self._note is not None, "it was never brought"
        name = path.relative_to(self._directory.path).as_posix()
        before = self._note.files
        files = {each: of for each, of in before.items() if each != name}
        self._note_again(files)
        self._seen.pop(name, None)
        self._remove(pieces.keys_of(before) - pieces.keys_of(files))

    def _note_again(self, files: pieces.Files) -> None:
        """Have the mirror consist of other pieces."""
        assert self._note is not None
        if files != self._note.files:
            note = self._note.model_copy(update={"files": files})
            self._note_file(note.count).write(note.model_dump_json().encode())
            self._note = note

    def _clean(self, note: _Note) -> None:
        """Remove what those before have left that does not count any more."""
        ours = self._note_file(note.count).name
        notes = {name for name in self.place.names() if _NOTE.match(name) or name == MIRROR_NAME}
        there = self.place / pieces.DIRECTORY_NAME
        found = {f"{pieces.DIRECTORY_NAME}/{each.name}" for each in there.files()}
        self._remove((notes - {ours}) | (found - pieces.keys_of(note.files)))

    def _remove(self, keys: set[str]) -> None:
        """Remove what counts no more, unless another process has begun to write since."""
        # What cannot be removed now is by the next start.
        with contextlib.suppress(OSError):
            found = self._there() if keys else None
            if found is None or self._note is None or found.writer != self._note.writer:
                return
            for key in sorted(keys):
                with contextlib.suppress(FileNotFoundError):
                    (self.place / key).in_haste.remove()

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

    def _there(self) -> _Note | None:
        """The writing that counts; None where there is no mirror yet."""
        numbers = [0]
        for _ in range(_READ_AT_MOST):
            numbers = [int(found[1]) for found in map(_NOTE.match, self.place.names()) if found]
            if not numbers:
                return self._there_before()
            with contextlib.suppress(FileNotFoundError):  # a newer one has come meanwhile
                return self._read(self._note_file(max(numbers)))
        raise StorageError(f"{self._note_file(max(numbers))} goes as fast as it comes: remove it")

    def _there_before(self) -> _Note | None:
        """What an earlier version has written: all files by their own names."""
        kept = {path.name for path in self._directory.mirrored}
        files = {
            found.name: [Piece(key=found.name, num_bytes=found.num_bytes)]
            for found in self.place.files()
            if PurePosixPath(found.name).parts[0] in kept and ".." not in found.name.split("/")
        }
        try:
            note = self._read(self.place / MIRROR_NAME)
        except FileNotFoundError:
            # Nobody has begun to write, or the note was removed.
            note = _Note() if self._directory.config.name in files else None
        return note and note.model_copy(update={"files": files})

    def _read(self, place: Place) -> _Note:
        content = content_of(place, limit_bytes=_NOTE_BYTES_AT_MOST)
        remedy = "remove it, and go on in the directory that has written there, which has all of it"
        note = parse(_Note, content, name=str(place), error=RunDirectoryError, remedy=remedy)
        if fault := pieces.fault_of(note.files):
            raise RunDirectoryError(f"{place} is damaged: {fault}; {remedy}")
        return note

    def _note_file(self, count: int) -> Place:
        return self.place / f"mirror.{count}.json"

    def _files(self) -> Iterator[Path]:
        """All that is to be in the mirror; not what is half written.

        A link of a file or directory of the run itself is followed, as the run does; one within its
        directories only to a file of the run.
        """
        home = self._directory.path.resolve()
        for path in self._directory.mirrored:
            within = sorted(path.rglob("*")) if path.is_dir() else [path]
            for each in within:
                if each.name.startswith(".") or not (each.is_file() or each.is_symlink()):
                    continue
                if each == path or not each.is_symlink():
                    is_meant = each.is_file()
                else:
                    is_meant = each.is_file() and each.resolve().is_relative_to(home)
                if is_meant:
                    yield each
                elif each not in self._told:
                    self._told.add(each)
                    logger.warning(
                        "%s leads to no file of the run, and is not copied to %s: put the file "
                        "itself there",
                        *(each, self.place),
                    )


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
