"""The newest step that nodes have whole between them, read once, whatever is damaged."""

import errno
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel.zero.state import local_slices
from tests.distributed.checkpoint.nearby import (
    CHUNKS,
    TWO,
    Found,
    disks_of,
    find_and_restore,
    flip,
    home_of,
    moved,
    on_nodes,
    save_steps_nearby,
)
from tests.distributed.toy import Toy, engine_of
from tools.ranks import RankPool
from train.checkpoint.local.finding import whole_steps
from train.checkpoint.restore import restore
from train.storage import local


def _nothing(_: Path) -> None:
    pass


def _wipe_first(place: Path) -> None:
    shutil.rmtree(place / "a")


def _wipe_last(place: Path) -> None:
    shutil.rmtree(place / "b")


def _flip_own(place: Path) -> None:
    flip(home_of(place, "a") / "step_00000002" / CHUNKS)


def _cut_state(place: Path) -> None:
    os.truncate(home_of(place, "a") / "step_00000002" / "state.json", 7)


def _cut_index(place: Path) -> None:
    os.truncate(home_of(place, "a") / "step_00000002" / "index.json", 700)


def _uncommit_last(place: Path) -> None:
    (home_of(place, "b") / "step_00000002" / "index.json").unlink()


@pytest.mark.parametrize(
    ("harm", "remark"),
    [
        (_nothing, ""),
        (_wipe_first, ""),
        (_wipe_last, ""),
        (_flip_own, f"{CHUNKS} is damaged: the checksum of its slice"),
        (_cut_state, ""),
        (_cut_index, ""),
        (_uncommit_last, ""),
    ],
)
def test_one_node_may_be_lost(
    rank_pools: dict[int, RankPool],
    saved_nearby: tuple[Path, list[float]],
    tmp_path: Path,
    harm: Callable[[Path], None],
    remark: str,
) -> None:
    place, losses = moved(saved_nearby[0], tmp_path), saved_nearby[1]
    harm(place)
    for step, loss, remarks in rank_pools[2].run(find_and_restore, place, TWO, 1, 1):
        assert (step, loss) == (2, losses[1])
        assert [remark in text for text in remarks] == [True] * bool(remark), remarks
    # What was fetched from the other node is there for the next start.
    left = home_of(place, "a") / "step_00000002"
    assert {CHUNKS, "index.json", "state.json"} <= {path.name for path in left.iterdir()}


Reads = dict[str, list[tuple[int, int]]]
"""By file, first byte and one past the last of each read."""


def _contents(place: Path, stage: int) -> tuple[dict[str, bytes], Reads]:
    """All that a rank holds after restoring, by name and kind, and what it read for that."""
    reads: Reads = {}
    usual = local._OpenFile.read_into

    def counting(self: Any, target: memoryview, *, offset: int) -> None:
        usual(self, target, offset=offset)
        reads.setdefault(Path(self._path).name, []).append((offset, offset + len(target)))

    with on_nodes(TWO):
        disks = disks_of(place, TWO, 1)
        assert disks.home is not None
        engine = engine_of(Toy(frozen=True), stage=stage)
        for part in local_slices(engine):
            part.tensor.fill_(torch.nan)
        local._OpenFile.read_into = counting
        try:
            found = next(whole_steps(disks.home, disks.nodes, at_least=0, remarks=disks.remarks))
            restore(found.path, engine, pieces=found)
        finally:
            local._OpenFile.read_into = usual
        contents = {
            f"{part.name}/{part.kind}/{part.region.start}": part.tensor.numpy().tobytes()
            for part in local_slices(engine)
        }
        engine.close()
    return contents, reads


def test_each_byte_is_read_once(
    rank_pools: dict[int, RankPool], saved_nearby: tuple[Path, list[float]], tmp_path: Path
) -> None:
    """By the rank that needs it; of the other's file, what is fixed alone."""
    place = moved(saved_nearby[0], tmp_path)
    for rank, (_, reads) in enumerate(rank_pools[2].run(_contents, place, 1)):
        own = f"chunks-{rank:05d}.safetensors"
        num_bytes = (home_of(place, "a") / "step_00000002" / own).stat().st_size
        assert sum(stop - start for start, stop in reads[own]) == num_bytes
        for ranges in reads.values():
            ranges = sorted(ranges)
            assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges)), "read twice"


