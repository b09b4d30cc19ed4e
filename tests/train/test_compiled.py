"""Runs whose blocks are compiled, from the command line: what they say, keep and refuse."""

import os
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import TINY_RUN, run, start
from train import __main__ as command
from train.watch.metrics import Metrics

TOLERANCE = 1e-6
"""Of losses, relative; the compiler orders sums anew."""

COMPILED = "model.compile=blocks"


def curve(metrics: Metrics) -> list[float]:
    return [record.loss for record in (*metrics.train, *metrics.validation)]


@pytest.mark.long
def test_run_and_resume_with_a_warm_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHES", str(tmp_path / "caches"))
    corpus = write_corpus(tmp_path / "corpus")
    kept = (COMPILED, "compile_cache=$CACHES/compiled", "optim.schedule_steps=12")
    plain = run(corpus, tmp_path / "plain", "steps=12", "optim.schedule_steps=12")
    run(corpus, tmp_path / "run", "steps=6", *kept)
    compiled = run(corpus, tmp_path / "run", "steps=12", *kept)
    assert curve(compiled) == pytest.approx(curve(plain), rel=TOLERANCE)
    told = [note.text for note in compiled.notes if "compiled" in note.text]
    first = "the blocks are compiled in the first step, which may take a minute"
    assert [text for text in told if text == first] == [first, first]
    seconds = [float(text.split()[-2]) for text in told if "2 graph(s) in" in text]
    assert len(told) == 4, "nothing is compiled again"
    assert seconds[1] < seconds[0] / 2
    assert (tmp_path / "caches/compiled/inductor").is_dir()


@pytest.mark.long
def test_a_compiler_that_fails(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    compiler = tmp_path / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho no licence >&2\nexit 1\n")
    compiler.chmod(0o755)
    first = {"PATH": f"{compiler.parent}:{os.environ['PATH']}"}
    cache = f"compile_cache={tmp_path / 'compiled'}"
    ended = start(corpus, tmp_path / "run", COMPILED, cache, environment=first).wait()
    assert ended.code == 2
    last = ended.output.strip().splitlines()[-1]
    assert last.startswith("model.compile: the blocks cannot be compiled (")
    assert last.endswith("): set model.compile=none")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["compile_cache=/proc/nothing"], "compile_cache: /proc/nothing cannot be written ("),
        (["compile_cache=$FILE"], "compile_cache: $FILE cannot be written (File exists): name"),
        (["compile_cache=s3://lab/compiled"], "compile_cache: s3://lab/compiled is no directory"),
        (["compile_cache=$NOT_SET/a"], "compile_cache: $NOT_SET/a: the variable $NOT_SET is not"),
        (["model.compile=block"], "model.compile: input should be 'auto', 'none' or 'blocks'"),
        ([COMPILED], "model.compile: blocks cannot be compiled here, there is no compiler, such "),
    ],
)
def test_refused_before_anything_starts(
    overrides: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FILE", str(tmp_path / "file"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(command, "join", lambda **_: pytest.fail("a process group was started"))
    directory = tmp_path / "run"
    arguments = [str(TINY_RUN), "data.corpus=corpus", f"run_directory={directory}", *overrides]
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    assert command.main() == 2
    assert told in capsys.readouterr().err
    assert not directory.exists()
