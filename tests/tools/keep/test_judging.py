"""Whom the rules blame, for what, and whether they are sure: over ranks made up."""

from dataclasses import replace
from typing import Any

import pytest

from tools.keep.judging import Found, judge, out_of_memory, suspects, with_dead_nodes
from tools.keep.looking import Frame, Look
from train.exit_status import ExitStatus

OURS = Frame(function="accumulate", file="/home/me/semicausal/train/step.py", line=7)
IN_COLLECTIVE = Look(
    state="sleeping",
    frames=(
        Frame(function="all_reduce", file="site-packages/torch/distributed/c10d.py", line=1),
        OURS,
    ),
)
IN_FEED = Look(
    state="sleeping",
    frames=(
        Frame(function="wait", file="/usr/lib/python3/threading.py", line=1),
        Frame(function="try_step", file="/home/me/semicausal/train/data/feed.py", line=2),
    ),
)
LOST = "gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:49583"


def waiting(rank: int, *, step: int = 9, section: str = "step") -> Found:
    return Found(
        rank=rank, node=f"node{rank}", section=section, step=step, seconds=70.0,
        look=IN_COLLECTIVE,
    )  # fmt: skip


def gone(rank: int, *, order: int, ended: int | None = None, **facts: object) -> Found:
    found = replace(waiting(rank), is_gone=True, order=order, ended=ended)
    return replace(found, **facts)


def test_all_in_order() -> None:
    assert judge([gone(0, order=1, ended=0), gone(1, order=2, ended=0)], was_asked=False).kind == (
        "complete"
    )
    saved = [gone(0, order=1, ended=75), gone(1, order=2, ended=75)]
    assert judge(saved, was_asked=True).kind == "stopped by a signal"


@pytest.mark.parametrize("order", [1, 2])
def test_a_killed_rank_and_one_that_lost_it(order: int) -> None:
    """Whichever is noticed first."""
    killed = gone(1, order=3 - order, ended=-9)
    other = gone(0, order=order, ended=1, error=("RuntimeError", "Exception"), message=LOST)
    verdict = judge([other, killed], was_asked=False)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == ("dead", 1, True)
    assert verdict.sentence == "dead: rank 1 on node1, in step of step 9, was killed by signal 9"


def test_a_rank_of_another_node_that_has_gone_without_a_word() -> None:
    """Slurm tells one status of all, when all have ended."""
    killed = gone(1, order=1, ended=137, is_status_shared=True)
    other = gone(0, order=2, ended=1, error=("RuntimeError", "Exception"), message=LOST)
    verdict = judge([other, killed], was_asked=False)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == ("dead", 1, True)


@pytest.mark.parametrize(
    "silence", [{"node": None, "has_spoken": False}, {"node": "node1", "has_spoken": False}]
)
def test_no_rank_is_named_where_none_has_spoken(silence: dict[str, Any]) -> None:
    """Whether or not their shells have said where they are: Slurm tells one status of all."""
    silent = [
        replace(gone(rank, order=rank + 1, ended=1, is_status_shared=True), step=None, **silence)
        for rank in range(2)
    ]
    verdict = judge(silent, was_asked=False)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == ("dead", None, False)


def test_one_that_has_gone_before_it_could_speak() -> None:
    """While the others live: its shell has spoken for it, and the connection is closed."""
    silent = gone(1, order=1, is_status_shared=True, has_spoken=False, step=None, section="start")
    verdict = judge([waiting(0), silent], was_asked=False)
    assert (verdict.kind, verdict.rank, verdict.node, verdict.is_sure) == ("dead", 1, "node1", True)
    assert verdict.sentence.endswith("before the first step, has gone without a word")


def test_killed_for_want_of_memory() -> None:
    ranks = [waiting(0), gone(1, order=1, ended=-9)]
    assert judge(ranks, was_asked=False, memory_kills=1).kind == "out of memory"
    assert judge(ranks, was_asked=False).kind == "dead"
    segmentation = [waiting(0), gone(1, order=1, ended=-11)]
    assert judge(segmentation, was_asked=False, memory_kills=1).kind == "dead"


