"""Checkpoints on the nodes' own disks: whole while the nodes have every piece between them."""

import errno
import os
import resource
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from parallel.agreement import gathered
from tests.distributed.checkpoint.nearby import (
    CHUNKS,
    TWO,
    disks_of,
    find_and_restore,
    home_of,
    moved,
    on_nodes,
)
from tests.distributed.checkpoint.runs import state_of, tensors_of
from tests.distributed.toy import Toy, engine_of
from tests.train.runs import TINY_RUN
from tools.ranks import RankPool
from train.checkpoint import saver
from train.checkpoint.directory import Retention, complete, latest
from train.checkpoint.format import Index
from train.checkpoint.local import exchange
from train.checkpoint.local.exchange import Transfer, deliver
from train.checkpoint.local.saver import LocalSaver
from train.checkpoint.saver import Saver
from train.config import RunConfig
from train.config_files import load
from train.errors import CheckpointError, ConfigError, RunDirectoryError
from train.saves import Saves
from train.storage.local import LocalPlace
from train.storage.place import Place


def _deliver(place: Path) -> list[dict[str, bytes]]:
    """Files of all sizes in rings and stars; what lies in each rank's directory then."""
    rank, size = dist.get_rank(), dist.get_world_size()
    own = {f"{rank}-{length}": os.urandom(length) for length in (1, 63, 64, 65, 1000)}
    mine = Place.of(place / str(rank))
    for name, content in own.items():
        (mine / name).write(content)
    everything = {name: content for each in gathered(own) for name, content in each.items()}
    transfers = [
        Transfer(name=name, num_bytes=len(content), source=source, target=target)
        for name, content in everything.items()
        for source in [int(name[0])]
        for target in range(size)
        if target != source and (len(content) > 64 or target == (source + 1) % size)
    ]
    usual, exchange.BLOCK_BYTES = exchange.BLOCK_BYTES, 64
    try:
        assert deliver(transfers, mine, group=None) is None
    finally:
        exchange.BLOCK_BYTES = usual
    expected = own | {t.name: everything[t.name] for t in transfers if t.target == rank}
    found = {name: (mine / name).read() for name in mine.names()}
    return [found, expected]


@pytest.mark.parametrize("size", [2, 4])
def test_files_arrive(rank_pools: dict[int, RankPool], tmp_path: Path, size: int) -> None:
    for found, expected in rank_pools[size].run(_deliver, tmp_path):
        assert found == expected


def _save_with_little_room(place: Path, asynchronous: bool) -> str:
    """The disk of the second node is full for a while."""
    with on_nodes(TWO):
        engine = engine_of(Toy(), stage=1)
        saver = LocalSaver(disks_of(place, TWO, 1), asynchronous=asynchronous)

        def save(step: int) -> CheckpointError | None:
            lost = saver.save(engine, state_of(step), step=step, waits=True)
            if asynchronous:
                saver.settle()
                lost = saver._lost
            return lost

        assert save(1) is None
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        if dist.get_rank() == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
        lost = [save(step) for step in (2, 3, 4)]
        assert all(error is not None for error in lost)
        assert not saver.is_well
        dist.barrier()
        home = home_of(place, TWO[dist.get_rank()])
        assert [path.name for path in home.glob("step_*")] == ["step_00000001"]
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        dist.barrier()
        assert save(5) is None
        assert saver.is_well
        assert [path.name for path in home.glob("step_*")] == ["step_00000005"]
        engine.close()
        return str(lost[0])


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_ends_nothing_and_loses_nothing(
    rank_pools: dict[int, RankPool], tmp_path: Path, asynchronous: bool
) -> None:
    for message in rank_pools[2].run(_save_with_little_room, tmp_path, asynchronous):
        assert "cannot be written (File too large); the checkpoints before it are whole" in message
        assert "rank 1 of 2" in message


def _save_with_copies_that_fail(place: Path) -> tuple[bool, str]:
    """The second node can write what it owns, and nothing else."""
    with on_nodes(TWO):
        engine = engine_of(Toy(), stage=1)
        saver = LocalSaver(disks_of(place, TWO, 1))
        saver.save(engine, state_of(1), step=1, waits=True)
        assert saver.settle() is not None
        home = home_of(place, TWO[dist.get_rank()])
        create = LocalPlace.create

        def refusing(self: LocalPlace) -> Any:
            if self.name == CHUNKS and dist.get_rank() == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return create(self)

        LocalPlace.create = refusing
        try:
            saver.save(engine, state_of(2), step=2, waits=True)
            assert saver.settle() is None
        finally:
            LocalPlace.create = create
        dist.barrier()
        assert [path.name for path in home.glob("step_*")] == ["step_00000001"]
        told = str(saver._lost)
        dist.barrier()
        saver.save(engine, state_of(3), step=3, waits=True)
        is_well = saver.settle() is not None
        engine.close()
        return is_well, told


