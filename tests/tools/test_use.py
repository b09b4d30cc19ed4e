"""Using what was trained: generate, evaluate, dry run."""

import json
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import run, start
from tools import evaluate, generate
from train.watch.metrics import Metrics


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metrics]:
    directory = tmp_path_factory.mktemp("trained") / "run"
    metrics = run(
        corpus,
        directory,
        *("steps=30", "checkpoint.every_steps=10", "validation.every_steps=10"),
        "samples={prompts: ['the kernel [[maps a]] page'], max_new_tokens: 5}",
        "watch.wandb=offline",
    )
    return directory, metrics


def test_run_leaves_what_it_promises(trained: tuple[Path, Metrics]) -> None:
    directory, metrics = trained
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["validation_loss_last"] == metrics.validation[-1].loss
    assert metrics.whole_validation is not None
    assert summary["validation_loss_whole"] == metrics.whole_validation.loss
    assert "Loss on the whole split" in (directory / "report.html").read_text()
    assert summary["validation_loss_last"] < summary["validation_loss_first"] - 0.3
    assert summary["unigram_entropy"] > 4
    assert "<svg" in (directory / "report.html").read_text()
    assert metrics.samples[-1].prompt == "the kernel [[maps a]] page"
    assert list((directory / "wandb").glob("offline-run-*/*.wandb"))


def test_evaluation_equals_the_runs_own(
    trained: tuple[Path, Metrics], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, metrics = trained
    assert metrics.whole_validation is not None
    assert metrics.validation[-1].sequences == 7 < metrics.whole_validation.sequences
    out = tmp_path / "evaluate.json"
    for recorded, given in (
        (metrics.validation[-1], ["--sequences", "7"]),
        (metrics.whole_validation, []),
    ):
        assert evaluate.main([str(directory), *given, "--out", str(out)]) == 0
        found = json.loads(out.read_text())["overall"]
        assert found["loss"] == pytest.approx(recorded.loss, rel=1e-5)
        assert found["scored_tokens"] == recorded.scored_tokens
        assert found["sequences"] == recorded.sequences
    assert "perplexity" in capsys.readouterr().out


def test_fixed_tokens_are_the_same_for_every_ratio(
    corpus: Path, trained: tuple[Path, Metrics], tmp_path: Path
) -> None:
    counts: list[dict[str, int]] = []
    run(corpus, tmp_path / "gpt", "steps=2", "spans.text.ratio=0")
    for directory in (trained[0], tmp_path / "gpt"):
        out = tmp_path / "evaluate.json"
        assert evaluate.main([str(directory), "--out", str(out)]) == 0
        found = json.loads(out.read_text())
        counts.append({name: found[name]["scored_tokens"] for name in ("overall", "fixed")})
    assert counts[0]["fixed"] == counts[1]["fixed"]
    assert counts[1]["overall"] == 16 * 64, "a GPT is scored everywhere"
    assert counts[0]["overall"] < counts[1]["overall"]


def test_generation(trained: tuple[Path, Metrics], capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(trained[0])
    prompt = ["--prompt", "the driver [[maps a page]] of", "--max-new-tokens", "6"]
    assert generate.main([directory, *prompt]) == 0
    greedy = capsys.readouterr().out
    assert greedy.startswith("the driver [[maps a page]] of")
    assert generate.main([directory, *prompt]) == 0
    assert capsys.readouterr().out == greedy
    assert generate.main([directory, *prompt, "--top-p", "0.9", "--seed", "3"]) == 0
    drawn = capsys.readouterr().out
    assert generate.main([directory, *prompt, "--top-p", "0.9", "--seed", "3"]) == 0
    assert capsys.readouterr().out == drawn


def test_generation_refuses(
    trained: tuple[Path, Metrics], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(trained[0])
    assert generate.main([directory, "--prompt", "kernel " * 60]) == 2
    assert "the model reads 64" in capsys.readouterr().err
    assert generate.main([directory, "--prompt", "[[" + "kernel " * 20 + "]] x"]) == 2
    assert "exceeds the encoder's 33 tokens" in capsys.readouterr().err
    assert generate.main([str(tmp_path), "--prompt", "x"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_dry_run_says_what_it_takes_and_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    shown = start(corpus, tmp_path / "run", "--dry-run").wait()
    assert shown.code == 0, shown.output
    for part in ("parameters, decoder", "parameters, encoder.text", "first loss", "memory"):
        assert part in shown.output
    assert not (tmp_path / "run").exists()


def test_print_shows_the_resolved_configuration(corpus: Path, tmp_path: Path) -> None:
    shown = start(corpus, tmp_path / "run", "optim.lr=3e-4", "--print").wait()
    assert shown.code == 0
    assert "lr: 0.0003" in shown.output
    assert "schedule: linear" in shown.output
    assert not (tmp_path / "run").exists()
