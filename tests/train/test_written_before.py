"""Runs and corpora written by an earlier version go on being of use.

`fixtures/run_7cd86b9` holds what commit 7cd86b9 wrote: a run that was killed after step 6 with its
checkpoint of step 4 (`pretrained`, on a corpus of sequences), and a LoRA run that began from it and
was killed likewise (`finetuned`, on a corpus of documents).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.runs import run, start
from tools import evaluate, generate, merge
from tools.checkpoint import main as checkpoint
from train.claim import refuse_other_run
from train.config import RunConfig
from train.config_files import from_stored
from train.config_files import merge as merge_trees
from train.errors import RunDirectoryError
from train.storage.place import Place
from train.watch.metrics import Metrics, read_metrics

REPOSITORY = Path(__file__).parents[2]
# As the stored configurations name it, which runs compare.
OLD = Path("tests/fixtures/run_7cd86b9")
SEQUENCES, DOCUMENTS = OLD / "sequences", OLD / "documents"

MODEL = (
    *("model.decoder.width=16", "model.decoder.heads=2", "model.decoder.num_layers=1"),
    *("model.decoder.feed_forward=32", "model.encoders.text.encoder.width=8"),
    *("model.encoders.text.encoder.num_layers=1", "model.encoders.text.encoder.feed_forward=16"),
)
FINETUNED = (
    f"init_from={OLD}/pretrained",
    "lora={rank: 2}",
    "spans={text: {kind: stored}}",
    "data.pack=fit",
)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def losses(metrics: Metrics) -> list[tuple[int, float, int]]:
    return [(r.step, r.loss, r.scored_tokens) for r in metrics.train]


def recorded(name: str) -> list[tuple[int, Any, int]]:
    expected = losses(read_metrics(OLD / name / "metrics.jsonl"))
    assert [step for step, _, _ in expected] == [1, 2, 3, 4, 5, 6]
    # Processors round sums differently.
    return [(step, pytest.approx(loss, rel=1e-5), scored) for step, loss, scored in expected]


def test_a_directory_that_was_given_as_a_url_is_read() -> None:
    """Checkpoints of such a run went to the store; no new run may begin so."""
    stored = yaml.safe_load((OLD / "pretrained" / "config.yaml").read_text())
    read = from_stored(RunConfig, stored | {"run_directory": "s3://bucket/run"}, place="here")
    assert read.run_directory == "s3://bucket/run"


@pytest.mark.parametrize("name", ["pretrained", "finetuned"])
def test_generates(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ["--prompt", "the driver [[maps a page]] of", "--max-new-tokens", "4"]
    assert generate.main([str(OLD / name), *prompt]) == 0
    assert capsys.readouterr().out.startswith("the driver [[maps a page]] of")


@pytest.mark.parametrize("name", ["pretrained", "finetuned"])
def test_is_whole(name: str) -> None:
    assert checkpoint(["verify", str(OLD / name)]) == 0
    assert checkpoint(["inspect", str(OLD / name)]) == 0


def test_evaluates(tmp_path: Path) -> None:
    out = tmp_path / "evaluate.json"
    assert evaluate.main([str(OLD / "finetuned"), "--out", str(out)]) == 0
    found = json.loads(out.read_text())["overall"]
    validation = {r.step: r for r in read_metrics(OLD / "finetuned" / "metrics.jsonl").validation}
    # Of step 4, between the two that the run looked at.
    assert found["loss"] == pytest.approx(validation[3].loss, abs=0.05)
    assert found["scored_tokens"] == validation[3].scored_tokens


def test_merges(tmp_path: Path) -> None:
    assert merge.main([str(OLD / "finetuned"), str(tmp_path / "merged")]) == 0
    assert generate.main([str(tmp_path / "merged"), "--prompt", "the"]) == 0


def test_goes_on(tmp_path: Path) -> None:
    """From its checkpoint, on first weights of a run that is as old: the steps that were lost."""
    shutil.copytree(OLD / "finetuned", tmp_path / "run")
    metrics = run(
        DOCUMENTS,
        tmp_path / "run",
        *MODEL,
        *FINETUNED,
        "name=finetuned",
        "checkpoint.every_steps=4",
    )
    assert metrics.runs[-1].step == 4
    assert losses(metrics) == recorded("finetuned")


def test_a_run_from_before_packing_says_what_to_do() -> None:
    stored = yaml.safe_load((OLD / "pretrained" / "config.yaml").read_text())
    owner = from_stored(RunConfig, stored, place=str(OLD))
    config = from_stored(
        RunConfig, merge_trees(stored, {"data": {"pack": "stream"}}), place=str(OLD)
    )
    with pytest.raises(RunDirectoryError, match=r"before data.pack.*data.pack=fit; .*init_from=s3"):
        refuse_other_run(config, owner, Place.parse("s3://bucket/run"))


def test_serves_init_from(tmp_path: Path) -> None:
    metrics = run(DOCUMENTS, tmp_path / "run", *MODEL, *FINETUNED)
    assert losses(metrics) == recorded("finetuned")


def test_a_corpus_of_sequences_is_refused(tmp_path: Path) -> None:
    shutil.copytree(OLD / "pretrained", tmp_path / "run")
    ended = start(SEQUENCES, tmp_path / "run", *MODEL, "data.pack=fit").wait()
    assert ended.code == 2
    assert "holds sequences of one length" in ended.output
    assert "`python -m tools.corpus build`" in ended.output
