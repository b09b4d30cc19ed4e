"""`precision: fp8` through the real command, on CPUs."""

import json
from pathlib import Path

from tests.corpora import write_corpus
from tests.train.runs import start


def test_a_run_is_emulated_and_says_so(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    settings = ("precision=fp8_with_head", "model.decoder.num_layers=3", "steps=2", "zero.stage=1")
    finished = start(corpus, tmp_path / "run", *settings).wait()
    assert finished.code == 0, finished.output
    assert finished.output.count("fp8_with_head is emulated on a CPU") == 1
    [path] = (tmp_path / "run" / "checkpoints").glob("step_*2")
    amaxes = json.loads((path / "state.json").read_text())["fp8_amaxes"]
    assert len(amaxes) == 3
    assert all(amax > 0 for pair in amaxes for amax in pair)
