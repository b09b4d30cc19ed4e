"""On a host without Slurm: starts a node's ranks, passes on what the keeper asks, ends with them.

Started by ssh (`tools.keep.hosts`), which hands the keeper's words to its standard input: what to
run, one line of JSON, then `ASK` and `KILL`. If that ends, the keeper has died or the network is
cut: the ranks are asked to save and stop, and ended if they do not.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

ASK: Final = b"a"
KILL: Final = b"k"

_START: Final = "SEMICAUSAL_START"
"""Variable by which all that was started here is found again."""
_TURN_SECONDS: Final = 0.2
_ALONE_SECONDS: Final = 600.0
"""For a slow save."""


def run() -> int:
    """Until all that was started has ended; its exit status."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with open(0, "rb", buffering=0, closefd=False) as words:  # takes no more than it needs
        given: dict[str, Any] = json.loads(words.readline())
    token = secrets.token_hex(8)
    mark = f"{_START}={token}".encode()
    process = subprocess.Popen(
        ["bash", "-c", given["script"]],
        env={**given["environment"], _START: token},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    alone_since: float | None = None
    while (status := process.poll()) is None:
        if alone_since is not None:
            time.sleep(_TURN_SECONDS)
            if time.monotonic() - alone_since > _ALONE_SECONDS:
                _signal(mark, signal.SIGKILL)
        elif select.select([0], [], [], _TURN_SECONDS)[0]:
            asked = os.read(0, 1 << 12)
            alone_since = None if asked else time.monotonic()
            _signal(mark, signal.SIGKILL if KILL in asked else signal.SIGUSR1)
    # Of ranks whose launcher has died some may live.
    _signal(mark, signal.SIGKILL)
    return 128 - status if status < 0 else status


def _signal(mark: bytes, number: signal.Signals) -> None:
    """Signal all that was started here: whatever session it is in, it has the mark."""
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in place.read_bytes().split(b"\0"):
                os.kill(int(place.parent.name), number)


if __name__ == "__main__":
    sys.exit(run())
