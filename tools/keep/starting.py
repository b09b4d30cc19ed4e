"""The ranks of one attempt with whoever listens to them, and the next ones that stand by."""

import argparse
import shlex
from typing import Final, Self

from tools.keep.launching import Ranks, start
from tools.keep.listening import Listener

_STEPS_BEFORE_STANDBYS: Final = 3
"""An attempt makes so many before the next ranks are started, which takes processor time."""


class Started:
    """Ranks that were started, and their listener. As a context it ends them.

    Args:
        options: of the command.
        number: of this start, from 0.
        stands_by: whether the ranks do their imports and wait.
        host: on which ranks of other nodes reach this one; None for loopback.
    """

    def __init__(
        self, options: argparse.Namespace, *, number: int, stands_by: bool, host: str | None
    ) -> None:
        self.listener = Listener(host)
        self.ranks: Ranks = start(
            options.module,
            options.arguments,
            launcher=options.launcher,
            inside=shlex.split(options.inside),
            num_ranks=options.ranks,
            threads=options.threads,
            address=self.listener.address,
            number=number,
            stands_by=stands_by,
        )

    def __enter__(self) -> Self:
        """Runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the ranks."""
        self.ranks.kill()
        self.listener.__exit__()


class Starter:
    """Starts the ranks of each attempt, or calls those that stand by.

    Args:
        options: of the command; `warm` has ranks stand by.
        host: as for `Started`.
    """

    def __init__(self, options: argparse.Namespace, *, host: str | None) -> None:
        self._options = options
        self._host = host
        self._number = 0
        self._next: Started | None = None

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends those that stand by."""
        if self._next is not None:
            self._next.__exit__()

    def start(self) -> Started:
        """The ranks of an attempt: those that stand by, if all of them live."""
        waiting, self._next = self._next, None
        if waiting is not None and not waiting.ranks.statuses():
            # Also where they still import: they are ahead of any that are started now.
            waiting.listener.call()
            return waiting
        if waiting is not None:
            waiting.__exit__()
        return self._started(stands_by=False)

    def prepare(self, listener: Listener) -> None:
        """Has the next ranks stand by, once those of a listener make steps; called every turn."""
        if not self._options.warm:
            return
        if self._next is not None:
            self._next.listener.listen(0.0)
            return
        first, last = listener.first_step, listener.last_step
        if first is not None and last is not None and last - first >= _STEPS_BEFORE_STANDBYS:
            self._next = self._started(stands_by=True)

    def _started(self, *, stands_by: bool) -> Started:
        self._number += 1
        return Started(self._options, number=self._number - 1, stands_by=stands_by, host=self._host)
