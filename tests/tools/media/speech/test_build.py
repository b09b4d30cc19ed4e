"""Speech that is built of packages in their real form: whole, the same again, held out right."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.corpora import write_tokenizer
from tests.tools.corpus.making import build as build_corpus
from tests.tools.corpus.making import documents, files_of
from tests.tools.media.speech.making import keep_speech
from tests.tools.tasks.making import keep
from tests.train.tasks.making import texts
from tools.media.__main__ import main
from tools.media.speech.build import HELD_OUT_SPLITS, TASKS, build_speech
from tools.media.speech.programs import FLITE_VOICES, HELD_OUT_TIMBRES
from tools.media.speech.texts import WORDS, in_words, is_held_out
from tools.packages.used import Packages
from train.data.document import Kind
from train.data.segments import MediaSegment
from train.errors import DataError
from train.tasks.reader import TaskReader
from train.tasks.task import load_tasks

SPLITS = ("train", "validation", *HELD_OUT_SPLITS)
COUNT = 20


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep_speech(tmp_path_factory.mktemp("cache"))


def built(out: Path, cache: Path, *, seed: int = 0, report: Any = lambda _: None) -> dict[str, Any]:
    packages = Packages(cache=cache, report=report)
    return build_speech(out, packages, seed=seed, num_utterances=COUNT, has_synopses=True)


@pytest.fixture(scope="module")
def out(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speech") / "out"
    built(path, cache)
    return path


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def test_all_that_is_built(out: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(
        [
            *(f"tasks/{task}/{split}.parquet" for task in TASKS for split in SPLITS),
            *(f"train/{task}.parquet" for task in TASKS),
        ]
    )
    for name, about in manifest["files"].items():
        assert about["records"] == pq.read_metadata(out / name).num_rows > 0
    assert manifest["left_out"] == {"prompts that are no words": 2}
    licences = {source["name"]: source["licences"] for source in manifest["sources"]}
    assert licences["espeak-ng"] == ["GPL-3.0-or-later"]
    assert licences["flite"] == ["BSD-3-Clause"]
    assert licences["asterisk-core-sounds-en-g722"] == ["CC-BY-SA-3.0"]
    assert len(licences) == 10
    assert (out / "licences/flite.txt").read_text() == "Terms of flite."
    assert not [path for path in out.rglob(".*")]


def test_nobody_who_is_held_out_is_trained_on(out: Path) -> None:
    """Nor is a text of theirs, but for words and short numbers, of which there are few."""
    held_out = {*HELD_OUT_TIMBRES}
    heard: dict[str, set[str]] = {split: set() for split in SPLITS}
    for task in TASKS:
        for split in SPLITS:
            found = rows(out, f"tasks/{task}/{split}")
            heard[split] |= {row["sound"] for row in found}
            engines = {row["engine"] for row in found}
            timbres = {row["voice"].partition("+")[2] for row in found}
            if split in ("train", "validation"):
                assert engines == {"espeak-ng"}
                assert timbres <= {"adam", "ed"}
            elif split == "voices":
                assert engines == {"espeak-ng"}
                assert timbres <= held_out
            elif split == "flite":
                assert engines == {"flite"}
                assert {row["voice"] for row in found} <= {*FLITE_VOICES}
            else:
                assert {(row["engine"], row["voice"]) for row in found} == {
                    ("people", "Allison Smith")
                }
    documents = [row for task in TASKS for row in rows(out, f"train/{task}")]
    assert {row["audio"] for row in documents} == heard["train"]
    for split in SPLITS[1:]:
        assert heard["train"].isdisjoint(heard[split])
    trained = {row["text"] for row in rows(out, "tasks/speech_to_text/train")}
    assert not any(map(is_held_out, trained - {in_words(number) for number in range(100)}))
    for split in ("validation", "voices", "flite"):
        told = {row["text"] for row in rows(out, f"tasks/speech_to_text/{split}")}
        assert trained & told <= {in_words(number) for number in range(100)}


def test_sounds_are_alike(out: Path) -> None:
    for split in SPLITS:
        for row in rows(out, f"tasks/spoken_word/{split}"):
            samples, rate = soundfile.read(io.BytesIO(row["sound"]))
            assert rate == 16_000
            assert samples.ndim == 1
            assert np.abs(samples).max() == pytest.approx(0.5, abs=1e-3)
            assert 1600 <= len(samples) <= 3200 + 2 * 800 + 100


def test_choices_have_the_right_one_once(out: Path) -> None:
    for split in SPLITS:
        for row in rows(out, f"tasks/spoken_word/{split}"):
            assert len({*row["choices"]}) == len(row["choices"]) == 20
            assert row["choices"][row["right"]] == row["text"]
            assert {*row["choices"]} <= {*WORDS}
        for row in rows(out, f"tasks/spoken_number/{split}"):
            assert len({*row["choices"]}) == len(row["choices"]) == 10
            assert row["choices"][row["right"]] == row["number"]
            assert in_words(int(row["number"])) == row["text"]
            for other in {*row["choices"]} - {row["number"]}:
                assert len(other) == len(row["number"])
                assert sum(a != b for a, b in zip(other, row["number"], strict=True)) == 1


def test_tasks_ask_what_is_built(out: Path) -> None:
    """Documents to train on are a task's first template and its answer, to the letter."""
    told = {task: {row["text"] for row in rows(out, f"train/{task}")} for task in TASKS}
    tasks = load_tasks(["speech"])
    assert len(tasks) == len(TASKS) * len(HELD_OUT_SPLITS)
    for task in tasks:
        name, _, split = task.name.rpartition("_")
        assert task.source.splits["test"] == split
        reader = TaskReader(task, directory=out / f"tasks/{name}")
        examples = [*reader.examples("test")]
        assert len(examples) == len(rows(out, f"tasks/{name}/{split}"))
        for template in range(len(task.templates)):
            example = next(reader.examples("train", template=template))
            sound, *others = example.context
            assert isinstance(sound, MediaSegment)
            assert sound.kind is Kind.AUDIO
            if template == 0:
                text = "".join(part.text for part in texts(others))
                assert f"{text} {example.answers[0]}" in told[name]


