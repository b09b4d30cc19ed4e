"""When an attempt is over, seen from what the ranks told and what they did not."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Thread

import pytest

from tools.keep.asked import Asked
from tools.keep.deadline import ONCE_FACTOR, Deadlines
from tools.keep.judging import judge
from tools.keep.listening import Listener, Told
from tools.keep.looking import UNSEEN, Look
from tools.keep.watching import Watch
from train.watch.heartbeat import Heartbeat, Section


@dataclass
class Idle:
    """Ranks that do nothing."""

    num_ranks: int = 2
    knows_each: bool = False
    ended: dict[int, int] = field(default_factory=dict)
    times_asked: int = 0
    looked_at: list[dict[int, tuple[str, int]]] = field(default_factory=list)
    look: Look = UNSEEN

    def statuses(self) -> dict[int, int]:
        return self.ended

    def looks(self, processes: Mapping[int, tuple[str, int]]) -> dict[int, Look]:
        self.looked_at.append(dict(processes))
        return {rank: self.look for rank in processes}

    @property
    def all_ended(self) -> bool:
        return len(self.ended) == self.num_ranks

    def ask(self) -> None:
        self.times_asked += 1

    def kill(self, are_gone: Callable[[], bool] = lambda: False) -> None:
        raise AssertionError


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setattr("tools.keep.watching._TURN_SECONDS", 0.0)
    with Listener() as found:
        yield found


def told(rank: int, *, section: Section, step: int | None, since: float) -> Told:
    return Told(rank=rank, host="here", pid=1, section=section, step=step, since=since)


def watch(listener: Listener, ranks: Idle, asked: Asked | None = None) -> Watch:
    limits = Deadlines(unknown_seconds=600, least_seconds=30)
    return Watch(ranks, listener, limits, asked or Asked(), speaks=True)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr("tools.keep.watching.time.monotonic", lambda: clock[0])
    # Else a jump of the clock is time that this process was stopped for.
    monkeypatch.setattr("tools.keep.watching._SLEPT_SECONDS", math.inf)
    return clock


def test_ranks_that_never_come_are_waited_for_so_long(listener: Listener, now: list[float]) -> None:
    seen = watch(listener, Idle())
    now[0] += 600 * ONCE_FACTOR - 4
    assert not seen.is_over()
    now[0] += 20


def test_one_that_cannot_reach_the_keeper_is_no_reason(
    listener: Listener, now: list[float]
) -> None:
    seen = watch(listener, Idle())
    listener.ranks[0] = told(0, section=Section.STEP, step=7, since=now[0])
    now[0] += 500
    listener.ranks[0].since = now[0]
    now[0] += 500
    assert not seen.is_over()
    now[0] += 200
    assert seen.is_over(), "but the one that speaks has its limit"


def test_the_one_behind_may_wait_for_a_store(listener: Listener, now: list[float]) -> None:
    listener.counts |= {"step": 9, "read": 9}
    listener.longest_seconds |= {"step": 2.0, "read": 1.0}
    listener.patience_seconds = 300.0
    seen = watch(listener, Idle())
    listener.ranks[0] = told(0, section=Section.STEP, step=7, since=now[0])
    listener.ranks[1] = told(1, section=Section.READ, step=7, since=now[0])
    now[0] += 320
    assert not seen.is_over()
    now[0] += 20
    assert seen.is_over()
    assert seen.limit_seconds == 30


def test_ranks_are_asked_again_and_again(listener: Listener, now: list[float]) -> None:
    asked, ranks = Asked(), Idle()
    seen = watch(listener, ranks, asked)
    with asked.listening(), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGUSR1)
    for _ in range(3):
        assert not seen.is_over()
        now[0] += 6
    assert ranks.times_asked == 3


def test_who_leaves_in_good_order_is_followed_later_than_who_dies(
    listener: Listener, now: list[float]
) -> None:
    for status, patience in ((0, 299.0), (1, 1.5)):
        seen = watch(listener, Idle(ended={0: status}))
        assert not seen.is_over()
        now[0] += patience
        assert not seen.is_over()
        now[0] += 2
        assert seen.is_over()


def test_who_has_hung_up_is_given_time_to_end(listener: Listener, now: list[float]) -> None:
    """On a loaded machine a process takes seconds to end, whose status says what was wrong."""
    ranks = Idle(knows_each=True)
    seen = watch(listener, ranks)
    listener.ranks[0] = told(0, section=Section.START, step=None, since=now[0])
    listener.ranks[0].ended = now[0]
    assert not seen.is_over()
    now[0] += 20
    assert not seen.is_over()
    ranks.ended[0] = 2
    assert seen.is_over()
    verdict = judge(seen.found(), was_asked=False, memory_kills=0, limit_seconds=0.0)
    assert verdict.kind == "user error"


def test_who_has_hung_up_and_does_not_end_is_not_waited_for(
    listener: Listener, now: list[float]
) -> None:
    seen = watch(listener, Idle(knows_each=True))
    listener.ranks[0] = told(0, section=Section.STEP, step=3, since=now[0])
    listener.ranks[0].ended = now[0]
    assert not seen.is_over()
    now[0] += 31
    assert seen.is_over()


def test_a_keeper_that_was_stopped_with_its_ranks_blames_nobody(
    listener: Listener, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.keep.watching._SLEPT_SECONDS", 5.0)
    seen = watch(listener, Idle(num_ranks=1))
    listener.ranks[0] = told(0, section=Section.STEP, step=7, since=now[0])
    now[0] += 100_000
    assert not seen.is_over()
    for _ in range(4 * 149):
        now[0] += 1
        assert not seen.is_over()
    for _ in range(20):
        now[0] += 1
        if seen.is_over():
            return
    raise AssertionError("its limit counts again")


def test_who_holds_up_those_that_gave_up_is_looked_at(listener: Listener, now: list[float]) -> None:
    """On whatever nodes: Slurm tells no status, and a rank that aborts says nothing."""
    ranks = Idle(look=Look(state="stopped"))
    seen = watch(listener, ranks)
    for rank in range(2):
        listener.ranks[rank] = told(rank, section=Section.STEP, step=7, since=now[0])
    assert not seen.is_over()
    listener.ranks[0].ended = now[0]
    listener.ranks[0].error = ["RuntimeError", "Exception"]
    listener.ranks[0].message = "Timed out waiting 600000ms for recv operation to complete"
    assert not seen.is_over()
    now[0] += 3
    assert seen.is_over()
    assert ranks.looked_at == [{1: ("here", 1)}], "the dead are not looked at"
    verdict = judge(seen.found(), was_asked=False)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == ("stopped", 1, True)


def test_who_has_said_what_is_wrong_is_believed_at_once(
    listener: Listener, now: list[float]
) -> None:
    ranks = Idle()
    seen = watch(listener, ranks)
    for rank in range(2):
        listener.ranks[rank] = told(rank, section=Section.STEP, step=7, since=now[0])
    listener.ranks[0].ended, listener.ranks[0].error = now[0], ["ValueError", "Exception"]
    assert not seen.is_over()
    now[0] += 3
    assert seen.is_over()
    assert ranks.looked_at == []


@pytest.mark.parametrize("can_replace", [True, False])
def test_a_straggler_is_named_once_and_makes_room_where_another_can_take_its_place(
    listener: Listener, now: list[float], can_replace: bool
) -> None:
    ranks, sentences, asked_of = Idle(), list[str](), list[str]()

    def can(node: str) -> bool:
        asked_of.append(node)
        return can_replace

    limits = Deadlines(unknown_seconds=600, least_seconds=30)
    seen = Watch(
        ranks, listener, limits, Asked(), speaks=True, can_replace=can, say=sentences.append
    )
    for rank in range(2):
        listener.ranks[rank] = told(rank, section=Section.STEP, step=7, since=now[0])
    assert not seen.is_over()
    listener.stragglers.slow[1] = 1.37
    assert not seen.is_over()
    assert not seen.is_over()
    assert sentences == [
        "slow: rank 1 on here computes 1.37 times as long as the median of its stage, for 10 "
        "windows of 10 steps"
    ]
    assert asked_of[0] == "here"
    assert seen.slow_ranks == {1: 1.37}
    assert (seen.replaced, ranks.times_asked) == ((1, 1) if can_replace else (None, 0))


@pytest.mark.timeout(120)
def test_many_that_tell_much_are_looked_at_as_often_as_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each look is at all ranks, so that a look for each word of each were a look squared."""
    steps, ranks, looks = 400, Idle(num_ranks=1), 0
    with Listener() as listener:
        beat = Heartbeat(listener.address, rank=0)
        seen = watch(listener, ranks)

        def tell() -> None:
            for step in range(1, steps + 1):
                beat.enter(Section.READ, step=step)
                time.sleep(0.001)

        telling = Thread(target=tell)
        telling.start()
        began = time.monotonic()
        while listener.last_step != steps:
            assert not seen.is_over()
            looks += 1
        taken = time.monotonic() - began
        telling.join()
        assert looks <= taken / 0.1 + 2
        # But an end is seen when it comes.
        beat.tell(RuntimeError("it is over"))
        monkeypatch.setattr("tools.keep.watching._TURN_SECONDS", 600.0)
        seen.is_over()
        assert seen.found()[0].message == "it is over"
