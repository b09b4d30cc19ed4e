"""`precision: auto` on machines that are not alike, and on others when the run goes on."""

import os
from pathlib import Path

import pytest

from parallel import launch
from tests.corpora import write_corpus
from tests.train.runs import run, start, train
from train.config import RunConfig
from train.config_files import load
from train.run_directory import RunDirectory

QUICK = ("precision=auto", "checkpoint.every_steps=2", "validation.every_steps=2", "zero.stage=1")
OLD, NEW = "OLD_RANKS", "model name : New\nflags : fpu amx_bf16\n"


def on_old_machines(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """A rank whose processor multiplies no bf16, where its number is among those told."""
    is_old = environment["RANK"] in environment[OLD].split()
    launch._cpuinfo = lambda: "model name : Old\nflags : fpu avx2\n" if is_old else NEW
    os.environ.pop(OLD, None)
    train(arguments, output, environment)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def precision_of(directory: Path) -> str:
    return load(RunConfig, [str(RunDirectory(directory).config)]).precision


@pytest.mark.parametrize(
    ("old", "found", "later"),
    [pytest.param("1", "fp32", "", marks=pytest.mark.long), ("", "bf16", "0")],
)
def test_it_is_decided_once(
    old: str, found: str, later: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """For all ranks, and on whatever processors they go on; also where checkpoints alone know."""
    saved, here = f"checkpoint.directory={tmp_path / 'saved'}", tmp_path / "run"
    begun = start(
        corpus, here, *QUICK, saved, "steps=2", "optim.schedule=constant",
        ranks=2, main=on_old_machines, environment={OLD: old},
    )  # fmt: skip
    ended = begun.wait()
    assert ended.code == 0, ended.output
    assert precision_of(here) == found
    named = "fp32, for all ranks alike: processors are unlike, and bf16 is not multiplied in hardw"
    assert (named in ended.output) == bool(old)
    for place in (here, tmp_path / "other"):
        again = start(
            corpus, place, *QUICK, saved, "steps=4", "optim.schedule=constant",
            ranks=2, main=on_old_machines, environment={OLD: later},
        ).wait()  # fmt: skip
        assert again.code == 0, again.output
        assert precision_of(here) == found
        told = f"precision: {found}, as the run has it: processors are unlike"
        assert (told in again.output) == (later == "0")


def test_alone(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "run", *QUICK, "steps=2", main=on_old_machines, environment={OLD: "0"})
    assert precision_of(tmp_path / "run") == "fp32"
