"""`python -m tools.chaos`: a run that meets one fault of each kind."""

import json
from pathlib import Path

import pytest

from tools.chaos.__main__ import main
from tools.chaos.drawing import Kind
from train.exit_status import ExitStatus


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_one_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chaos.json"
    status = main(["--minutes=12", "--every=10", "--seed=2", f"--out={out}"])
    said = capsys.readouterr()
    assert status == ExitStatus.COMPLETE, said.out + said.err
    found = json.loads(out.read_text())
    assert set(found["faults"]) == set(Kind)
    assert found["verdicts_right"] == len(found["each"])
    assert found["verdicts_wrong_but_sure"] == 0
    assert (found["losses_differ"], found["weights_differ"]) == (None, None)
    assert found["ledger_faults"] == []
    assert found["steps_lost"] > 0
    assert found["split_over_wall"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "chaos kills nodes"),
        (["--minutes=0"], "give a number above 0"),
        (["--warm", "--cold"], "not allowed with argument"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert main(arguments) == ExitStatus.MISTAKE
    assert message in capsys.readouterr().err


def test_a_directory_that_is_there_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main([f"--directory={tmp_path}"]) == ExitStatus.MISTAKE
    assert "name a directory that is to be made" in capsys.readouterr().err
