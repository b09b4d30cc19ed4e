"""What lies on nodes of runs that need it no more."""

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.distributed.checkpoint.nearby import disks_of, on_nodes
from tools.ranks import RankPool
from train.storage.place import Place


def _begin(place: Path, names: list[str]) -> str:
    """A start of a run; the name of its directory on this rank's node."""
    with on_nodes(names):
        disks = disks_of(place / "disks", names, 0)
        disks._id_file = Place.of(place / "run/local.json")
        disks._id, _ = disks._read_id()
        name = disks.begin().name
        disks.say_whose()
        return name


@pytest.mark.parametrize("what", ["complete", "begun anew", "going on", "gone", "written lately"])
def test_what_a_node_kept_while_it_was_away_goes_once_nobody_needs_it(
    what: str, tmp_path: Path, rank_pools: dict[int, RankPool]
) -> None:
    """Another run that starts there sees by the other one's directory that it does not."""
    first, second, disk = tmp_path / "a", tmp_path / "b", tmp_path / "disks/n0"
    for made in (first / "run", second / "run", tmp_path / "disks"):
        made.mkdir(parents=True)
    for place in (first, second):
        (place / "disks").symlink_to(tmp_path / "disks")
    [home] = rank_pools[1].run(_begin, first, ["n0"])
    (disk / home / "step_00000001").mkdir()
    (disk / ".node-0a1b2c3d-0").touch()  # of a start that was killed
    local = first / "run/local.json"
    if what in ("complete", "written lately"):
        (first / "run/summary.json").touch()
    elif what == "begun anew":
        local.write_text(local.read_text().replace(home[-16:], "0" * 16))
    elif what == "gone":
        shutil.rmtree(first / "run")
    if what != "written lately":
        for path in (disk / home, disk / ".node-0a1b2c3d-0"):
            before = time.time() - 2 * 86_400
            os.utime(path, (before, before))
    [other] = rank_pools[1].run(_begin, second, ["n0"])
    stays = what in ("going on", "gone", "written lately")
    left = {path.name for path in disk.iterdir()}
    marks = {".node-0a1b2c3d-0"} if what == "written lately" else set()
    assert left == {other, *([home] if stays else []), *marks}
