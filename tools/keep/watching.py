"""Watching one attempt until it has ended, or something is wrong."""

import time
from collections.abc import Callable
from typing import Final

from tools.keep.asked import Asked
from tools.keep.deadline import Deadlines
from tools.keep.judging import Found, perhaps_gave_up, straggles
from tools.keep.launching import Ranks
from tools.keep.listening import Listener
from tools.keep.looking import UNSEEN, Look
from train.exit_status import ExitStatus
from train.watch.heartbeat import Section

_GRACE_SECONDS: Final = 2.0
"""Once one rank has died, the others get this long to say why: perhaps another was to blame."""

_STATUS_SECONDS: Final = 30.0
"""The same where one has closed its connection and still ends: its status says why."""

_LEAVING_SECONDS: Final = 300.0
"""Once one rank has left in good order, the others get this long, for a slow save."""

_ASK_AGAIN_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 10.0
_TURN_SECONDS: Final = 0.1
_GATHERED_SECONDS: Final = 0.05
"""What comes meanwhile is taken in one go: to wake up costs more than to read a line."""
_SLEPT_SECONDS: Final = 5.0
"""A turn that takes so much longer was one in which this process was stopped."""


class Watch:
    """What is seen of the ranks of one attempt.

    Args:
        ranks: the processes.
        listener: what they tell.
        deadlines: how long each section may take.
        asked: what the keeper itself is told.
        speaks: whether the ranks tell where they are.
        can_replace: whether another node can take the place of one, by its name.
        say: tells whoever watches.

    Attributes:
        limit_seconds: which a section has passed; 0 if none has.
        slow_ranks: ranks that have computed longer than the median, and how many times as long.
        replaced: the one of them for which the ranks were asked to save and stop; None without.
    """

    def __init__(
        self,
        ranks: Ranks,
        listener: Listener,
        deadlines: Deadlines,
        asked: Asked,
        *,
        speaks: bool,
        can_replace: Callable[[str], bool] = lambda node: False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._ranks = ranks
        self._listener = listener
        self._deadlines = deadlines
        self._asked = asked
        self._speaks = speaks
        self._can_replace = can_replace
        self._say = say
        self._began = self._turned = time.monotonic()
        self._looks: dict[int, Look] = {}
        self._first_gone: float | None = None
        self._asked_ranks = -_ASK_AGAIN_SECONDS
        self._looked = -_LOOK_AGAIN_SECONDS
        self._orders: dict[int, int] = {}
        self._named = set[int]()
        self.limit_seconds = 0.0
        self.slow_ranks: dict[int, float] = {}
        self.replaced: int | None = None

    def is_over(self) -> bool:
        """Takes what comes; whether all have ended, one has died, or one does not go on."""
        self._listen()
        slept = time.monotonic() - self._turned
        self._turned = time.monotonic()
        if slept > _SLEPT_SECONDS:
            self._listener.wake(slept)
            self._began += slept
        if self._ranks.all_ended or self._asked.at_once:
            return True
        now = time.monotonic()
        self._look_for_stragglers()
        if self.is_asked and now - self._asked_ranks > _ASK_AGAIN_SECONDS:
            self._ranks.ask()
            self._asked_ranks = now
        found = self.found()
        gone = [each for each in found if each.is_gone]
        if not gone:
            return self._is_overdue(found)
        self._first_gone = self._first_gone or now
        in_order = all(each.ended in (0, ExitStatus.SAVED) for each in gone)
        seconds = _LEAVING_SECONDS if in_order else _GRACE_SECONDS
        if self._ranks.knows_each and any(each.ended is None for each in gone):
            seconds = _STATUS_SECONDS
        if now - self._first_gone <= seconds:
            return False
        if self._speaks and not in_order and any(map(perhaps_gave_up, gone)):
            # One that has waited too long for another ends before that one does.
            self._look(found)
        return True

    def _listen(self) -> None:
        """For a turn, or until a rank ends: all else that ranks tell is worth no look at all."""
        num_ends, until = self._listener.num_ends, time.monotonic() + _TURN_SECONDS
        while True:
            self._listener.listen(until - time.monotonic())
            if self._listener.num_ends > num_ends or time.monotonic() >= until:
                return
            time.sleep(_GATHERED_SECONDS)

    @property
    def is_asked(self) -> bool:
        """Whether the ranks are to save and stop."""
        return self._asked.to_stop or self.replaced is not None

    def _look_for_stragglers(self) -> None:
        for rank, ratio in self._listener.stragglers.slow.items():
            self.slow_ranks[rank] = max(ratio, self.slow_ranks.get(rank, 0.0))
            told = self._listener.ranks[rank]
            if rank not in self._named:
                self._named.add(rank)
                self._say(straggles(rank, told.host, ratio))
            if self.replaced is None and self._can_replace(told.host):
                self.replaced = rank

    def found(self) -> list[Found]:
        """All that is known of all ranks."""
        statuses = self._ranks.statuses()
        return [self._found(rank, statuses) for rank in range(self._ranks.num_ranks)]

    def _found(self, rank: int, statuses: dict[int, int]) -> Found:
        told = self._listener.ranks.get(rank)
        ended = statuses.get(rank)
        is_gone = ended is not None or (told is not None and told.ended is not None)
        if is_gone and rank not in self._orders:
            self._orders[rank] = len(self._orders) + 1
        if told is None:
            return Found(
                rank=rank,
                node=None,
                section=Section.START,
                step=None,
                seconds=time.monotonic() - self._began,
                ended=ended,
                is_status_shared=not self._ranks.knows_each,
                is_gone=is_gone,
                order=self._orders.get(rank, 0),
                look=self._looks.get(rank, UNSEEN),
                has_spoken=False,
            )
        return Found(
            rank=rank,
            node=told.host,
            section=told.section,
            step=told.step,
            seconds=time.monotonic() - told.since,
            ended=told.status if told.status is not None else ended,
            is_status_shared=told.status is None and not self._ranks.knows_each,
            is_gone=is_gone,
            error=tuple(told.error),
            message=told.message,
            order=told.order or self._orders.get(rank, 0),
            look=self._looks.get(rank, UNSEEN),
            has_spoken=told.has_spoken,
        )

    def _limit(self, rank: Found) -> float:
        listener = self._listener
        return self._deadlines.of(
            rank.section, longest_seconds=listener.longest_seconds, counts=listener.counts
        )

    def _is_overdue(self, found: list[Found]) -> bool:
        """Whether something is wrong with ranks that all live; they are looked at first."""
        if any(each.step is not None for each in found):
            # Others would not come to a step without them: they cannot reach the keeper.
            found = [each for each in found if each.has_spoken]
        late = [each for each in found if each.seconds > self._limit(each)]
        now = time.monotonic()
        if not self._speaks or not late or now - self._looked < _LOOK_AGAIN_SECONDS:
            return False
        self._looked = now
        self._look(found)
        self.limit_seconds = min(map(self._limit, late))
        if any(each.state == "stopped" for each in self._looks.values()):
            return True
        # The others wait for the one that is behind, and that one may wait for a store.
        behind = min(found, key=lambda each: each.place)
        return behind.seconds > self._limit(behind) + self._listener.patience_seconds

    def _look(self, found: list[Found]) -> None:
        """See what the ranks are at that have not ended."""
        told = self._listener.ranks
        processes = {
            each.rank: (told[each.rank].host, told[each.rank].pid)
            for each in found
            if each.rank in told and not each.is_gone
        }
        self._looks |= self._ranks.looks(processes)
        self._turned = time.monotonic()  # a look takes seconds
