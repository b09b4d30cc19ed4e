"""Which steps a run leaves out when it starts."""

from pathlib import Path

import pytest

from train.errors import RunDirectoryError
from train.storage.place import Place
from train.wrong_numbers.left_out import LeftOut, LeftOutStep


def found(file: Path, *, named: tuple[int, ...] = (), saved: LeftOut, saved_step: int) -> LeftOut:
    return LeftOut.of_run(Place.of(file), named=named, saved=saved.listed(), saved_step=saved_step)


def test_what_is_named_no_more_is_made_unless_it_was_left_out(tmp_path: Path) -> None:
    file = tmp_path / "left_out.json"
    kept = LeftOut([LeftOutStep(step=step, reason="named") for step in (3, 9, 10)])
    kept.add([7], "spike")
    kept.write(Place.of(file))
    assert dict(found(file, saved=kept, saved_step=5)) == {3: "named", 7: "spike"}
    again = found(file, named=(10,), saved=kept, saved_step=5)
    assert dict(again) == {3: "named", 7: "spike", 10: "named"}


def test_a_step_that_was_made_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="left_out: step 4 is to be left out"):
        found(tmp_path / "left_out.json", named=(4,), saved=LeftOut(), saved_step=5)