@pytest.mark.parametrize(
    ("classes", "kind"),
    [
        (("ValueError", "Exception"), "fault"),
        (("MemoryExceededError", "UserError", "Exception"), "out of memory"),
        (("OutOfMemoryError", "RuntimeError", "Exception"), "out of memory"),
        (("DivergedError", "UserError", "Exception"), "not finite"),
        (("ConfigError", "UserError", "Exception"), "user error"),
    ],
)
def test_what_a_rank_raised(classes: tuple[str, ...], kind: str) -> None:
    raised = gone(2, order=2, ended=1, error=classes, message="odd")
    lost = gone(0, order=1, ended=1, error=("RuntimeError", "Exception"), message=LOST)
    verdict = judge([lost, waiting(1), raised], was_asked=False)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == (kind, 2, True)
    assert verdict.error == f"{classes[0]}: odd"


def test_all_have_lost_another() -> None:
    ranks = [
        gone(rank, order=rank + 1, ended=1, error=("RuntimeError", "Exception"), message=LOST)
        for rank in range(2)
    ]
    verdict = judge(ranks, was_asked=False)
    assert (verdict.kind, verdict.is_sure) == ("lost a peer", False)


def test_a_stopped_rank() -> None:
    frozen = replace(waiting(1), look=Look(state="stopped"))
    verdict = judge([waiting(0), frozen], was_asked=False, limit_seconds=30)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == ("stopped", 1, True)


def test_a_rank_that_reads() -> None:
    reading = replace(waiting(1, section="read"), look=IN_FEED)
    verdict = judge([waiting(0), reading], was_asked=False, limit_seconds=30)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == ("stuck in reading", 1, True)
    assert "try_step (/home/me/semicausal/train/data/feed.py:2)" in verdict.sentence


def test_two_that_read_cannot_be_told_apart() -> None:
    reading = [replace(waiting(rank, section="read"), look=IN_FEED) for rank in (1, 2)]
    verdict = judge([waiting(0), *reading], was_asked=False, limit_seconds=30)
    assert (verdict.kind, verdict.is_sure) == ("stuck in reading", False)


@pytest.mark.parametrize(
    ("state", "kind", "is_sure"), [("running", "slow", False), ("disk-sleep", "stuck", True)]
)
def test_a_rank_elsewhere_in_the_step(state: str, kind: str, is_sure: bool) -> None:
    elsewhere = replace(waiting(0), look=Look(state=state, frames=(OURS,)))
    verdict = judge([elsewhere, waiting(1), waiting(2)], was_asked=False, limit_seconds=30)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == (kind, 0, is_sure)


def test_what_was_not_seen_makes_nobody_sure() -> None:
    elsewhere = replace(waiting(0), look=Look(state="sleeping", frames=(OURS,)))
    unseen = replace(waiting(2), look=Look(state=None))
    verdict = judge([elsewhere, waiting(1), unseen], was_asked=False, limit_seconds=30)
    assert (verdict.rank, verdict.is_sure) == (0, False)


def test_all_in_collectives_at_different_steps() -> None:
    verdict = judge([waiting(0, step=10), waiting(1)], was_asked=False, limit_seconds=30)
    assert (verdict.kind, verdict.rank) == ("collective the others did not enter", 1)
    assert not verdict.is_sure


def test_all_in_one_collective_blames_nobody() -> None:
    verdict = judge([waiting(0), waiting(1)], was_asked=False, limit_seconds=30)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == ("unknown", None, False)


def test_one_that_was_asked_and_left_while_another_hangs() -> None:
    verdict = judge([gone(0, order=1, ended=ExitStatus.SAVED), waiting(1)], was_asked=True)
    assert verdict.kind == "stopped by a signal"


@pytest.mark.parametrize(("kind", "rank"), [("HardwareError", 1), ("SomeHardwareError", None)])
def test_hardware_that_computes_otherwise(kind: str, rank: int | None) -> None:
    """Those that only heard of it end first."""
    heard = gone(
        0, order=1, ended=1, error=("HardwareError", "Exception"),
        message="another rank failed: step 9: odd",
    )  # fmt: skip
    classes = ("HardwareError", "Exception")
    classes = classes if rank is not None else ("SomeHardwareError", *classes)
    culprit = gone(1, order=2, ended=1, error=classes, message="step 9: odd")
    verdict = judge([heard, culprit], was_asked=False)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == ("hardware", rank, rank is not None)


STOPPED = Look(state="stopped")
HUNG = Look(state="disk-sleep", frames=(OURS,))
GAVE_UP = {"error": ("RuntimeError", "Exception"), "message": "Timed out waiting 600000ms"}


