"""The few errors that a user can cause, each of which says what to change, and that of hardware."""

import errno
import os
import re
import sys
from typing import Final, NoReturn

from parallel.errors import UserError
from train.exit_status import ExitStatus

_LONG_WORD: Final = re.compile(r"(\S{300})\S+")

_ANOTHER: Final = "name another, or change its permissions"
_ROOM: Final = "make room there, or name another place"

_REMEDIES: Final = {
    errno.EACCES: _ANOTHER,
    errno.EPERM: _ANOTHER,
    errno.EROFS: "name a place that can be written",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "what it should lie in is a file: name another",
    errno.EEXIST: "name another",
    errno.ELOOP: "a link leads back to itself: name what it should mean",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EMFILE: "allow this process more open files (ulimit -n)",
    errno.ENFILE: "allow this host more open files",
    errno.EIO: "its disk fails: name a place on another",
    errno.ESTALE: "mount its file system again",
    errno.ENXIO: "name a file",
}
"""What a user can do where the system refuses. A missing file is not among them: whoever opens one
that a user named says so, and any other is a fault of ours."""


class ConfigError(UserError):
    """The configuration is wrong; the message lists every fault."""


class StorageError(UserError, OSError):
    """Files cannot be read from or written to a place; the message says why, and what to do."""


class DataError(UserError):
    """A corpus or a shard is missing, damaged or of the wrong kind; the message names it."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another model."""


class LocalCheckpointError(CheckpointError):
    """One on the nodes' own disks is damaged, its copies included; another may be whole."""


class RunDirectoryError(UserError):
    """The output directory holds a different run."""


class InUseError(UserError):
    """Another process writes to a place, or has taken it over; the message says who."""


class DivergedError(UserError):
    """Loss or gradients are no longer finite; nothing was stepped."""


class HardwareError(Exception):
    """The same computation has given two results."""


class SomeHardwareError(HardwareError):
    """Likewise; this rank is one of those that may have erred."""


class MemoryExceededError(UserError):
    """A rank has no memory left for what the configuration asks."""


def named(error: Exception) -> Exception:
    """An error as it is to be told: one of lacking memory says what to do about it."""
    text = str(error)
    is_torch = isinstance(error, RuntimeError) and "memory" in text and "allocate" in text
    if not isinstance(error, MemoryError) and not is_torch:
        return error
    asked = next((line for line in text.splitlines() if "allocate" in line), "no memory is left")
    return MemoryExceededError(
        f"model, batch: a rank lacks memory ({asked}): lower batch.micro_sequences or "
        "data.sequence_tokens, set zero.stage=3 or layout.recompute=full, or take more ranks or a "
        "smaller model; python -m tools.plan says what fits"
    )


def told(error: BaseException | str) -> str:
    """What an error says, without words so long that nobody reads them."""
    return _LONG_WORD.sub(r"\1…", str(error))


def end_at_once(error: Exception) -> NoReturn:
    """Tell an error of another rank, and end this process, which may wait for that rank."""
    sys.stderr.write(f"{told(error)}\n")
    sys.stderr.flush()
    os._exit(ExitStatus.MISTAKE)


def explained(error: OSError | MemoryError) -> str | None:
    """What the system refuses, with the remedy, in a sentence; None for what no user can mend."""
    if isinstance(error, MemoryError):
        return "there is too little memory for this: ask for less at a time, or use a larger host"
    if error.errno not in _REMEDIES:
        return None
    name = error.filename if isinstance(error.filename, str) else "a file"
    return _LONG_WORD.sub(r"\1…", f"{name}: {error.strerror}; {_REMEDIES[error.errno]}")
