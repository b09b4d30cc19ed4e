"""Steps whose batch has no scored token."""

import re
from pathlib import Path

import pytest

from tests.corpora import write_partly_scored
from tests.train.runs import run, start
from tools import ledger
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory

SMALL = (
    *("steps=24", "batch={sequences: 2, micro_sequences: 1}", "data.pack=fit"),
    *("spans={text: {kind: stored}}", "optim.warmup_steps=2", "validation.every_steps=24"),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_partly_scored(tmp_path_factory.mktemp("corpus"))


def test_it_stops_and_names_them(corpus: Path, tmp_path: Path) -> None:
    ended = start(corpus, tmp_path / "run", *SMALL, ranks=2).wait()
    assert ended.code == ExitStatus.MISTAKE
    assert "Traceback" not in ended.output
    assert re.search(
        r"step \d+: no token of its batch is scored, which holds document (\d+) of corpus "
        r"\(train/\1\).* data\.unscored=pass_over",
        ended.output,
    ), ended.output


@pytest.mark.parametrize("zero", [1, pytest.param(3, marks=pytest.mark.long)])
def test_it_passes_over_on_request(zero: int, corpus: Path, tmp_path: Path) -> None:
    """The run that stopped goes on, and ranks that change read and step the same."""
    options = (*SMALL, f"zero.stage={zero}", "checkpoint.every_steps=24")
    passes = "data.unscored=pass_over"
    whole = run(corpus, tmp_path / "whole", *options, passes, ranks=1)
    passed = [int(re.findall(r"step (\d+): no token", note.text)[0]) for note in whole.notes]
    assert len(passed) > 2
    assert [r.step for r in whole.train] == sorted(set(range(1, 25)) - set(passed))

    directory = RunDirectory(tmp_path / "run")
    assert start(corpus, directory.path, *options, ranks=2).wait().code == ExitStatus.MISTAKE
    if passed[0] == 1:  # nothing was made that could be saved
        assert not directory.checkpoints.exists()
    resumed = run(corpus, directory.path, *options, passes, ranks=2)
    assert resumed.runs[-1].step == passed[0] - 1
    for here, there in zip(resumed.train, whole.train, strict=True):
        assert (here.step, here.scored_tokens) == (there.step, there.scored_tokens)
        assert here.loss == pytest.approx(there.loss, rel=1e-4)
    for place in (tmp_path / "whole", directory.path):
        assert ledger.main(["check", str(place)]) == 0


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ((), ExitStatus.MISTAKE, "set data.unscored"),
        (("data.unscored=pass_over",), 0, "passed over"),
    ],
)
def test_a_dry_run_judges_as_the_run(
    options: tuple[str, ...], code: int, told: str, tmp_path: Path
) -> None:
    corpus = write_partly_scored(tmp_path / "corpus", scores_any=False)
    ended = start(corpus, tmp_path / "run", *SMALL, *options, "--dry-run").wait()
    said = " ".join(ended.output.split())
    assert (ended.code, "Traceback" in said) == (code, False), said
    one = r"document (\d+) of corpus \(train/\d+\)"
    named = rf"its batch is scored, which holds {one}, {one}: {told}"
    assert re.search(named, said), said  # and no others
