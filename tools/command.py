"""The door of every command line: one exit status and one way to tell for each kind of end."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from train.errors import UserError, explained, told
from train.exit_status import ExitStatus
from train.preemption import raise_when_asked
from train.watch.streams import lasting_streams

P = ParamSpec("P")


def command_line(main: Callable[P, int | None]) -> Callable[P, int]:
    """A main function that ends as every tool of this project does.

    Args:
        main: parses and works; what it returns is the exit status, None is 0.

    Returns:
        The same, but it ends with an `ExitStatus`: what the user can mend (`UserError`) is told
        alone and gives `MISTAKE`, as a wrong argument and what the system refuses (`explained`)
        do, and Ctrl-C gives `INTERRUPTED`, with what a `KeyboardInterrupt` says, if it says more. A
        reader of its output may leave.
    """

    @functools.wraps(main)
    def guarded(*arguments: P.args, **options: P.kwargs) -> int:
        with lasting_streams() as streams:
            try:
                raise_when_asked()
                return main(*arguments, **options) or streams.status()
            except UserError as error:
                sys.stderr.write(f"{told(error)}\n")
                return ExitStatus.MISTAKE
            except (OSError, MemoryError) as error:
                if (sentence := explained(error)) is None:
                    raise
                sys.stderr.write(f"{sentence}\n")
                return ExitStatus.MISTAKE
            except SystemExit as ended:  # argparse has shown its help, or told a mistake
                if ended.code in (None, 0):
                    return streams.status()
                if not isinstance(ended.code, int):
                    raise
                return ended.code
            except KeyboardInterrupt as interrupt:
                sys.stderr.write(f"{str(interrupt) or 'interrupted'}\n")
                return ExitStatus.INTERRUPTED

    return guarded


def write_json(path: Path, document: object) -> None:
    """Write what a tool found, for programs to read; makes the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
