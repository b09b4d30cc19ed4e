"""What the ranks tell their keeper, and how long they take for it."""

import contextlib
import json
import resource
import secrets
import selectors
import socket
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from tools.keep.straggling import Stragglers
from train.errors import UserError
from train.watch.heartbeat import NEEDED, Section

_LINE_BYTES_AT_MOST: Final = 1 << 16
_STRANGERS_BYTES: Final = 1024
"""That one may send who has not shown the secret."""
_EVENTS_AT_MOST: Final = 1 << 14
"""That are taken in one go."""
_KEEP_ALIVE: Final = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 10,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 5,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
}
"""A node without power closes no connection: after half a minute without an answer it has gone."""
_INTRODUCTION_SECONDS: Final = 10.0
"""After which a connection that has not shown it is closed."""


@dataclass(kw_only=True)
class Told:
    """What is known of one rank from its own words.

    Attributes:
        rank: its number.
        host: where it runs.
        pid: of its process.
        kills: for want of memory, that the kernel had made there in its job before it came.
        has_spoken: whether it has said anything itself; before, its shell speaks for it.
        section: in which it is.
        step: likewise; None before the first.
        since: `time.monotonic()` when it entered the section.
        error: classes of what it raised, from its own class up.
        message: of that.
        status: with which it said that it ends; None if it has not.
        ended: `time.monotonic()` when its connection was closed; None while it is open.
        order: the number of the event that ended it, so that one sees which was first.
    """

    rank: int
    host: str
    pid: int
    kills: int = 0
    has_spoken: bool = True
    section: Section = Section.START
    step: int | None = None
    since: float
    error: list[str] = field(default_factory=list)
    message: str = ""
    status: int | None = None
    ended: float | None = None
    order: int = 0


