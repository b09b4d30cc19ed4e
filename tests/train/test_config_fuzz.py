"""No configuration gives a traceback: seeded changes of the shipped ones."""

from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.config_fuzz import WANTED_STEPS, case_of, tried
from tests.train.runs import run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fuzz")
    write_corpus(place / "plain")
    write_corpus(place / "spans", with_spans=True)
    sizes = ("model.decoder.norm=pre", "model.encoders.text.encoder.max_tokens=66")
    run(place / "plain", place / "first", "steps=2", *sizes)
    return place


def try_all(place: Path, first: int, last: int) -> int:
    """Cases that took two steps, of some seeds."""
    found = tried(list(range(first, last)), place)
    for record in found:
        if record["fault"]:
            case = case_of(record["seed"])
            pytest.fail(f"seed {case.seed}, {case.base}, {case.changes}: {record['fault']}")
    assert len(found) == last - first
    return sum(record["steps"] >= WANTED_STEPS for record in found)


def test_sixty_configurations(place: Path) -> None:
    assert try_all(place, 0, 60) >= 12


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_thousand_configurations(place: Path) -> None:
    assert try_all(place, 60, 2000) >= 488
