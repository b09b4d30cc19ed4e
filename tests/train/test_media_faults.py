"""The table of media as strangers bring them, case by case."""

from pathlib import Path

import pytest

from tests.train.media_faults import cases

CASES = cases()
LONG = (
    "in a run",
    "8 kHz",
    "stereo",
    "variable frame",
    ": alpha",
    ": 16 bits",
    "turned",
    "10,000",
    "silence",
    ": wrongly named",
)
"""In make test-all: a run of two ranks for each; what is read has tests of its own, too."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if any(word in name for word in LONG) else [])
        for name in CASES
    ],
)
def test_a_case(name: str, tmp_path: Path) -> None:
    result = CASES[name](tmp_path)
    assert result.outcome == result.expected, result