@pytest.mark.parametrize("stage", [1, 3])
def test_damage_that_is_found_midway_leaves_nothing_behind(
    rank_pools: dict[int, RankPool],
    saved_nearby: tuple[Path, list[float]],
    tmp_path: Path,
    stage: int,
) -> None:
    """All that was filled before is filled again, from the copy."""
    place = moved(saved_nearby[0], tmp_path)
    whole = [contents for contents, _ in rank_pools[2].run(_contents, place, stage)]
    _flip_own(place)
    again = rank_pools[2].run(_contents, place, stage)
    assert [contents for contents, _ in again] == whole
    # The damaged file has been replaced.
    step = "step_00000002"
    assert (home_of(place, "a") / step / CHUNKS).read_bytes() == (
        home_of(place, "b") / step / CHUNKS
    ).read_bytes()


def test_where_both_copies_are_damaged_the_step_before_counts(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    losses = rank_pools[2].run(save_steps_nearby, tmp_path, TWO, 1, 1, 1)[0]
    before = {node: tmp_path / f"before-{node}" for node in TWO}
    for node in TWO:
        shutil.copytree(home_of(tmp_path, node) / "step_00000001", before[node])
    rank_pools[2].run(save_steps_nearby, tmp_path, TWO, 1, 1, 2)
    for node in TWO:
        shutil.copytree(before[node], home_of(tmp_path, node) / "step_00000001")
        flip(home_of(tmp_path, node) / "step_00000002" / CHUNKS)
    for step, loss, remarks in rank_pools[2].run(find_and_restore, tmp_path, TWO, 1, 1):
        assert (step, loss) == (1, losses[0])
        assert remarks[-1] == f"no node has step 2 whole: {CHUNKS} of it cannot be read"


def _find_where_a_disk_fails(place: Path, names: list[str], call: str, on_rank: int) -> Found:
    """One node cannot open the first file of step 2 until it is written anew, or cannot make it."""
    usual = {"open": local.LocalPlace.open, "create": local.LocalPlace.create}
    fails = dist.get_rank() == on_rank

    def asked(name: str, place: local.LocalPlace) -> Any:
        nonlocal fails
        if fails and str(place).endswith(f"step_00000002/{CHUNKS}"):
            if name == call:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            fails = name != "create"
        return usual[name](place)

    try:
        for name in usual:
            setattr(local.LocalPlace, name, lambda self, name=name: asked(name, self))
        return find_and_restore(place, names, 1, 1)
    finally:
        for name, method in usual.items():
            setattr(local.LocalPlace, name, method)


def test_a_disk_that_cannot_be_read_while_others_fetch_from_it(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    """The next node that has the file gives it."""
    names = ["a", "b", "c", "d"]
    losses = rank_pools[4].run(save_steps_nearby, tmp_path, names, 3, 1, 2)[0]
    for node in ("c", "d"):
        (home_of(tmp_path, node) / "step_00000002" / CHUNKS).unlink()
    for step, loss, remarks in rank_pools[4].run(
        _find_where_a_disk_fails, tmp_path, names, "open", 0
    ):
        assert (step, loss) == (2, losses[1])
        assert [f"{CHUNKS}, which holds" in text for text in remarks] == [True], remarks
        assert "Input/output error" in remarks[0]


@pytest.mark.parametrize(
    ("call", "rank", "remark"),
    [
        ("open", 0, f"no node has step 2 whole: {CHUNKS} of it cannot be read"),
        ("create", 1, "step_00000002 cannot be completed from other nodes (Input/output error)"),
    ],
)
def test_where_a_file_cannot_be_fetched_the_step_before_counts(
    rank_pools: dict[int, RankPool], tmp_path: Path, call: str, rank: int, remark: str
) -> None:
    """From the only node that has it, or onto the one that lacks it."""
    losses = rank_pools[2].run(save_steps_nearby, tmp_path, TWO, 1, 1, 1)[0]
    before = {node: tmp_path / f"before-{node}" for node in TWO}
    for node in TWO:
        shutil.copytree(home_of(tmp_path, node) / "step_00000001", before[node])
    rank_pools[2].run(save_steps_nearby, tmp_path, TWO, 1, 1, 2)
    for node in TWO:
        shutil.copytree(before[node], home_of(tmp_path, node) / "step_00000001")
    (home_of(tmp_path, "b") / "step_00000002" / CHUNKS).unlink()
    for step, loss, remarks in rank_pools[2].run(
        _find_where_a_disk_fails, tmp_path, TWO, call, rank
    ):
        assert (step, loss) == (1, losses[0])
        assert remark in remarks[-1]


def test_each_node_has_what_it_should(saved_nearby: tuple[Path, list[float]]) -> None:
    """Its own and the other's, alike; of one step, and nothing that marks nodes."""
    place, _ = saved_nearby
    for node in TWO:
        assert [path.name for path in (place / node).iterdir()] == [home_of(place, node).name]
        (step,) = home_of(place, node).glob("step_*")
        assert sorted(path.name for path in step.iterdir()) == [
            *(CHUNKS, "chunks-00001.safetensors", "index.json", "state.json")
        ]
    contents = [
        {path.name: path.read_bytes() for path in home_of(place, node).glob("step_*/*.*")}
        for node in TWO
    ]
    assert contents[0] == contents[1]
    assert b'"of rank 0"' in contents[1]["state.json"]


def test_both_copies_damaged_are_no_step(
    rank_pools: dict[int, RankPool], saved_nearby: tuple[Path, list[float]], tmp_path: Path
) -> None:
    place = moved(saved_nearby[0], tmp_path)
    for node in TWO:
        flip(home_of(place, node) / "step_00000002" / CHUNKS)
    for step, _, remarks in rank_pools[2].run(find_and_restore, place, TWO, 1, 1):
        assert step is None
        assert ["(on a)" in remarks[0], "(on b)" in remarks[1], len(remarks)] == [True, True, 3]
        assert remarks[-1] == f"no node has step 2 whole: {CHUNKS} of it cannot be read"
    assert rank_pools[2].run(find_and_restore, saved_nearby[0], TWO, 1, 1, 3)[0][0] is None, (
        "too early a step"
    )


def test_a_step_that_some_nodes_have_is_none_and_the_one_before_counts(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    """Without copies; a kill between two nodes' commits leaves this."""
    losses = rank_pools[2].run(save_steps_nearby, tmp_path, TWO, 0, 3, 1)[0]
    before = {node: tmp_path / f"before-{node}" for node in TWO}
    for node in TWO:
        shutil.copytree(home_of(tmp_path, node) / "step_00000001", before[node])
    rank_pools[2].run(save_steps_nearby, tmp_path, TWO, 0, 3, 2)
    for node in TWO:
        shutil.copytree(before[node], home_of(tmp_path, node) / "step_00000001")
    whole = rank_pools[2].run(find_and_restore, tmp_path, TWO, 0, 3)
    assert [step for step, _, _ in whole] == [2, 2]
    _uncommit_last(tmp_path)
    for step, loss, _ in rank_pools[2].run(find_and_restore, tmp_path, TWO, 0, 3):
        assert (step, loss) == (1, losses[0])


@pytest.mark.parametrize(
    ("names", "stage"),
    [
        (["a"], 3),  # fewer nodes, another layout
        pytest.param(["b", "c"], 0, marks=pytest.mark.long),  # a spare in place of the first
        (["c", "c", "b", "b"], 3),
    ],
)
def test_other_nodes_and_layouts_go_on(
    rank_pools: dict[int, RankPool],
    saved_nearby: tuple[Path, list[float]],
    tmp_path: Path,
    names: list[str],
    stage: int,
) -> None:
    place, losses = moved(saved_nearby[0], tmp_path), saved_nearby[1]
    for step, loss, remarks in rank_pools[len(names)].run(find_and_restore, place, names, 1, stage):
        assert (step, loss) == (2, losses[1])
        assert remarks == (
            ["checkpoint.local.copies: 1 of each node's share, but there is 1 node: only 0 can be "
             "kept"] if len(names) == 1 else []
        )  # fmt: skip
