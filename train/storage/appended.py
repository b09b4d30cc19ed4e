"""A file of this host to which a run appends for days, whatever happens to it meanwhile."""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import IO

from train.storage.local import settle

_ROOM_BYTES = 8 << 10
"""What is kept aside for a full disk; two blocks of a usual file system."""


class AppendedFile:
    """Appends whole pieces; what cannot be written now waits in memory, and goes first later.

    A file that is removed is written again, and one that is put in its place (as editors do) is
    appended to.

    Args:
        path: of the file; its directory exists.
        is_new: whether it must not be there yet.
        keeps_room: keep a little of the disk aside, so that a few pieces fit when it is full.

    Raises:
        OSError: it cannot be opened, or is there already.
    """

    def __init__(self, path: Path, *, is_new: bool = False, keeps_room: bool = False) -> None:
        self._path = path
        self._waiting = bytearray()
        self._is_full = False
        self._room = path.with_name(f".room-{path.name}") if keeps_room else None
        # Unbuffered: each piece reaches the system before the next step begins.
        self._file: IO[bytes] = path.open("xb+" if is_new else "ab+", buffering=0)
        self._keep_room()

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
            OSError: it cannot be written now, and waits; or it took of the room kept aside.
        """
        self._waiting += data
        is_lost = self._is_elsewhere() and self._follow()
        while self._waiting:
            try:
                written = self._file.write(self._waiting)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._give_room():
                    raise
            else:
                del self._waiting[:written]
        if self._is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return is_lost

    def settle(self) -> None:
        """Bring all to the disk, what waits included.

        Raises:
            OSError: it could not be.
        """
        with contextlib.suppress(OSError):  # told by those who appended
            self.append(b"")
        if self._waiting:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._file.fileno())
        settle(self._path.parent)

    def close(self) -> None:
        """Close the file, and give back the room kept aside."""
        self._file.close()
        self._give_room()

    def _keep_room(self) -> None:
        if self._room is not None:
            self._room.write_bytes(os.urandom(_ROOM_BYTES))  # no file system makes nothing of it

    def _give_room(self) -> bool:
        """Whether there was any."""
        if self._room is None or self._is_full:
            return False
        self._is_full = True
        self._room.unlink(missing_ok=True)
        return True

    def _is_elsewhere(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def _follow(self) -> bool:
        """Open what bears the name now; whether it had to be written again."""
        is_lost = not self._path.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        found: IO[bytes] = self._path.open("ab+", buffering=0)
        try:
            if is_lost:
                self._file.seek(0)
                shutil.copyfileobj(self._file, found)
                self._keep_room()
        except BaseException:
            found.close()
            raise
        self._file.close()
        self._file = found
        return is_lost
