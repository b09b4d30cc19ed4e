"""A tool on several ranks, if a launcher such as torchrun or srun starts it on them."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Generator
from types import FrameType

from parallel.launch import World, join, leave
from parallel.launcher import announced
from parallel.mesh import forget_groups
from train.errors import ConfigError, UserError, told
from train.exit_status import ExitStatus


@contextlib.contextmanager
def together(*, timeout_seconds: float = 600.0) -> Generator[World]:
    """This process among those that a launcher started with it; alone without one.

    A rank that fails ends at once, whatever it holds: the others may be inside a collective, and
    are the launcher's to end. Asked to stop, by SIGTERM or by Slurm's warning, a rank ends at once,
    and the same command goes on with what is kept.

    Args:
        timeout_seconds: how long a rank may wait for the slowest one.

    Raises:
        LaunchError: what the launcher says makes no sense, or not all ranks came.
    """
    if announced().size == 1:
        with _stopped_at_once():
            yield World.here()
        return
    world = join(timeout_seconds=timeout_seconds)
    try:
        with _stopped_at_once():
            yield world
    except UserError as error:
        # All ranks read the same configuration, and each its own node's files.
        if world.is_main or not isinstance(error, ConfigError):
            sys.stderr.write(f"{told(error)}\n")
        sys.stderr.flush()
        os._exit(ExitStatus.MISTAKE)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(ExitStatus.FAULT)
    forget_groups()
    leave()


@contextlib.contextmanager
def _stopped_at_once() -> Generator[None]:
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    name = signal.Signals(number).name
    sys.stderr.write(f"stopped by {name}; the same command goes on with what is kept\n")
    sys.stderr.flush()
    os._exit(ExitStatus.SAVED)
