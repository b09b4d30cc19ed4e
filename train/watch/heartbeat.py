"""What a rank tells whoever keeps the run going: where it is, and why it ends.

Each rank holds one connection to the keeper that started it. A rank that dies closes it, on
whatever node it was; a keeper that dies closes it too, and the ranks then save and stop.
Imports nothing heavy: a rank speaks before it imports what takes seconds.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from parallel.host import node_name
from train.watch.memory_kills import out_of_memory_kills

ADDRESS: Final = "SEMICAUSAL_KEEPER"
"""Variable with `host:port:secret` of the keeper; the secret keeps others' processes out."""

CONNECTION: Final = "SEMICAUSAL_KEEPER_CONNECTION"
"""Variable with the file descriptor of a connection to it, opened by the shell that became this
rank: who dies before Python can speak closes that."""

STANDBY: Final = "SEMICAUSAL_STANDBY"
"""Variable that has a rank wait, its imports done, until the keeper needs it."""

NEEDED: Final = b"go\n"
"""What the keeper then says."""

_CONNECT_SECONDS: Final = 5.0
_UNSENT_BYTES: Final = 1 << 16
"""Beyond that a keeper that is frozen is told less."""
_SHOWN_CHARACTERS: Final = 2000


class Section(StrEnum):
    """What a rank is doing, in the order in which a step passes through it."""

    START = "start"
    READ = "read"
    STEP = "step"
    PROFILE = "profile"
    VALIDATE = "validate"
    EVALUATE = "evaluate"
    SAVE = "save"
    END = "end"


class Heartbeat:
    """A rank's connection to its keeper; does nothing where no keeper has started it.

    Nothing here waits or raises: what only watches a run may not hold it up.

    Args:
        address: of the keeper, as in `ADDRESS`; None without one.
        rank: of this process.
        connection: as in `CONNECTION`; None where no shell has opened one.
    """

    def __init__(self, address: str | None, *, rank: int, connection: str | None = None) -> None:
        self._socket: socket.socket | None = None
        self._unsent = bytearray()
        self._waited: Callable[[], float] | None = None
        self._section, self._since, self._waited_before = Section.START, 0.0, 0.0
        self._own_seconds = 0.0
        self.keeper_has_gone = False
        """Whether the keeper that started this rank is no more."""
        if not address:
            return
        host, port, secret = address.rsplit(":", 2)
        try:
            self._socket = _handed_on(connection, int(port)) or socket.create_connection(
                (host, int(port)), timeout=_CONNECT_SECONDS
            )
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setblocking(False)
        except OSError as error:
            sys.stderr.write(
                f"the keeper at {host}:{port} is not reached, and does not watch this "
            )
            sys.stderr.write(f"rank ({error}): let all nodes reach each other's ports\n")
            self._socket = None
        # By its name of a node srun, or ssh, is told of it.
        host = node_name()
        kills = out_of_memory_kills()
        self._send(secret=secret, rank=rank, host=host, pid=os.getpid(), kills=kills)

    @classmethod
    def of_environment(cls) -> "Heartbeat":
        """The one that the variables of this process name."""
        ranks = (os.environ.get(name, "") for name in ("RANK", "SLURM_PROCID"))
        rank = next((int(text) for text in ranks if text.isdecimal()), 0)
        connection = os.environ.pop(CONNECTION, None)
        return cls(os.environ.get(ADDRESS), rank=rank, connection=connection)

    def wait_until_needed(self, prepare: Callable[[], None]) -> None:
        """Prepare and wait for the keeper's word, if this rank stands by.

        Ends this process if the keeper has gone.
        """
        if os.environ.pop(STANDBY, None) is None or self._socket is None:
            return
        prepare()
        self._socket.setblocking(True)
        try:
            is_needed = bool(self._socket.recv(len(NEEDED)))
        except OSError:
            is_needed = False
        if not is_needed:
            os._exit(0)
        self._socket.setblocking(False)
        self._send(needed=True)

    def begin(self, *, run_directory: str, step: int, patience_seconds: float) -> None:
        """Tell of the run.

        Args:
            run_directory: where it lies.
            step: after which it goes on.
            patience_seconds: how long it tries again where a store does not answer.
        """
        path = os.path.abspath(run_directory)
        self._send(run_directory=path, begins=step, patience=patience_seconds)

    @property
    def is_heard(self) -> bool:
        """Whether there is a keeper that listens."""
        return self._socket is not None

    def count_own_time(self, waited: Callable[[], float], *, stage: int) -> None:
        """Tell from now on what this rank computes itself of each step.

        Args:
            waited: seconds that it has waited for other ranks so far.
            stage: of the pipeline, for other stages have other work.
        """
        self._waited = waited
        self._send(stage=stage)

    def enter(self, section: Section, *, step: int) -> None:
        """Tell what is done now, for which step."""
        own = self._own(section)
        if len(self._unsent) < _UNSENT_BYTES:
            self._send(section=section, step=step, **own)
        else:
            self._send_rest()
        self._listen()

    def _own(self, section: Section) -> dict[str, float]:
        """Seconds of the step before that were this rank's own; nothing where they do not count."""
        if self._waited is None:
            return {}
        now, waited = time.perf_counter(), self._waited()
        if self._section is Section.STEP:
            self._own_seconds += now - self._since - (waited - self._waited_before)
        self._section, self._since, self._waited_before = section, now, waited
        if section is not Section.READ:
            return {}
        own, self._own_seconds = self._own_seconds, 0.0
        return {"own": round(own, 6)}

    def tell(self, error: BaseException) -> None:
        """Tell why this rank ends, before it does."""
        classes = [each.__name__ for each in type(error).__mro__[:-2]]
        self._send(error=classes, message=str(error)[:_SHOWN_CHARACTERS])

    def end(self, status: int) -> None:
        """Tell the exit status."""
        self._send(status=int(status))

    def _send(self, **facts: Any) -> None:
        if self._socket is None:
            return
        self._unsent += json.dumps(facts).encode() + b"\n"
        self._send_rest()

    def _send_rest(self) -> None:
        if self._socket is None:
            return
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:  # the keeper is frozen: it will be told later
            pass
        except OSError:
            self._lose()

    def _listen(self) -> None:
        """Notice that the keeper has gone: it says nothing to ranks that run."""
        if self._socket is None:
            return
        try:
            if not self._socket.recv(64):
                self._lose()
        except BlockingIOError:
            pass
        except OSError:
            self._lose()

    def _lose(self) -> None:
        self.keeper_has_gone = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None


def _handed_on(connection: str | None, port: int) -> socket.socket | None:
    """The connection that a shell has opened; None where there is none, or a container ends it."""
    if connection is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        found = socket.socket(fileno=int(connection))
        with contextlib.suppress(OSError):
            if found.getpeername()[1] == port:
                found.set_inheritable(False)
                return found
        found.detach()  # somebody else's
    return None
