"""Names of files and directories as users write them; one rule for all of them."""

import os
import re
from pathlib import Path
from typing import Final

from train.errors import StorageError

SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")

_UNSET: Final = re.compile(r"\$(\w+|\{[^}]*\})")


def expanded(text: str) -> str:
    """What a name stands for.

    `$VARIABLE` and, at the beginning of a path, `~` stand for what a shell makes of them, unless
    there is a file of that very name; any other sign is part of the name.

    Raises:
        StorageError: it is empty, no file can have it, or a variable in it is not set.
    """
    if not text or "\0" in text:
        raise StorageError(f"{text!r} cannot be the name of a file or directory: name another")
    path = os.path.expandvars(text)
    if SCHEME.match(path) is None:
        if os.path.lexists(text):
            return text
        path = os.path.expanduser(path)
    if (unset := _UNSET.search(path)) is not None or path.startswith("~"):
        what = f"the variable {unset[0]} is not set" if unset else "there is no such home"
        raise StorageError(f"{text}: {what}; write the path out")
    return path


def local_path(text: str) -> Path:
    """The file or directory of this host that a user names.

    Raises:
        StorageError: as `expanded`; or it is the address of a store.
    """
    path = expanded(text)
    if SCHEME.match(path) is not None:
        raise StorageError(
            f"{text} is no directory of this host, where this has to lie: name one as a path"
        )
    return Path(path)


def user_cache(name: str, *, instead: str = "XDG_CACHE_HOME") -> Path:
    """Where files of this user are kept between commands.

    Args:
        name: of the files' directory.
        instead: what the user can set to a place of their own.

    Raises:
        StorageError: the user has no home, as in many a container.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise StorageError(
            f"there is no place to keep {name}: this user has no home directory; set {instead} to "
            "a directory that can be written"
        )
    return Path(base, "semicausal", name)
