"""`python -m tools.report`."""

import subprocess
import sys
from pathlib import Path

from tests.train.records import run_record, train_record
from train.watch.metrics import MetricsFile

ROOT = Path(__file__).parents[2]


def report(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.report", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def test_it_writes_where_it_is_told(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(run_record())
    file.write(train_record(1))
    file.close()

    default = report(str(tmp_path))
    other = report(str(tmp_path), "--out", str(tmp_path / "other.html"))

    assert (default.returncode, default.stdout) == (0, f"{tmp_path / 'report.html'}\n")
    assert (other.returncode, other.stdout) == (0, f"{tmp_path / 'other.html'}\n")
    assert (tmp_path / "other.html").read_text() == (tmp_path / "report.html").read_text()


def test_a_wrong_directory_is_one_sentence(tmp_path: Path) -> None:
    wrong = report(str(tmp_path))
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        f"{tmp_path / 'metrics.jsonl'} does not exist: is this the directory of a run?"
    ]
