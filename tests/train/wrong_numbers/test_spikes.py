"""Spikes: what counts as one, and runs that go back before them."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpora import write_corpus
from tests.train.runs import kill_at, run, start
from tests.train.wrong_numbers.injected import (
    BEHIND,
    POISON,
    sample_of,
    spiking,
    spiking_and_full,
    spiking_and_unread,
)
from tools.ledger import check_run
from train.checkpoint.directory import resolve
from train.config import RunConfig
from train.config_files import load
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.watch.metrics import Metrics
from train.wrong_numbers.config import SpikesConfig
from train.wrong_numbers.spikes import Spikes, is_spike

STEPS = (
    *("steps=20", "checkpoint.every_steps=4", "validation.every_steps=10"),
    *("batch.micro_sequences=1", "optim.lr=1e-4"),
)
WATCHED = "spikes={window_steps: 8, threshold: 20, patience_steps: 2}"
SPIKES = (14, 15)
TENSOR = ("layout.tensor=2", "layout.sequence_parallel=true", "zero.stage=3")
STAGES = ("layout.pipeline=2", "zero.stage=1")


def test_a_spike_is_so_many_deviations_above_the_median() -> None:
    random = np.random.default_rng(0)
    usual = random.normal(3.0, 0.1, size=2001).tolist()
    middle = statistics.median(usual)
    assert is_spike(middle + 0.55, usual, threshold=5.0)
    assert not is_spike(middle + 0.45, usual, threshold=5.0)
    assert not is_spike(0.0, usual, threshold=5.0), "a fall is none"
    assert not is_spike(3.001, [3.0] * 9, threshold=5.0), "what never changes has a spread, too"
    assert is_spike(3.1, [3.0] * 9, threshold=5.0)


def test_fewer_in_a_row_than_patience_are_left_and_are_not_usual() -> None:
    spikes = Spikes(SpikesConfig(window_steps=4, threshold=5.0, patience_steps=3))
    losses = [9.0, 3.0, 3.1, 2.9, 9.0, 9.0, 3.0, 9.0, 9.0, 9.0]
    found = [spikes.see(n, loss=loss, gradient_norm=1.0) for n, loss in enumerate(losses, 1)]
    assert found == [None] * 9 + [range(8, 11)], "the first is seen before anything is usual"
    again = Spikes(SpikesConfig(window_steps=4, threshold=5.0, patience_steps=3))
    for n, loss in enumerate(losses[:8], 1):
        again.see(n, loss=loss, gradient_norm=1.0)
    resumed = Spikes(SpikesConfig(window_steps=4, threshold=5.0, patience_steps=3))
    resumed.seen = type(again.seen).model_validate_json(again.seen.model_dump_json(), strict=True)
    assert resumed.see(9, loss=3.0, gradient_norm=1e3) is None, "the norm is a spike as well"
    assert resumed.see(10, loss=9.0, gradient_norm=1.0) == range(8, 11)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=200)


@pytest.fixture(scope="module")
def poison(corpus: Path) -> dict[str, str]:
    samples = [sample_of(corpus, step=step, entry=entry) for step in SPIKES for entry in range(8)]
    return {POISON: json.dumps(samples)}


def recorded(metrics: Metrics) -> list[tuple[object, ...]]:
    train = [(r.step, r.loss, r.learning_rate, r.gradient_norm) for r in metrics.train]
    return [*train, *((r.step, r.loss) for r in metrics.validation)]


@pytest.mark.parametrize(
    "layout",
    [
        (),
        pytest.param(STAGES, id="stages", marks=pytest.mark.long),
        pytest.param(TENSOR, id="tensor", marks=pytest.mark.long),
    ],
)
def test_a_run_goes_back_and_leaves_them_out(
    layout: tuple[str, ...], corpus: Path, poison: dict[str, str], tmp_path: Path
) -> None:
    """With the losses of a run that was told beforehand, to the bit; also after a kill."""
    directory = RunDirectory(tmp_path / "run")
    options = (*STEPS, WATCHED, *layout)
    attempt = start(corpus, directory.path, *options, ranks=2, main=spiking, environment=poison)
    kill_at(attempt, directory.path, step=16)
    found = run(corpus, directory.path, *options, ranks=2, main=spiking, environment=poison)
    told = run(corpus, tmp_path / "told", *STEPS, *layout, "left_out=[[14, 15]]", ranks=2)
    assert recorded(found) == recorded(told)
    assert [(each.step, each.reason) for each in found.left_out] == [
        (step, "spike") for step in SPIKES
    ]
    notes = [note.text for note in found.notes if "spikes" in note.text]
    assert notes == [
        "steps 14 to 15 are spikes of loss or gradient norm: back to step 12, and they are left out"
    ]
    findings = check_run(directory.path)
    assert (findings.faults, findings.left_out, findings.steps) == ([], list(SPIKES), 18)


@pytest.mark.long
@pytest.mark.parametrize(
    ("main", "told"),
    [(spiking_and_full, "the ledger cannot"), (spiking_and_unread, "a shard is damaged")],
)
def test_what_was_made_with_them_is_never_saved(
    main: Any, told: str, corpus: Path, poison: dict[str, str], tmp_path: Path
) -> None:
    """Whatever ends the run while it is about to go back: started again, it goes back."""
    environment = poison | {BEHIND: f"{SPIKES[-1] + 1}"}
    options = (*STEPS, WATCHED)
    place = tmp_path / "run"
    ended = start(corpus, place, *options, ranks=2, main=main, environment=environment).wait()
    assert ended.code == ExitStatus.MISTAKE
    assert told in ended.output
    assert resolve(place).name == "step_00000012"
    found = run(corpus, place, *options, ranks=2, main=spiking, environment=poison)
    beforehand = run(corpus, tmp_path / "told", *STEPS, "left_out=[[14, 15]]", ranks=2)
    assert recorded(found) == recorded(beforehand)
    assert check_run(place).faults == []


def test_too_many_end_the_run(corpus: Path, poison: dict[str, str], tmp_path: Path) -> None:
    few = WATCHED.replace("}", ", most_steps: 1}")
    ended = start(corpus, tmp_path / "run", *STEPS, few, main=spiking, environment=poison).wait()
    assert ended.code == ExitStatus.MISTAKE
    assert "steps 14 to 15 are spikes of loss or gradient norm, and 0 steps were left out" in (
        ended.output
    )


def test_without_a_checkpoint_before_them_the_run_goes_on(
    corpus: Path, poison: dict[str, str], tmp_path: Path
) -> None:
    rare = (*STEPS, WATCHED, "checkpoint.every_steps=20", "steps=16", "validation.every_steps=16")
    found = run(corpus, tmp_path / "run", *rare, main=spiking, environment=poison)
    assert [record.step for record in found.train] == list(range(1, 17))
    assert any("there is no checkpoint before them" in note.text for note in found.notes)


def test_patience_must_not_outlast_the_checkpoints(tmp_path: Path) -> None:
    from tests.train.runs import TINY_RUN

    with pytest.raises(Exception, match=r"spikes.patience_steps: no checkpoint before"):
        load(RunConfig, [str(TINY_RUN), "checkpoint={every_steps: 2, keep: 2}",
                         "spikes={patience_steps: 3}"])  # fmt: skip
