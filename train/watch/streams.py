"""Standard output and error that end nothing: what cannot be written there is lost, and it is said.

A terminal is closed, a pipe's reader leaves, a disk is full, a reader stops reading: a program that
works for days must outlive whoever watches it.
"""

import contextlib
import errno
import io
import logging
import os
import select
import sys
from collections.abc import Generator, Sequence
from typing import Any, Final, TextIO, cast

from typing_extensions import override

from train.exit_status import ExitStatus

PATIENCE_SECONDS: Final = 5.0
"""How long a run waits for a reader that has stopped, such as a terminal after Ctrl-S."""

_PIECE_BYTES: Final = select.PIPE_BUF
"""What a pipe that says it has room takes without waiting."""

_COMES_BACK: Final = (errno.ENOSPC, errno.EDQUOT)


class Streams:
    """Both streams of this process, in place of Python's own."""

    def __init__(self, *, patience_seconds: float | None) -> None:
        self._notes: list[str] = []
        self.output, self.errors = (
            _Outlet(number, name, self, patience_seconds)
            for number, name in ((1, "standard output"), (2, "standard error"))
        )

    def take_notes(self) -> list[str]:
        """What was said of streams that failed, since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def status(self) -> ExitStatus:
        """The status of a command whose work was to print, and who read it to the end."""
        sys.stdout.flush()
        is_whole = self.output.fault in (None, errno.EPIPE)
        return ExitStatus.COMPLETE if is_whole else ExitStatus.UNPRINTED

    def tell(self, failed: "_Outlet", reason: str) -> None:
        """Say that a stream fails, on the other one."""
        note = f"{failed.label} cannot be written ({reason}): the work goes on without it"
        self._notes.append(note)
        other = self.errors if failed is self.output else self.output
        if other.fault is None:
            other.write(f"{note}\n".encode())


class _Outlet(io.FileIO):
    """A descriptor to which every write succeeds.

    Attributes:
        label: what it is, in words.
        fault: `errno` of the first write that failed; 0 for a reader that stopped.
    """

    def __init__(
        self, number: int, label: str, streams: Streams, patience_seconds: float | None
    ) -> None:
        super().__init__(number, "wb", closefd=False)
        self.label = label
        self.fault: int | None = None
        self._streams = streams
        self._patience_seconds = patience_seconds
        self._is_stalled = False

    @override
    def write(self, data, /) -> int:
        view = memoryview(data).cast("B")
        try:
            at = 0
            while at < len(view) and self._has_room():
                at += super().write(view[at : at + _PIECE_BYTES]) or 0
        except OSError as error:
            if error.errno not in _COMES_BACK:
                # For good: what other libraries and children write there must not fail either.
                with contextlib.suppress(OSError):
                    _point_nowhere(self.fileno())
            self._lose(error.errno or errno.EIO, error.strerror or str(error))
        return len(view)

    def _has_room(self) -> bool:
        patience = 0.0 if self._is_stalled else self._patience_seconds
        with contextlib.suppress(ValueError):  # a descriptor beyond what `select` can watch
            self._is_stalled = not select.select([], [self], [], patience)[1]
        if self._is_stalled:
            self._lose(0, "its reader has stopped reading")
        return not self._is_stalled

    def _lose(self, fault: int, reason: str) -> None:
        if self.fault is None:
            self.fault = fault
            # Who has read enough of what a tool prints leaves: no fault.
            if fault != errno.EPIPE or self._patience_seconds is not None:
                self._streams.tell(self, reason)


@contextlib.contextmanager
def lasting_streams(*, patience_seconds: float | None = None) -> Generator[Streams]:
    """Have `sys.stdout` and `sys.stderr` outlive their readers.

    Args:
        patience_seconds: how long to wait for a reader that has stopped; None for ever, as for
            what a tool prints.

    Yields:
        The streams; unused where something else has taken the place of Python's own, as in tests.
    """
    kept = sys.stdout, sys.stderr
    if kept != (sys.__stdout__, sys.__stderr__):
        yield Streams(patience_seconds=patience_seconds)
        return
    if None in kept:  # closed by who started us: files opened next must not take their numbers
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
    streams = Streams(patience_seconds=patience_seconds)
    for stream in kept:
        if stream is not None:
            stream.flush()
    ours = tuple(
        _text(outlet, like=stream)
        for outlet, stream in zip((streams.output, streams.errors), kept, strict=True)
    )
    sys.stdout, sys.stderr = ours
    _move_loggers(kept, ours)
    try:
        yield streams
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = kept
        _move_loggers(ours, kept)


def _move_loggers(old: Sequence[TextIO | None], new: Sequence[TextIO | None]) -> None:
    """Loggers of other libraries keep the streams that they found."""
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in known:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream in old:
                handler.setStream(new[old.index(handler.stream)])


def _text(outlet: _Outlet, *, like: Any) -> TextIO:
    text = io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=None if like is None else like.encoding,
        errors="backslashreplace",  # whatever a terminal cannot show ends nothing either
        line_buffering=like is None or like.line_buffering or like.write_through,
    )
    return cast("TextIO", text)


def _point_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
    finally:
        os.close(nowhere)
