"""Episodes that are built: held out right, asked right, with a control that has nothing to tell."""

import json
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("minigrid")

from tools.media.__main__ import main
from tools.media.episodes.build import LICENCE
from tools.media.episodes.questions import PLAYS
from train.data.document import Kind
from train.data.segments import MediaSegment
from train.data.spans.clip import measured
from train.tasks.reader import TaskReader
from train.tasks.task import load_tasks

SPLITS = ("train", "validation", "test", "rooms", "one_frame")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("episodes") / "out"
    assert main(["build", "episodes", "--out", str(path), "--episodes", "4"]) in (None, 0)
    return path


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def test_all_that_is_built(out: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(
        [
            *(f"train/{task}.parquet" for task in PLAYS),
            *(f"tasks/{task}/{split}.parquet" for task in PLAYS for split in SPLITS),
        ]
    )
    [source] = manifest["sources"]
    assert (source["name"], source["licences"]) == ("minigrid", [LICENCE])
    assert metadata.metadata("minigrid")["License"] == "MIT License"
    assert "Apache License" in (out / "licences/minigrid.txt").read_text()
    assert not [path for path in out.rglob(".*")]


@pytest.mark.parametrize("task", [*PLAYS])
def test_worlds_of_tests_are_their_own_and_rooms_are_more(out: Path, task: str) -> None:
    clips: set[bytes] = set()
    for split in SPLITS[:4]:
        found = rows(out, f"tasks/{task}/{split}")
        assert {row["rooms"] for row in found} <= (
            {"2 x 2"} if split == "rooms" else {"1 x 2", "2 x 1"}
        )
        here = {row["video"] for row in found}
        assert len(here) == len(found)
        assert not here & clips
        clips |= here


@pytest.mark.parametrize("task", [*PLAYS])
def test_one_frame_is_the_same_for_all_answers(out: Path, task: str) -> None:
    asked, control = (rows(out, f"tasks/{task}/{split}") for split in ("test", "one_frame"))
    answer = "number" if task == "episode_doors" else "right"
    by_world: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row, still in zip(asked, control, strict=True):
        assert {**row, "video": None} == {**still, "video": None}
        assert measured(still["video"])[0] == 1
        by_world[still["group"]].append(still)
    for world in by_world.values():
        assert len({row["video"] for row in world}) == 1
        assert len({row[answer] for row in world}) == len(world) > 1


def test_documents_tell_what_tasks_ask(out: Path) -> None:
    for task in PLAYS:
        told = rows(out, f"train/{task}")
        found = rows(out, f"tasks/{task}/train")
        assert [row["text"] for row in told] == [f" {row['told']}" for row in found]
    for row in rows(out, "tasks/episode_before/train"):
        lines = row["told"].replace("First picked up", "Then").split("\n\n")
        names = [line.removeprefix("Then: ") for line in lines]
        assert names.index(row["choices"][row["right"]]) + 1 == names.index(row["thing"])
        assert row["thing"] not in row["choices"]
        assert len({*row["choices"]}) == 3


def test_tasks_ask_what_is_built(out: Path) -> None:
    tasks = {task.name: task for task in load_tasks(["episodes"])}
    assert len(tasks) == 10
    for task in tasks.values():
        reader = TaskReader(task, directory=out / "tasks" / Path(task.source.directory).name)
        for template in range(len(task.templates)):
            example = next(reader.examples("test", template=template))
            clip = example.context[0]
            assert isinstance(clip, MediaSegment)
            assert clip.kind is Kind.VIDEO


def test_another_release_of_minigrid_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["build", "episodes", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("tools.media.episodes.build.VERSION", "1.0.0")
    assert main(asked) == 2
    assert "and 1.0.0 is wanted: install the extra media: pip" in capsys.readouterr().err

    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert main(asked) == 2
    assert "minigrid 1.0.0 is not installed: install the extra media" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