@pytest.mark.parametrize(
    ("gave_up", "culprit", "kind", "is_sure"),
    [
        ({"ended": 1, **GAVE_UP}, STOPPED, "stopped", True),
        ({"ended": 1, **GAVE_UP}, HUNG, "stuck", True),
        # NCCL's watchdog aborts without a word; so does a rank whose own code is wrong.
        ({"ended": -6}, STOPPED, "stopped", True),
        ({"ended": 134}, STOPPED, "stopped", True),
        # Of another node nobody knows how it ended.
        ({"ended": None, "is_status_shared": True}, STOPPED, "stopped", True),
    ],
)
def test_one_that_gave_up_waiting_does_not_hide_for_whom(
    gave_up: dict[str, Any], culprit: Look, kind: str, is_sure: bool
) -> None:
    ranks = [gone(0, order=1, **gave_up), waiting(1), replace(waiting(2), look=culprit)]
    verdict = judge(ranks, was_asked=False)
    assert (verdict.kind, verdict.rank, verdict.is_sure) == (kind, 2, is_sure)
    assert "600 s" not in verdict.sentence


@pytest.mark.parametrize(
    "killed",
    [
        {"ended": -9},
        {"ended": None, "is_status_shared": True},
        {"ended": 1, "error": ("ValueError", "Exception"), "message": "odd"},
    ],
)
def test_who_computes_while_another_dies_is_not_to_blame(killed: dict[str, Any]) -> None:
    """It has only not noticed yet."""
    computing = Look(state="running", frames=(OURS,))
    ranks = [gone(0, order=1, **killed), waiting(1), replace(waiting(2), look=computing)]
    verdict = judge(ranks, was_asked=False)
    assert verdict.rank == 0
    assert verdict.kind in ("dead", "fault")


def test_living_ranks_that_were_not_seen_blame_nobody() -> None:
    unseen = [replace(waiting(rank), look=Look(state=None)) for rank in (1, 2)]
    verdict = judge([gone(0, order=1, ended=1, **GAVE_UP), *unseen], was_asked=False)
    assert (verdict.kind, verdict.is_sure) == ("lost a peer", False)


def on_nodes(*facts: dict[str, object]) -> list[Found]:
    """Ranks of another place, two on each node, of which Slurm tells no status."""
    return [
        replace(
            waiting(rank),
            **{"node": f"node{1 + rank // 2}", "is_status_shared": True, "order": rank, **each},
        )
        for rank, each in enumerate(facts)
    ]


NODES = ("node1", "node2")
SILENT: dict[str, object] = {"is_gone": True}
NEVER: dict[str, object] = {"node": None, "step": None}
SPOKE: dict[str, object] = {"is_gone": True, "error": ("RuntimeError",), "message": LOST}


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ((SPOKE, SPOKE, SILENT, SILENT), ["node2"]),
        ((SPOKE, SPOKE, SILENT, SPOKE), []),  # a rank alone was killed
        ((SILENT, {}, SILENT, NEVER), ["node2"]),
        ((NEVER, NEVER, NEVER, NEVER), ["node1", "node2"]),
        (({}, {}, {}, {}), []),
        ((SPOKE, SPOKE, SILENT, {"is_gone": True, "is_status_shared": False}), []),
    ],
)
def test_nodes_of_which_no_rank_speaks_are_suspects(
    facts: tuple[dict[str, object], ...], found: list[str]
) -> None:
    assert suspects(on_nodes(*facts), NODES) == found


def test_a_dead_node_is_the_reason_of_all_else() -> None:
    ranks = on_nodes(SPOKE, SPOKE, SILENT, SILENT)
    lost = judge(ranks[:2], was_asked=False)
    assert (lost.kind, lost.is_sure) == ("lost a peer", False)
    verdict = with_dead_nodes(lost, ranks, ["node2"])
    assert (verdict.kind, verdict.rank, verdict.node, verdict.is_sure) == ("dead", 2, "node2", True)
    assert verdict.sentence == (
        "dead: rank 2 on node2, in step of step 9, has gone with its node, which does not answer"
    )
    assert with_dead_nodes(lost, ranks, []) == lost


def test_killed_on_another_node_for_want_of_memory() -> None:
    """Slurm tells no status; the node says afterwards what its kernel has done."""
    ranks = on_nodes(SPOKE, SPOKE, SILENT, SPOKE)
    dead = judge(ranks, was_asked=False)
    assert (dead.kind, dead.rank) == ("dead", 2)
    verdict = out_of_memory(dead, ranks)
    assert (verdict.kind, verdict.rank, verdict.node, verdict.is_sure) == (
        "out of memory", 2, "node2", True,
    )  # fmt: skip
