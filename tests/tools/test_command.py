import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parallel.launcher import LaunchError
from tools.command import command_line, write_json
from train.errors import DataError
from train.exit_status import ExitStatus

ROOT = Path(__file__).parents[2]
TALKATIVE = """
import argparse, sys
from tools.command import command_line

@command_line
def main():
    argparse.ArgumentParser().parse_args()
    for number in range(20_000):
        sys.stdout.write(f"{number} ├ \\udc80\\n")

sys.exit(main())
"""


@command_line
def _tool(end: BaseException | int | None) -> int | None:
    if isinstance(end, BaseException):
        raise end
    return end


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (None, 0, ""),
        (1, 1, ""),
        (DataError("name another corpus"), 2, "name another corpus\n"),
        (LaunchError("RANK: is missing"), 2, "RANK: is missing\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_each_end_has_its_status(
    end: BaseException | int | None, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _tool(end) == code
    assert capsys.readouterr().err == told


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        _tool(ZeroDivisionError())


def test_write_json_makes_the_directory(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "found.json", {"loss": 1.5})
    assert json.loads((tmp_path / "new" / "found.json").read_text()) == {"loss": 1.5}


@pytest.mark.parametrize(
    ("output", "code", "told"),
    [
        ("| head -1", 0, ""),
        (">/dev/full", 74, "standard output cannot be written (No space left on device)"),
        (">&-", 0, ""),
        (">/dev/full 2>&1", 74, ""),
        ("--help >/dev/full", 74, "standard output cannot be written"),
        ("--help >&-", 0, ""),
        ("2>&- >&-", 0, ""),
        ("| (exec <&-; sleep 1)", 0, ""),
    ],
)
def test_output_that_ends_early(output: str, code: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALKATIVE)
    command = f"PYTHONIOENCODING=ascii {sys.executable} {tmp_path / 'talk.py'} {output}"
    ended = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert ended.returncode == code, ended.stderr
    assert told in ended.stderr
    assert ended.stderr.count("\n") == bool(told), ended.stderr


def test_the_table_of_exit_statuses() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", (ROOT / "docs/exit-status.md").read_text(), re.M)
    assert [(int(status), name) for status, name in rows] == [
        (status.value, status.name) for status in ExitStatus
    ]