def test_the_same_again_and_other_speech_by_another_seed(
    out: Path, cache: Path, tmp_path: Path
) -> None:
    built(tmp_path / "again", cache)
    assert files_of(tmp_path / "again") == files_of(out)
    built(tmp_path / "other", cache, seed=1)
    assert (
        files_of(tmp_path / "other")["tasks/spoken_word/train.parquet"]
        != files_of(out)["tasks/spoken_word/train.parquet"]
    )


def test_what_was_stopped_goes_on(out: Path, cache: Path, tmp_path: Path) -> None:
    def stop(told: str) -> None:
        if told.startswith("tasks/spoken_number/voices"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "out", cache, report=stop)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    told: list[str] = []
    built(tmp_path / "out", cache, report=told.append)
    assert sum(line.endswith(": there already") for line in told) == len(before) == 8
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files_of(tmp_path / "out") == files_of(out)


def test_a_program_that_fails_is_named(cache: Path, tmp_path: Path) -> None:
    own = keep_speech(tmp_path / "cache", prompts={"digits/1": "one"})
    [package] = (own / "flite").glob("*.deb")
    keep(package, next((own / "espeak-ng").glob("*.deb")).read_bytes())
    with pytest.raises(DataError, match=r"flite does not run here .*No such file.*delete its pack"):
        built(tmp_path / "out", own)


def test_the_command(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cache", str(cache), "--out", str(tmp_path / "out"), "--utterances", "2"]
    assert main(["build", "speech", *options, "--no-synopses"]) == 0
    told = capsys.readouterr()
    assert "records in 18 files (Apache-2.0, BSD-3-Clause, CC-BY-SA-3.0, GPL-3.0" in told.out
    assert "tasks/spoken_word/train.parquet: 2 records" in told.err


def test_a_corpus_is_built_of_it(out: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    corpus = build_corpus(
        out / "train", out=tmp_path / "corpus", tokenizer=tmp_path / "tokenizer.json"
    )
    found = documents(corpus)
    assert len(found) == len(TASKS) * COUNT
    for document in found.values():
        assert [*document.segments[:, 0]] == [Kind.AUDIO, Kind.TEXT]


@pytest.mark.network
@pytest.mark.long
def test_the_real_speech(tmp_path: Path) -> None:
    assert main(["build", "speech", "--out", str(tmp_path), "--utterances", "100"]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert len(manifest["held_out"]["voices"]) == 96
    counts = {name: about["records"] for name, about in manifest["files"].items()}
    assert counts["tasks/speech_to_text/people.parquet"] == 533
    assert counts["tasks/spoken_word/people.parquet"] == 69
    assert len({row["voice"] for row in rows(tmp_path, "tasks/spoken_word/train")}) > 60
