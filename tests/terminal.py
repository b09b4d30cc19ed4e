"""A terminal of a test's own."""

import os
import pty
import threading


class Terminal:
    """Shows what is written to `follower`; what is written to `leader` is typed."""

    def __init__(self) -> None:
        self.leader, self.follower = pty.openpty()
        self._shown: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def screen(self) -> str:
        """All that was shown so far."""
        return b"".join(self._shown).decode(errors="replace")

    def close(self) -> None:
        """Close it, when all was shown."""
        os.close(self.follower)
        self._reader.join(timeout=10)

    def _read(self) -> None:
        try:
            while data := os.read(self.leader, 4096):
                self._shown.append(data)
        except OSError:  # the terminal is gone: that is how a pty ends
            return