class Listener:
    """Takes what the ranks of one attempt say.

    Args:
        host: address on which ranks of other nodes reach this one; None listens on loopback alone.

    Attributes:
        ranks: what is known of each that has spoken.
        run_directory: of the run; None until a rank has told it.
        first_step: after which the run went on; None likewise.
        patience_seconds: how long a rank tries again where a store does not answer.
        last_step: highest that a rank has begun.
        seconds: of rank 0 in each section.
        longest_seconds: of any rank, in each section that ended.
        counts: how many of each section rank 0 has ended.
        stragglers: ranks that compute longer than their like.
    """

    def __init__(self, host: str | None = None) -> None:
        self._secret = secrets.token_hex(16)
        self._selector = selectors.DefaultSelector()
        self._server = _server_at(host or "127.0.0.1")
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._partial: dict[socket.socket, bytearray] = {}
        self._unknown: dict[socket.socket, float] = {}
        self._speakers: dict[socket.socket, Told] = {}
        self._host = host or "127.0.0.1"
        self._events = 0
        self._are_needed = False
        self.ranks: dict[int, Told] = {}
        self.run_directory: Path | None = None
        self.first_step: int | None = None
        self.last_step: int | None = None
        self.patience_seconds = 0.0
        self.seconds: dict[str, float] = defaultdict(float)
        self.longest_seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.stragglers = Stragglers()

    def wake(self, slept_seconds: float) -> None:
        """Take note that this process was stopped for a time, perhaps with all others."""
        for told in self.ranks.values():
            told.since += slept_seconds

    def __enter__(self) -> Self:
        """Listens already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections."""
        for speaker in [*self._partial]:
            speaker.close()
        self._server.close()
        self._selector.close()

    @property
    def address(self) -> str:
        """What ranks are given as `train.watch.heartbeat.ADDRESS`."""
        return f"{self._host}:{self._server.getsockname()[1]}:{self._secret}"

    def listen(self, seconds: float) -> None:
        """Take what comes within so many seconds; returns early when something has come."""
        for speaker, since in [*self._unknown.items()]:
            if time.monotonic() - since > _INTRODUCTION_SECONDS:
                self._close(speaker)
        for key, _ in self._selector.select(max(0.0, seconds)):
            if key.fileobj is self._server:
                self._accept()
            else:
                assert isinstance(key.fileobj, socket.socket)
                self._read(key.fileobj)

    @property
    def num_ends(self) -> int:
        """How many connections were closed so far, and errors told."""
        return self._events

    def have_all_gone(self) -> bool:
        """Whether ranks have spoken, and none of these is there any more."""
        for _ in range(_EVENTS_AT_MOST):
            if not self._selector.select(0.0):
                break
            self.listen(0.0)
        return bool(self.ranks) and all(told.ended is not None for told in self.ranks.values())

    def call(self) -> None:
        """Tell the ranks that stand by, and those that will, that they are needed."""
        self._are_needed = True
        for speaker in self._speakers:
            self._call(speaker)

    def _call(self, speaker: socket.socket) -> None:
        with contextlib.suppress(OSError):
            speaker.send(NEEDED)  # the first few bytes of a connection are always taken

    def _accept(self) -> None:
        try:
            speaker, _ = self._server.accept()
        except OSError:  # it has left already, or this process has no room for another
            return
        speaker.setblocking(False)
        for option, value in _KEEP_ALIVE.items():
            speaker.setsockopt(*option, value)
        self._partial[speaker] = bytearray()
        self._unknown[speaker] = time.monotonic()
        self._selector.register(speaker, selectors.EVENT_READ)

    def _read(self, speaker: socket.socket) -> None:
        try:
            data = speaker.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(speaker)
            return
        partial = self._partial[speaker]
        partial += data
        *lines, rest = bytes(partial).split(b"\n")
        partial[:] = rest
        for line in lines:
            if not self._take(speaker, line):
                self._close(speaker)
                return
        if len(partial) > (_STRANGERS_BYTES if speaker in self._unknown else _LINE_BYTES_AT_MOST):
            self._close(speaker)

    def _close(self, speaker: socket.socket) -> None:
        self._selector.unregister(speaker)
        speaker.close()
        del self._partial[speaker]
        self._unknown.pop(speaker, None)
        if told := self._speakers.pop(speaker, None):
            told.ended = time.monotonic()
            self._events += 1
            told.order = told.order or self._events

    def _take(self, speaker: socket.socket, line: bytes) -> bool:
        """Whether a line is what a rank of ours says."""
        told = self._speakers.get(speaker)
        if told is None and len(line) > _STRANGERS_BYTES:
            return False
        try:
            facts: dict[str, Any] = json.loads(line)
            if told is None:
                if not secrets.compare_digest(str(facts["secret"]), self._secret):
                    return False
                told = Told(
                    rank=int(facts["rank"]),
                    host=str(facts["host"]),
                    pid=int(facts["pid"]),
                    kills=int(facts.get("kills", 0)),
                    has_spoken="shell" not in facts,
                    since=time.monotonic(),
                )
                self._speakers[speaker] = self.ranks[told.rank] = told
                del self._unknown[speaker]
                if self._are_needed:
                    self._call(speaker)
            elif "pid" in facts:  # its shell has spoken first
                told.pid, told.kills = int(facts["pid"]), int(facts["kills"])
                told.has_spoken = True
            elif "section" in facts:
                if "own" in facts:  # of the step before
                    step, own = int(facts["step"]) - 1, float(facts["own"])
                    self.stragglers.add(told.rank, step=step, seconds=own)
                self._enter(told, Section(facts["section"]), int(facts["step"]))
            elif "stage" in facts:
                self.stragglers.meet(told.rank, stage=int(facts["stage"]))
            elif "begins" in facts:
                self.run_directory = Path(facts["run_directory"])
                self.first_step = int(facts["begins"])
                self.patience_seconds = float(facts["patience"])
            elif "needed" in facts:
                told.since = time.monotonic()
            elif "status" in facts:
                told.status = int(facts["status"])
            elif "error" in facts:
                self._events += 1
                told.order = self._events
                told.error = [str(each) for each in facts["error"]]
                told.message = str(facts["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        return True

    def _enter(self, told: Told, section: Section, step: int) -> None:
        now = time.monotonic()
        spent = now - told.since
        self.longest_seconds[told.section] = max(self.longest_seconds[told.section], spent)
        if told.rank == 0:
            self.counts[told.section] += 1
            self.seconds[told.section] += spent
        told.section, told.step, told.since = section, step, now
        if section in (Section.READ, Section.STEP):
            self.last_step = max(step, self.last_step or 0)


def _server_at(host: str) -> socket.socket:
    """Listens at an address of this host alone; at all of them where that cannot be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # a connection for each rank
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    family, *_ = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    for place in (host, ""):
        with contextlib.suppress(OSError):
            return socket.create_server((place, 0), family=family, backlog=4096)
    raise UserError(f"MASTER_ADDR: nothing can listen at {host}: name an address of this host")
