import json
from pathlib import Path

import pytest

from tools.command import command_line, write_json
from train.errors import DataError


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
