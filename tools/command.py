"""The door of every command line: one exit status and one way to tell for each kind of end."""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from train.errors import StorageError, UserError
from train.exit_status import ExitStatus
from train.preemption import raise_when_asked
from train.storage.path import local_path as parsed
from train.watch.streams import lasting_streams

P = ParamSpec("P")


def command_line(main: Callable[P, int | None]) -> Callable[P, int]:
    """A main function that ends as every tool of this project does.

    Args:
        main: parses and works; what it returns is the exit status, None is 0.

    Returns:
        The same, but it ends with an `ExitStatus`: what the user can mend (`UserError`) is told
        alone and gives `MISTAKE`, as a wrong argument does, and Ctrl-C gives `INTERRUPTED`, with
        what a `KeyboardInterrupt` says, if it says more. A reader of its output may leave.
    """

    @functools.wraps(main)
    def guarded(*arguments: P.args, **options: P.kwargs) -> int:
        with lasting_streams() as streams:
            try:
                raise_when_asked()
                return main(*arguments, **options) or streams.status()
            except SystemExit as ended:  # argparse has shown its help, or told a mistake
                if ended.code in (None, 0) and (status := streams.status()):
                    raise SystemExit(status) from None
                raise
            except UserError as error:
                sys.stderr.write(f"{error}\n")
                return ExitStatus.MISTAKE
            except KeyboardInterrupt as interrupt:
                sys.stderr.write(f"{str(interrupt) or 'interrupted'}\n")
                return ExitStatus.INTERRUPTED

    return guarded


def local_path(text: str) -> Path:
    """The type of an argument that names a file or directory of this host."""
    try:
        return parsed(text)
    except StorageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def write_json(path: Path, document: object) -> None:
    """Write what a tool found, for programs to read; makes the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
