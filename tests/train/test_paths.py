"""Every path of the configuration and of the tools stands for the same as in a shell."""

import os
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import start
from tools import evaluate, generate, ledger, report
from train.config import RunConfig
from train.config_files import load


def test_home_and_variables_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    write_corpus(home / "corpus")
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SCRATCH", str(home / "scratch"))

    def run(directory: str, *overrides: str) -> None:
        quick = ("steps=2", "checkpoint.every_steps=1", f"run_directory={directory}", *overrides)
        ended = start("~/corpus", Path("unused"), *quick).wait()
        assert ended.code == 0, ended.output[-3000:]

    run("~/first", "checkpoint.directory=$SCRATCH/kept")
    run(
        "${SCRATCH}/second",
        "init_from=~/scratch/kept",
        "model.encoders.text.encoder.init_from=$SCRATCH/kept",
        "data.corpus=null",
        "data.sources={a: {corpus: $HOME/corpus}}",
        "zero={stage: 3, offload_directory: ~/offload}",
        "checkpoint.asynchronous=false",
        "storage.cache=~/cache",
    )
    assert report.main(["~/first"]) == 0
    assert ledger.main(["check", "$SCRATCH/second", "--out", "~/out/ledger.json"]) == 0
    assert evaluate.main(["$SCRATCH/kept", "--sequences=1", "--out=~/out/evaluate.json"]) == 0
    tokenizer = ["--tokenizer", "~/first/tokenizer.json", "--max-new-tokens=1"]
    assert generate.main(["$SCRATCH/kept", "--prompt=a", *tokenizer]) == 0
    assert not os.listdir(here), "nothing lies where a shell would not look"
    assert (home / "out/ledger.json").is_file()
    # What is stored is what was written: it means the same to another user, on another host.
    stored = load(RunConfig, [str(home / "scratch/second/config.yaml")])
    assert stored.init_from == "~/scratch/kept"
    capsys.readouterr()


@pytest.mark.parametrize("path", ["$NOT_SET_ANYWHERE/x", "~nobody-here/x", "", "s3://lab/x"])
def test_arguments_that_name_nothing(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([path]) == 2
    assert "argument run: " in capsys.readouterr().err
