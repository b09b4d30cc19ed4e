"""What is built of packages in their real form: whole, the same again, and never over another."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.corpora import write_tokenizer
from tests.tools.corpus.making import build as build_corpus
from tests.tools.corpus.making import documents, files_of
from tests.tools.media.making import ROUND_NAME, WORDS, drawing, keep_emoji
from tests.tools.tasks.making import keep, packages
from tools.media import rendering
from tools.media.__main__ import main
from tools.media.build import TASKS, build_images
from tools.packages.used import Packages
from train.data.document import Kind
from train.errors import DataError, InUseError
from train.storage.host_lock import try_lock

TRAINED = ("google", "fluent", "fluent_flat")
HELD_OUT = ("twitter", "openmoji")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return keep_emoji(tmp_path / "cache", monkeypatch)


def built(out: Path, cache: Path, *, seed: int = 0, report: Any = lambda _: None) -> dict[str, Any]:
    given = Packages(cache=cache, report=report)
    return build_images(out, given, seed=seed, scenes=20, has_clipart=False)


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def test_all_that_is_built(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = built(out, cache)
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert sorted(manifest["files"]) == sorted(
        [
            *(f"train/emoji_{vendor}.parquet" for vendor in TRAINED),
            # The one emoji with tones is for validation as fluent_flat has it.
            *(f"train/emoji_{vendor}_tones.parquet" for vendor in TRAINED[:2]),
            *(f"held_out/emoji_{vendor}.parquet" for vendor in HELD_OUT),
            "train/scenes.parquet",
            *(
                f"tasks/{task}/{split}.parquet"
                for task in TASKS
                for split in ("train", "validation", *HELD_OUT)
            ),
        ]
    )  # fmt: skip
    for name, about in manifest["files"].items():
        assert about["records"] == pq.read_metadata(out / name).num_rows > 0
    assert not [path for path in out.rglob(".*")]
    assert manifest["left_out"] == {"not drawn by fluent": 1}
    assert manifest["rendered_by"] == "resvg-py 0.5.0"


def test_each_source_is_told_with_its_licence(cache: Path, tmp_path: Path) -> None:
    manifest = built(tmp_path / "out", cache)
    licences = {source["name"]: source["licences"] for source in manifest["sources"]}
    assert licences == {
        "emojibase-data": ["MIT"],
        "emoji-datasource-google": ["Apache-2.0"],
        "@lobehub/fluent-emoji-3d": ["MIT"],
        "@lobehub/fluent-emoji-flat": ["MIT"],
        "emoji-datasource-twitter": ["CC-BY-4.0"],
        "openmoji": ["CC-BY-SA-4.0"],
    }
    for source in manifest["sources"]:
        assert len(source["sha256"]) == 64
        name = source["name"].replace("/", "_")
        assert (tmp_path / f"out/licences/{name}.txt").read_text()
    assert "Terms of openmoji." in (tmp_path / "out/licences/openmoji.txt").read_text()
    task = json.loads((tmp_path / "out/tasks/scene_count/manifest.json").read_text())
    assert task["sources"] == manifest["sources"]


def test_nothing_that_is_held_out_is_trained_on(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    built(out, cache)
    trained = {
        row["image"] for path in (out / "train").iterdir() for row in rows(path.parent, path.stem)
    }
    trained |= {row["picture"] for task in TASKS for row in rows(out, f"tasks/{task}/train")}
    others = [row["image"] for vendor in HELD_OUT for row in rows(out, f"held_out/emoji_{vendor}")]
    for task in TASKS:
        for split in ("validation", *HELD_OUT):
            others += [row["picture"] for row in rows(out, f"tasks/{task}/{split}")]
    assert trained.isdisjoint(others)
    for split, vendors in {"train": TRAINED, "twitter": ("twitter",)}.items():
        for task in TASKS:
            assert {row["vendor"] for row in rows(out, f"tasks/{task}/{split}")} == {*vendors}
    # What is asked of the held-out vendors is what the others were drawn for.
    assert {row["name"] for row in rows(out, "tasks/picture_name/twitter")} == {*WORDS, ROUND_NAME}


def test_the_first_rows_of_a_task_are_like_all(cache: Path, tmp_path: Path) -> None:
    """`--rows N` asks the first N."""
    built(tmp_path / "out", cache)
    asked = [row["name"] for row in rows(tmp_path / "out", "tasks/picture_name/twitter")]
    assert sorted(asked) == sorted([*WORDS, ROUND_NAME])
    assert asked != [*WORDS, ROUND_NAME]
    vendors = [row["vendor"] for row in rows(tmp_path / "out", "tasks/scene_count/train")]
    assert {*vendors[:8]} == {*vendors[8:]} == {*TRAINED}


def test_files_come_as_they_are_and_svg_as_png(cache: Path, tmp_path: Path) -> None:
    built(tmp_path / "out", cache)
    found = {row["id"]: row for row in rows(tmp_path / "out", "held_out/emoji_twitter")}
    assert found["twitter/1F402"]["image"] == drawing(2, 3)
    assert found["twitter/1F402"]["text"] == " cat\n\ncat tag, animal"
    assert found["twitter/1F640"]["text"] == f" {ROUND_NAME}"
    assert "twitter/1F640-1F3FB" not in found
    [first, *_] = rows(tmp_path / "out", "held_out/emoji_openmoji")
    assert first["image"].startswith(b"\x89PNG")


def test_the_same_again_and_other_scenes_by_another_seed(cache: Path, tmp_path: Path) -> None:
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        built(tmp_path / out, cache, seed=seed)
    first, again, other = (files_of(tmp_path / out) for out in "abc")
    assert first == again
    assert first["train/emoji_google.parquet"] == other["train/emoji_google.parquet"]
    for name in ("train/scenes", "tasks/picture_name/twitter", "tasks/scene_place/train"):
        assert first[f"{name}.parquet"] != other[f"{name}.parquet"]


def test_what_was_stopped_goes_on(cache: Path, tmp_path: Path) -> None:
    built(tmp_path / "whole", cache)
    out = tmp_path / "out"

    def stop(told: str) -> None:
        if told.startswith("tasks/picture_name/twitter"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(out, cache, report=stop)
    assert not (out / "manifest.json").exists()
    (out / "tasks/picture_name/.openmoji.parquet.part").write_bytes(b"cut off")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    told: list[str] = []
    built(out, cache, report=told.append)
    assert sum(line.endswith(": there already") for line in told) == len(before) > 5
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files_of(out) == files_of(tmp_path / "whole")


def test_what_is_whole_is_left_alone(cache: Path, tmp_path: Path) -> None:
    first = built(tmp_path / "out", cache)
    before = files_of(tmp_path / "out")
    assert (
        build_images(
            tmp_path / "out", packages(tmp_path / "none"), seed=0, scenes=20, has_clipart=False
        )
        == first
    )
    assert files_of(tmp_path / "out") == before
    with pytest.raises(
        DataError, match="out was built with seed 0, and 1 is asked now: name another"
    ):
        built(tmp_path / "out", cache, seed=1)


def test_nothing_of_others_is_overwritten(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(DataError, match="out holds something else: name another directory"):
        built(tmp_path / "out", cache)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"file/manifest.json is damaged .*Not a directory"):
        built(tmp_path / "file", cache)


def test_two_at_once(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    held = try_lock(tmp_path / "out/.lock")
    assert held is not None
    with pytest.raises(InUseError, match="is being built by another process: wait"):
        built(tmp_path / "out", cache)
    os.close(held)
    assert built(tmp_path / "out", cache)["files"]


@pytest.mark.parametrize("damaged", ["manifest.json", "building.json"])
def test_a_damaged_record_is_named(cache: Path, tmp_path: Path, damaged: str) -> None:
    built(tmp_path / "out", cache)
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out" / damaged).write_text('{"files": [')
    with pytest.raises(DataError, match=f"{damaged} is damaged"):
        built(tmp_path / "out", cache)


def test_a_truncated_archive_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = next(cache.rglob("emoji-datasource-twitter-*.tgz"))
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    # Its note is no longer true, so it would be downloaded again: npm is not to be had.
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is missing"):
        built(tmp_path / "out", cache)


def test_another_content_than_the_known_is_refused(cache: Path, tmp_path: Path) -> None:
    archive = next(cache.rglob("emoji-datasource-twitter-*.tgz"))
    keep(archive, next(cache.rglob("emoji-datasource-google-*.tgz")).read_bytes())
    with pytest.raises(
        DataError, match=r"twitter-16.0.0.tgz: its SHA-256 is .*altered.*delete it, and build again"
    ):
        built(tmp_path / "out", cache)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_without_what_renders(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_PACKAGE", "semicausal_none")
    with pytest.raises(DataError, match=r"resvg-py is missing.*pip install .*\.\[media\]"):
        built(tmp_path / "out", cache)
    assert not (tmp_path / "out").exists()


FULL = """
import resource, sys
from pathlib import Path
import pytest
from tests.tools.media.making import keep_emoji
from tools.media.__main__ import main
with pytest.MonkeyPatch.context() as patch:
    keep_emoji(Path(sys.argv[1]), patch)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    options = ["--cache", sys.argv[1], "--out", sys.argv[2], "--no-clip-art"]
    sys.exit(main(["build", "images", *options]))
