"""A file of this host to which a run appends for days, whatever happens to it meanwhile."""

import os
from pathlib import Path
from typing import IO

from train.storage.local import settle


class AppendedFile:
    """Appends whole pieces; what cannot be written now waits in memory, and goes first later.

    A file that is removed is written again, and one that is put in its place (as editors do) is
    appended to.

    Args:
        path: of the file; its directory exists.
        is_new: whether it must not be there yet.

    Raises:
        OSError: it cannot be opened, or is there already.
    """

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        self._path = path
        self._waiting = bytearray()
        # Unbuffered: each piece reaches the system before the next step begins.
        self._file: IO[bytes] = path.open("xb+" if is_new else "ab+", buffering=0)

    def read(self) -> bytes:
        """What is in the file."""
        self._file.seek(0)
        return self._file.read()

    def truncate(self, num_bytes: int) -> None:
        """Cut off what follows the first bytes."""
        self._file.truncate(num_bytes)

    def append(self, data: bytes) -> bool:
        """Write a piece after those that wait.

        Returns:
            Whether the file had been removed, and was written again.

        Raises:
            OSError: it cannot be written now, and waits.
        """
        self._waiting += data
        is_lost = self._is_elsewhere() and self._follow()
        while self._waiting:
            del self._waiting[: self._file.write(self._waiting)]
        return is_lost

    def settle(self) -> None:
        """Bring all to the disk.

        Raises:
            OSError: something still waits, or the disk has failed; the rest is there.
        """
        try:
            self.append(b"")
        finally:
            os.fsync(self._file.fileno())
            settle(self._path.parent)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _is_elsewhere(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def _follow(self) -> bool:
        """Open what bears the name now; whether it has to be written again."""
        is_lost = not self._path.exists()
        before = self.read() if is_lost else b""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        found: IO[bytes] = self._path.open("ab+", buffering=0)
        self._waiting[:0] = before
        self._file.close()
        self._file = found
        return is_lost
