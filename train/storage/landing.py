"""A file on its way into the cache: on the disk, or in memory where the disk is full."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from train.errors import DataError
from train.storage.stored_file import StoredFile

FULL: Final = {errno.ENOSPC, errno.EDQUOT}
"""Error numbers of a full disk."""
_COPY_BYTES: Final = 1 << 20


class CacheLanding:
    """Takes the bytes of a file and hashes them on the way.

    The partial file is locked while its process lives, so that others can tell it from a leftover.
    """

    def __init__(
        self,
        file: StoredFile,
        *,
        partial: Path,
        beat: Callable[[], None],
        free: Callable[[int], int],
        say_full: Callable[[], None],
    ) -> None:
        """Make the partial file.

        Args:
            file: what is on its way.
            partial: where it goes at first; its directory may be missing.
            beat: called when bytes arrive.
            free: makes so many bytes of room on the disk, and says how many it made.
            say_full: tells the user, once, that there is none.

        Raises:
            DataError: the file cannot be made.
        """
        self.file = file
        self.num_bytes = 0
        self.is_in_memory = False
        self._partial: Path | None = partial
        self._beat = beat
        self._free = free
        self._say_full = say_full
        self._hasher = file.hasher()
        self._descriptor = -1
        try:
            self._descriptor = _create(partial)
        except OSError as error:
            if error.errno not in FULL:
                raise self._error(error) from error
            self._descriptor = self._to_memory()

    def write(self, data: bytes, /) -> None:
        """Append.

        Raises:
            DataError: the disk fails.
        """
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                if error.errno not in FULL or self.is_in_memory:
                    raise self._error(error) from error
                if not self._free(self.file.num_bytes):
                    self._descriptor = self._to_memory()
        self.num_bytes += len(data)
        if self._hasher is not None:
            self._hasher.update(data)
        self._beat()

    def restart(self) -> None:
        """Forget all."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.num_bytes = 0
        self._hasher = self.file.hasher()

    def fault(self) -> str | None:
        """What is wrong with what has landed, as the end of a sentence; None if nothing is."""
        return self.file.size_fault(self.num_bytes) or self.file.hash_fault(self._hasher)

    def move(self, path: Path) -> None:
        """Give the file its place.

        Raises:
            OSError: that cannot be done.
        """
        assert self._partial is not None, "what is in memory has no name"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._partial, path)
        self._partial = None
        # Dead as a download, but open for reading.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def release(self) -> int:
        """Hand over the descriptor."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Remove what has found no place."""
        if self._descriptor >= 0:
            os.close(self.release())
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)
            self._partial = None

    def _to_memory(self) -> int:
        """What there is so far, in memory that counts as a file."""
        self._say_full()
        memory = os.memfd_create(self.file.name.rpartition("/")[2][:200], os.MFD_CLOEXEC)
        offset = 0
        if self._descriptor >= 0:
            # All that was written, a part of the bytes at hand included.
            while part := os.pread(self._descriptor, _COPY_BYTES, offset):
                os.write(memory, part)
                offset += len(part)
        self.close()
        self.is_in_memory = True
        return memory

    def _error(self, error: OSError) -> DataError:
        place = (
            "memory" if self._partial is None else f"the data cache {self._partial.parent.parent}"
        )
        return DataError(
            f"Cannot write {self.file.name} to {place} ({error.strerror}); choose another "
            "directory for storage.cache."
        )


def _create(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            # A file system without locks: others take it for a leftover only after its end.
            return descriptor
        if os.fstat(descriptor).st_nlink:
            return descriptor
        # Another process took it for a leftover before it was locked.
        os.close(descriptor)
