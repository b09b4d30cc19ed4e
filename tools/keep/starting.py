"""The ranks of one attempt with whoever listens to them, and the next ones that stand by."""

import argparse
import shlex
from dataclasses import dataclass
from typing import Final, Self

from tools.keep.launching import Ranks, start
from tools.keep.listening import Listener

_STEPS_BEFORE_STANDBYS: Final = 3
"""An attempt makes so many before the next ranks are started, which takes processor time."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where ranks run, and how.

    Attributes:
        nodes: of a job; None where Slurm says it.
        overrides: of their configuration, for the layout that goes with so many.
    """

    nodes: tuple[str, ...] | None = None
    overrides: tuple[str, ...] = ()


class Started:
    """Ranks that were started, and their listener. As a context it ends them.

    Args:
        options: of the command.
        number: of this start, from 0.
        stands_by: whether the ranks do their imports and wait.
        host: on which ranks of other nodes reach this one; None for loopback.
        place: where they run, and in which layout.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        *,
        number: int,
        stands_by: bool,
        host: str | None,
        place: Place,
    ) -> None:
        self.listener = Listener(host)
        self.place = place
        self.ranks: Ranks = start(
            options.module,
            [*options.arguments, *place.overrides],
            launcher=options.launcher,
            hosts=options.hosts,
            inside=shlex.split(options.inside),
            num_ranks=options.ranks,
            threads=options.threads,
            address=self.listener.address,
            nodes=place.nodes,
            number=number,
            stands_by=stands_by,
        )

    def __enter__(self) -> Self:
        """Runs already."""
        return self

    @property
    def is_alive(self) -> bool:
        """Whether no rank is known to have ended."""
        self.listener.listen(0.0)
        have_ended = (told.ended is not None for told in self.listener.ranks.values())
        return not self.ranks.statuses() and not any(have_ended)

    def __exit__(self, *_: object) -> None:
        """Ends the ranks."""
        self.ranks.kill(self.listener.have_all_gone)
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
        self._place = Place()
        self._next: Started | None = None

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends those that stand by."""
        if self._next is not None:
            self._next.__exit__()

    def start(self, place: Place) -> Started:
        """The ranks of an attempt: those that stand by, if all of them live, and in that place."""
        waiting, self._next, self._place = self._next, None, place
        if waiting is not None and waiting.place == place and waiting.is_alive:
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
        return Started(
            self._options,
            number=self._number - 1,
            stands_by=stands_by,
            host=self._host,
            place=self._place,
        )
