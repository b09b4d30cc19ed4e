"""Videos that are built of animations in their real form: whole, the same again, held out right."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.tools.media.making import WORDS, keep_emoji
from tests.tools.tasks.making import keep_npm
from tools.media.__main__ import main
from tools.media.clips import animations, questions
from tools.media.clips.build import SIDE, TASKS, build_clips
from tools.packages.kept import sha256
from tools.packages.used import Packages
from train.data.document import Kind
from train.data.segments import MediaSegment
from train.data.spans.clip import measured, read_frames
from train.errors import DataError
from train.tasks.reader import TaskReader
from train.tasks.task import load_tasks

COUNT = 20
COLOURS = {word: (9 * number, 250 - 10 * number, 120) for number, word in enumerate(WORDS)}
STILL = WORDS[-1]
"""Of which there is a picture alone."""


SPLIT_OF = ("train", "train", "validation", "test")


def animation(word: str) -> bytes:
    """A square of the word's colour that grows, on nothing."""
    frames = []
    for size in range(2, 12) if word != STILL else (6,):
        frame = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
        frame.paste((*COLOURS[word], 255), (12 - size, 12 - size, 12 + size, 12 + size))
        frames.append(frame)
    content = io.BytesIO()
    frames[0].save(
        content, "WEBP", save_all=True, append_images=frames[1:], duration=42, lossless=True
    )
    return content.getvalue()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        keep_emoji(path, patched)
        files: dict[str, str | bytes] = {
            f"assets/{0x1F400 + number:x}-fe0f.webp": animation(word)
            for number, word in enumerate(WORDS)
        }
        files |= {
            "package.json": "{}",
            "README.md": "MIT",
            "assets/.gitkeep": b"",
            "assets/a.webp": b"x",
        }
        package = keep_npm(path, animations.PACKAGE, animations.VERSION, files)
        patched.setattr(animations, "SHA256", sha256(package))
        # So few are not dealt evenly by a hash.
        patched.setattr(questions, "split_of", lambda each: SPLIT_OF[WORDS.index(each.unit) % 4])
        yield path


def built(out: Path, cache: Path, *, seed: int = 0) -> dict[str, Any]:
    packages = Packages(cache=cache, report=lambda _: None)
    return build_clips(out, packages, seed=seed, clips=COUNT)