"""


def test_a_full_disk_is_told_and_what_is_finished_is_kept(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "cache"), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert "out: cannot be written (File too large); what is finished is kept: make room" in last
    assert (tmp_path / "out/train/emoji_google.parquet").exists()
    assert not (tmp_path / "out/manifest.json").exists()


def test_the_command(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--cache", str(cache), "--out", str(out), "--scenes", "2", "--no-clip-art"]
    assert main(["build", "images", *options]) == 0
    told = capsys.readouterr()
    assert f"{out}: " in told.out
    assert "(Apache-2.0, CC-BY-4.0, CC-BY-SA-4.0, MIT)" in told.out
    assert "train/scenes.parquet: 6 records" in told.err


def test_a_corpus_is_built_of_it(cache: Path, tmp_path: Path) -> None:
    built(tmp_path / "out", cache)
    write_tokenizer(tmp_path / "tokenizer.json")
    corpus = build_corpus(
        tmp_path / "out/train", out=tmp_path / "corpus", tokenizer=tmp_path / "tokenizer.json"
    )
    found = documents(corpus)
    given = sum(len(rows(path.parent, path.stem)) for path in (tmp_path / "out/train").iterdir())
    assert len(found) == given
    for document in found.values():
        assert [*document.segments[:, 0]] == [Kind.IMAGE, Kind.TEXT]


@pytest.mark.network
@pytest.mark.long
def test_the_real_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "images", "--out", str(tmp_path), "--scenes", "20"]) == 0
    counts = {
        name: about["records"]
        for name, about in json.loads((tmp_path / "manifest.json").read_text())["files"].items()
    }
    assert counts["held_out/emoji_twitter.parquet"] == 1_906
    assert counts["held_out/emoji_openmoji.parquet"] == 1_914
    assert counts["train/emoji_google.parquet"] > 1_600
    assert counts["train/emoji_fluent.parquet"] > 1_600
    assert counts["train/emoji_fluent_flat.parquet"] > 1_600
    assert counts["train/openclipart.parquet"] > 2_000
