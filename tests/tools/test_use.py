"""Using what was trained: generate, evaluate, dry run."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.corpora import write_corpus
from tests.train.runs import run, start
from tools import evaluate, generate
from tools.serve.__main__ import main as serve
from train.exit_status import ExitStatus
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
    # Whoever names a temperature, or so many tokens, means to draw.
    for given in (["--temperature", "1"], ["--top-k", "999"]):
        assert generate.main([directory, *prompt, *given, "--seed", "3"]) == 0
        drawn = capsys.readouterr().out
        assert generate.main([directory, *prompt, "--top-p", "1", "--seed", "3"]) == 0
        assert capsys.readouterr().out == drawn != greedy
    assert generate.main([directory, *prompt, "--top-p", "0", "--top-k", "9"]) == 2
    assert "--top-p: 0 is greedy: leave it out" in capsys.readouterr().err


def test_generation_refuses(
    trained: tuple[Path, Metrics], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(trained[0])
    assert generate.main([directory, "--prompt", "kernel " * 60]) == 2
    assert "the model reads 64" in capsys.readouterr().err
    assert generate.main([directory, "--prompt", "[[" + "kernel " * 20 + "]] x"]) == 2
    written = capsys.readouterr()
    assert "exceeds the encoder's 33 tokens" in written.err
    assert not written.out, "a refused prompt is not begun"
    assert generate.main([str(tmp_path), "--prompt", "x"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_dry_run_says_what_it_takes_and_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    shown = start(corpus, tmp_path / "run", "--dry-run").wait()
    assert shown.code == 0, shown.output
    shown_parts = ("parameters, decoder", "parameters, encoder.text", "first loss", "memory")
    for part in (*shown_parts, "as they stand"):
        assert part in shown.output
    assert not (tmp_path / "run").exists()


def test_print_shows_the_resolved_configuration(corpus: Path, tmp_path: Path) -> None:
    shown = start(corpus, tmp_path / "run", "optim.lr=3e-4", "--print").wait()
    assert shown.code == 0
    assert "lr: 0.0003" in shown.output
    assert "schedule: linear" in shown.output
    assert not (tmp_path / "run").exists()


def test_several_prompts_at_once(
    trained: tuple[Path, Metrics], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each as it is alone; chosen among texts, and found by search."""
    prompts = ["the kernel [[maps a]] page", "memory"]
    options = ["--max-new-tokens", "6"]
    alone: list[str] = []
    for prompt in prompts:
        assert generate.main([str(trained[0]), "--prompt", prompt, *options]) == 0
        alone.append(capsys.readouterr().out)
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert generate.main([str(trained[0]), *given, *options]) == 0
    assert capsys.readouterr().out == "".join(alone)
    choices = ["--choice", " bus", "--choice", " device"]
    assert generate.main([str(trained[0]), *given, *choices]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert line.endswith((" bus", " device"))
    assert generate.main([str(trained[0]), *given, *options, "--beams", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert generate.main([str(trained[0]), *given, "--beams", "3", "--stop", "x"]) == 2
    assert "--beams: goes without --top-p" in capsys.readouterr().err


def test_chat(
    trained: tuple[Path, Metrics],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What goes wrong is told, and the next line is read; an empty one goes on."""
    lines = ["", "/max-new-tokens 3", "the kernel", "", "/top-p 7", "/nothing", "a [[b", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert generate.main([str(trained[0]), "--chat"]) == 0
    chatted = capsys.readouterr().out
    assert "'7': give a number from 0 on and at most 1" in chatted
    assert chatted.count("an empty line continues") == 2
    assert "is not closed (line 1, character 3)" in chatted
    assert generate.main([str(trained[0]), "--prompt", "the kernel", "--max-new-tokens", "6"]) == 0
    whole = capsys.readouterr().out.strip().removeprefix("the kernel")
    first, second = chatted.split("› ")[3:5]
    assert first.strip("\n") + second.strip("\n") == whole


def test_server(trained: tuple[Path, Metrics]) -> None:
    """Started as people do, asked, and ended by Ctrl-C without a word."""
    command = [sys.executable, "-m", "tools.serve", str(trained[0]), "--port", "0"]
    environment = os.environ | {"SEMICAUSAL_API_KEY": "secret", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            name, url = server.stdout.readline().split(" (")[0].split(" answers at ")
            headers = {"Authorization": "Bearer secret"}
            asked = {"model": name, "prompt": "the kernel", "max_tokens": 4, "temperature": 0}
            answer = httpx.post(f"{url}/completions", json=asked, headers=headers, timeout=30)
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["text"]
            assert httpx.post(f"{url}/completions", json=asked, timeout=30).status_code == 401
            taken = ["--port", url.split(":")[2].split("/")[0]]
            assert serve([str(trained[0]), *taken]) == ExitStatus.MISTAKE
            server.send_signal(signal.SIGINT)
            out, err = server.communicate(timeout=120)
        finally:
            server.kill()
    assert server.returncode == ExitStatus.INTERRUPTED
    assert (out, err) == ("", "interrupted\n")


def test_server_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert serve(["nowhere"]) == ExitStatus.MISTAKE
    assert "tools.serve needs fastapi and uvicorn: pip install" in capsys.readouterr().err