def test_a_copy_that_cannot_be_written_makes_it_no_step(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    for is_well, told in rank_pools[2].run(_save_with_copies_that_fail, tmp_path):
        assert "step_00000002 cannot be written (No space left on device)" in told
        assert "(rank 1 of 2)" in told
        assert is_well


def _save_to_a_store_that_is_gone(place: Path) -> tuple[str, str]:
    """As long as the disks have each step, and no longer."""
    stored, is_well = place / "stored", [True]
    engine = engine_of(Toy(), stage=1)
    with Saver(stored, retention=Retention(keep=1), elsewhere=lambda: is_well[0]) as saver:
        saver.save(engine, state_of(1), step=1)
        saver.finish()
        if dist.get_rank() == 0:
            stored.rename(place / "away")
            stored.touch()
        dist.barrier()
        lost = [saver.save(engine, state_of(step), step=step) for step in range(2, 7)]
        assert [error is None for error in lost] == [True, False, False, False, False]
        is_well[0] = False
        with pytest.raises(CheckpointError) as ended:
            saver.save(engine, state_of(7), step=7)
        dist.barrier()
        if dist.get_rank() == 0:
            stored.unlink()
            (place / "away").rename(stored)
        dist.barrier()
        saver.save(engine, state_of(8), step=8)
        assert saver.finish().name == "step_00000008"
    engine.close()
    return str(lost[1]), str(ended.value)


def test_a_store_that_is_gone_ends_nothing_while_the_disks_have_it(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    for told in rank_pools[2].run(_save_to_a_store_that_is_gone, tmp_path):
        for text in told:
            assert "cannot be written" in text
    found = latest(tmp_path / "stored")
    assert found is not None
    assert tensors_of(found).keys() == {
        f"{name}/{kind}"
        for name, record in Index.read(found).parameters.items()
        for kind in record.tensors
    }


def _saves(place: Path, engine: Any, notes: list[str]) -> Saves:
    keys = ("data.corpus=c", f"run_directory={place}/run")
    monitor: Any = SimpleNamespace(note=notes.append)
    return Saves(
        load(RunConfig, [str(TINY_RUN), *keys]),
        engine,
        checkpoints=Place.of(place / "stored"),
        stored=None,
        disks=disks_of(place, TWO, 1),
        state=lambda step, _: state_of(step),
        monitor=monitor,
        guard=lambda: None,
        before_commit=lambda: None,
    )


def _go_back(place: Path) -> None:
    """First where there is nothing to go back to: what the disks have is still the last step."""
    at: Any = None
    with on_nodes(TWO) as node:
        engine = engine_of(Toy(), stage=1)
        with _saves(place, engine, []) as saves:
            saves.save(1, at)
            saves.save_locally(2, at, waits=True)
            assert saves.go_back(lambda _: False) is None
            home = home_of(place, node)
            assert [path.name for path in home.glob("step_*")] == ["step_00000002"]
            found = saves.go_back(lambda _: True)
            assert found is not None
            assert found.name == "step_00000001"
            dist.barrier()
            assert not list((place / node).iterdir())
            saves.save_locally(2, at, waits=True)
            saves.finish()
            assert home_of(place, node) != home
        engine.close()


def test_what_the_disks_have_is_forgotten_once_there_is_a_step_to_go_back_to(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    rank_pools[2].run(_go_back, tmp_path)


def _save_to_a_store_that_hangs(place: Path) -> list[bool]:
    at: Any = None
    notes: list[str] = []
    usual, goes_on = saver.write_share, threading.Event()

    def hanging(*given: Any, **options: Any) -> Index:
        assert goes_on.wait(60)
        return usual(*given, **options)

    with on_nodes(TWO):
        engine = engine_of(Toy(), stage=1)
        saver.write_share = hanging
        try:
            with _saves(place, engine, notes) as saves:
                saves.save_locally(1, at, waits=True)
                first = saves.save(1, at, waits=False)
                saves.save_locally(2, at, waits=True)
                second = saves.save(2, at, waits=False)
                goes_on.set()
                third = saves.save(3, at)
        finally:
            saver.write_share = usual
        engine.close()
    assert ["step 2 is left out" in note for note in notes] == [True]
    return [first, second, third]


def test_a_step_that_the_store_lacks_does_not_pass_for_saved(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    for is_being_written in rank_pools[2].run(_save_to_a_store_that_hangs, tmp_path):
        assert is_being_written == [True, False, True]
    assert complete(tmp_path / "stored") == ["step_00000001", "step_00000003"]


def _refused(place: Path, names: list[str], copies: int, shared: bool) -> str:
    with on_nodes(names), pytest.raises(ConfigError) as caught:
        disks_of(place, names, copies, shared=shared)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "copies", "shared", "told"),
    [
        (
            TWO,
            1,
            True,
            "checkpoint.local.directory: {place}/shared is one and the same on a and b: name a "
            "disk that each node has to itself, or put $SLURMD_NODENAME into it (rank 0 of 2)",
        ),
        (
            TWO,
            2,
            False,
            "checkpoint.local.copies: 2 of each node's share, but there are 2 nodes: set it to 1, "
            "or take more nodes",
        ),
        (
            ["a", "a"],
            1,
            False,
            "checkpoint.local.copies: 1 of each node's share, but there is 1 node: set it to 0, "
            "or take more nodes",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    rank_pools: dict[int, RankPool],
    tmp_path: Path,
    names: list[str],
    copies: int,
    shared: bool,
    told: str,
) -> None:
    for message in rank_pools[2].run(_refused, tmp_path, names, copies, shared):
        assert message == told.format(place=tmp_path)
    assert not list(tmp_path.glob("*/.node-*")), "the marks are gone"


def test_a_directory_that_cannot_be_made(rank_pools: dict[int, RankPool], tmp_path: Path) -> None:
    (tmp_path / "b").write_text("a file")
    for message in rank_pools[2].run(_refused, tmp_path, TWO, 1, False):
        assert message.startswith(
            f"checkpoint.local.directory: {tmp_path}/b cannot be written on b ("
        )
        assert "name another, or change its permissions (rank 1 of 2)" in message


def _refused_id(place: Path) -> str:
    with on_nodes(TWO), pytest.raises(RunDirectoryError) as caught:
        disks_of(place, TWO, 1)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"id": "../../../../etc"}', b'{"id": 7}'])
def test_a_damaged_id_is_one_sentence(
    rank_pools: dict[int, RankPool], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "local.json").write_bytes(content)
    for message in rank_pools[2].run(_refused_id, tmp_path):
        assert message.startswith(f"{tmp_path}/local.json is damaged: ")
        assert "; remove it, and the run goes on from its other checkpoints" in message


def _begin_anew(place: Path) -> tuple[str, str]:
    with on_nodes(TWO):
        disks = disks_of(place, TWO, 1)
        before = disks.home
        assert before is not None
        disks.begin()
        assert disks.home == before
        disks.begin(anew=True)
        assert disks.home is not None
        return before.name, disks.home.name


def test_what_was_undone_is_forgotten_by_nodes_that_were_away(
    rank_pools: dict[int, RankPool], saved_nearby: tuple[Path, list[float]], tmp_path: Path
) -> None:
    place = moved(saved_nearby[0], tmp_path)
    (place / "a").rename(place / "away")
    names = rank_pools[2].run(_begin_anew, place)
    assert names[0] == names[1]
    assert names[0][0] != names[0][1]
    shutil.rmtree(place / "a")
    (place / "away").rename(place / "a")
    assert rank_pools[2].run(find_and_restore, place, TWO, 1, 1)[0][0] is None


def _homes(place: Path, label: str) -> tuple[str | None, str, list[str]]:
    """Before and after a run has begun there, and what was remarked."""
    with on_nodes(TWO):
        disks = disks_of(place, TWO, 1, label=label)
        before = disks.home
        return None if before is None else before.name, disks.begin().name, disks.remarks


def test_a_run_that_is_renamed_keeps_its_name_on_the_disks(
    rank_pools: dict[int, RankPool], saved_nearby: tuple[Path, list[float]], tmp_path: Path
) -> None:
    place, name = moved(saved_nearby[0], tmp_path), home_of(saved_nearby[0], "a").name
    for again in range(2):
        assert rank_pools[2].run(_homes, place, f"another {again}") == 2 * [(name, name, [])]
    link = tmp_path / "link"
    link.symlink_to(place)
    assert rank_pools[2].run(_homes, link, "a link") == 2 * [(name, name, [])]
    assert home_of(place, "a").exists()


def test_a_copy_of_a_run_does_not_write_where_the_other_does(
    rank_pools: dict[int, RankPool], saved_nearby: tuple[Path, list[float]], tmp_path: Path
) -> None:
    """Both may run at once; what the disks hold stays with the first."""
    place, copy = moved(saved_nearby[0], tmp_path), tmp_path / "copy"
    name = home_of(place, "a").name
    assert rank_pools[2].run(_homes, place, "toy run") == 2 * [(name, name, [])]
    shutil.copytree(place, copy)
    for before, after, remarks in rank_pools[2].run(_homes, copy, "toy run"):
        assert before is None
        assert after.startswith("toy_run-")
        assert after != name
        assert remarks == [
            f"checkpoint.local: {copy} is a copy of {place}, to which what lies on the nodes' "
            "disks belongs"
        ]
    assert (copy / "a" / name).exists(), "nothing is removed that is another's"
    for before, after, remarks in rank_pools[2].run(_homes, copy, "toy run"):
        assert before == after != name
        assert not remarks
    assert rank_pools[2].run(_homes, place, "toy run") == 2 * [(name, name, [])]
