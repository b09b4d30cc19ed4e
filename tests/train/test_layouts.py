"""The program itself in other layouts: same numbers, and one run continued through several."""

from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tests.train.runs import kill_at, run, start
from train.watch.metrics import Metrics

STEPS = "steps=16"

# Training amplifies what layouts round differently; at a calm rate not beyond the tolerance.
CALM = (
    *("optim.lr=1e-3", "model.decoder.num_layers=4", "batch.micro_sequences=2"),
    *("checkpoint.every_steps=4", "validation.every_steps=10"),
    "samples={prompts: ['the kernel [[maps a]] page', memory], max_new_tokens: 8}",
)

TENSOR = ("layout.tensor=2", "layout.sequence_parallel=true", "zero.stage=3")
STAGES = ("layout.pipeline=2", "zero.stage=1")
INTERLEAVED = ("layout.pipeline=2", "layout.chunks=2", "zero.stage=2", "layout.recompute=full")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    return run(corpus, tmp_path_factory.mktemp("alone") / "run", STEPS, *CALM)


def check_same(here: Metrics, there: Metrics) -> None:
    for mine, theirs in zip(here.train, there.train, strict=True):
        assert mine.step == theirs.step
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)
        assert mine.scored_tokens == theirs.scored_tokens
        assert mine.first_of_span_loss == pytest.approx(theirs.first_of_span_loss, rel=1e-5)
    for mine, theirs in zip(here.validation, there.validation, strict=True):
        assert (mine.step, mine.scored_tokens) == (theirs.step, theirs.scored_tokens)
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert here.samples == there.samples


def test_one_run_through_four_layouts(corpus: Path, alone: Metrics, tmp_path: Path) -> None:
    """Killed three times, each time continued in another layout."""
    directory = tmp_path / "run"
    for layout, step in ((TENSOR, 5), (STAGES, 9), (INTERLEAVED, 13)):
        attempt = start(corpus, directory, STEPS, *CALM, *layout, ranks=2)
        kill_at(attempt, directory, step=step)
    check_same(run(corpus, directory, STEPS, *CALM, ranks=1), alone)


def test_first_weights_from_a_checkpoint_in_any_layout(corpus: Path, tmp_path: Path) -> None:
    """`init_from` and an encoder's `init_from`, whole there and in parts here."""
    source = tmp_path / "source"
    run(corpus, source, "steps=4", *CALM)
    for origin, layout in (
        ("init_from", STAGES),
        ("model.encoders.text.encoder.init_from", TENSOR),
    ):
        shared = ("steps=3", *CALM, f"{origin}={source}")
        expected = run(corpus, tmp_path / f"alone_{origin}", *shared)
        check_same(run(corpus, tmp_path / origin, *shared, *layout, ranks=2), expected)