@pytest.fixture(scope="module")
def out(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "out"
    built(path, cache)
    return path


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def seen(video: bytes, count: int) -> list[str]:
    """Words whose colours are in the middle of frames."""
    found = []
    for frame in read_frames(video, count=count):
        middle = np.asarray(frame)[SIDE // 2, SIDE // 2].astype(int)
        far = {word: np.abs(middle - colour).sum() for word, colour in COLOURS.items()}
        found.append(min(far, key=lambda word: far[word]))
    return found


def test_all_that_is_built(out: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    splits = {"clip_name": questions.SPLITS, "clip_order": (*questions.SPLITS, "one_frame")}
    assert sorted(manifest["files"]) == sorted(
        [
            "train/animated.parquet",
            "train/order.parquet",
            *(f"tasks/{task}/{split}.parquet" for task in TASKS for split in splits[task]),
        ]
    )
    for name, about in manifest["files"].items():
        assert about["records"] == pq.read_metadata(out / name).num_rows > 0
    assert manifest["left_out"] == {"not animated": 2}  # the still, and who has no file
    licences = {source["name"]: source["licences"] for source in manifest["sources"]}
    assert licences == {"emojibase-data": ["MIT"], "@lobehub/fluent-emoji-anim-1": ["MIT"]}
    assert not [path for path in out.rglob(".*")]


def test_nothing_that_is_asked_in_a_test_is_trained_on(out: Path) -> None:
    names: dict[str, set[str]] = {}
    for split in questions.SPLITS:
        named = {row["name"] for row in rows(out, f"tasks/clip_name/{split}")}
        for row in rows(out, f"tasks/clip_order/{split}"):
            assert {row["one"], row["other"]} <= named
        names[split] = named
    assert {*WORDS} - {STILL} == set().union(*names.values())
    assert sum(map(len, names.values())) == len(WORDS) - 1
    told = {row["text"].partition("\n")[0] for row in rows(out, "train/animated")}
    assert told == names["train"]


def test_videos_are_the_animations(out: Path) -> None:
    for row in rows(out, "train/animated"):
        word = row["text"].partition("\n")[0]
        assert measured(row["video"])[:3] == (10, SIDE, SIDE)
        assert measured(row["video"])[3] == pytest.approx(420, abs=10)
        assert seen(row["video"], 4) == [word] * 4
        first, last = (np.asarray(list(read_frames(row["video"], count=10))[at]) for at in (0, 9))
        assert (first[2, 2] > 245).all()  # white, where nothing is drawn
        assert np.abs(last[SIDE // 8, SIDE // 8].astype(int) - 255).sum() > 60


@pytest.mark.parametrize("split", questions.SPLITS)
def test_the_order_is_as_it_is_said(out: Path, split: str) -> None:
    found = rows(out, f"tasks/clip_order/{split}")
    for row in found:
        first, second = (row["one"], row["other"])[:: -1 if row["right"] else 1]
        assert seen(row["video"], 8) == [first] * 4 + [second] * 4
        assert row["one"] != row["other"]
    # Of each pair both orders, so that nothing else tells.
    told = sorted((row["one"], row["other"], row["right"]) for row in found)
    assert sum(right for *_, right in told) * 2 == len(told)


def test_one_frame_tells_nothing(out: Path) -> None:
    """It is the same for both orders of a pair, and shows either of the two."""
    asked, control = (rows(out, f"tasks/clip_order/{name}") for name in ("test", "one_frame"))
    assert [row["right"] for row in asked] == [row["right"] for row in control]
    for row, still in zip(asked, control, strict=True):
        assert (row["one"], row["other"]) == (still["one"], still["other"])
        assert measured(still["video"])[0] == 1
        assert {*seen(still["video"], 2)} < {row["one"], row["other"]}
    for one, other in zip(control[::2], control[1::2], strict=True):
        assert one["video"] == other["video"]
        assert {one["right"], other["right"]} == {0, 1}


def test_documents_tell_the_order(out: Path) -> None:
    for row in rows(out, "train/order"):
        first, second = seen(row["video"], 2)
        assert row["text"] == f"First comes {first}\n\nThen comes {second}"


def test_tasks_ask_what_is_built(out: Path) -> None:
    tasks = {task.name: task for task in load_tasks(["clips"])}
    assert {*tasks} == {"clip_name", "clip_caption", "clip_order", "clip_order_one_frame"}
    for task in tasks.values():
        directory = out / "tasks" / Path(str(task.source.directory)).name
        reader = TaskReader(task, directory=directory)
        for template in range(len(task.templates)):
            example = next(reader.examples("test", template=template))
            video = example.context[0]
            assert isinstance(video, MediaSegment)
            assert video.kind is Kind.VIDEO
            assert video.size[1:3] == (SIDE, SIDE)


def test_the_same_again(cache: Path, out: Path, tmp_path: Path) -> None:
    built(tmp_path / "again", cache)
    built(tmp_path / "other", cache, seed=1)
    names = sorted(path.relative_to(out) for path in out.rglob("*.parquet"))
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    order = "tasks/clip_order/test.parquet"
    assert (out / order).read_bytes() != (tmp_path / "other" / order).read_bytes()


def test_a_package_that_was_altered_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(animations, "SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"it was altered, here or on its way; delete it, and"):
        built(tmp_path / "out", cache)


def test_a_file_that_is_no_animation_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"package.json": "{}", "README.md": "MIT", "assets/1f401.webp": b"RIFF"}
    package = keep_npm(tmp_path / "cache", animations.PACKAGE, animations.VERSION, files)
    monkeypatch.setattr(animations, "SHA256", sha256(package))
    packages = Packages(cache=tmp_path / "cache", report=lambda _: None)
    with pytest.raises(DataError, match=r"assets/1f401\.webp cannot be read"):
        next(animations.read_animations(packages, wanted={"1F401"}, side=8))


def test_the_command(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    asked = ["build", "clips", "--out", str(out), "--cache", str(cache), "--clips", "4"]
    assert main(asked) in (None, 0)
    assert "records in 9 files (MIT)" in capsys.readouterr().out
