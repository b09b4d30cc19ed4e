"""What a comparison consists of, before anything runs."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.train.runs import TINY_RUN
from tools.bench import flops
from tools.comparison import compute
from tools.comparison.__main__ import PLAN, main
from tools.comparison.jobs import Jobs
from tools.comparison.plan import Plan
from train.build import build_collator
from train.config import RunConfig
from train.config_files import load
from train.data.sample import Sample
from train.data.tokens import SpecialTokens


def plan(*overrides: str) -> Plan:
    return load(Plan, [PLAN, *overrides])


def jobs(directory: Path, *overrides: str, hours: float = 1.5) -> Jobs:
    given = plan(*overrides)
    return Jobs(given, directory, given.steps(hours))


def test_steps_follow_from_the_hours_alone() -> None:
    given = plan("fixed_hours=0.5", "cores=2", "pretraining={share: 0.35, step_seconds: 1.4}")
    # An hour of two cores, 0.35 of it, over nine runs of 1.4 seconds a step.
    assert given.steps(1.5)["pretraining"] == round(3600 * 2 * 0.35 / (9 * 1.4)) == 200
    assert given.steps(2.5)["pretraining"] == 400
    assert given.steps(0.5001)["pretraining"] == 4


def test_all_configurations_of_the_plan_are_sound(tmp_path: Path) -> None:
    found = jobs(tmp_path).checked()
    assert len(found) == 3 * 4
    encoders = {name: set(config.built_model.encoders) for name, config in found.items()}
    assert all(bool(have) != name.startswith("gpt/") for name, have in encoders.items())
    decoders = {config.model.decoder.model_dump_json() for config in found.values()}
    assert len(decoders) == 1, "arms differ in what reads, not in what speaks"
    # With an encoder the decoder of a single task is fixed; a GPT has nothing else to train.
    fixed = {name for name, config in found.items() if config.tuning.is_set}
    assert fixed == {"fresh/single", "minilm/single"}


def test_each_command_has_what_it_needs_before_it(tmp_path: Path) -> None:
    found = jobs(tmp_path).all()
    names = [job.name for job in found]
    assert len(set(names)) == len(names)
    for place, job in enumerate(found):
        assert set(job.after) <= set(names[:place]), job.name
    trained = [job for job in found if job.arguments[0] == "train"]
    assert len(trained) == 3 * 3 * (1 + 3)
    # Arms of one seed read the same.
    for seed in (1, 2, 3):
        assert sum(f"seed={seed}" in job.arguments for job in trained) == 12


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--hours", "0.2"], "--hours: 0.2 leave nothing for training, as 0.42 are for corpora"),
        (["pretraining.share=0.9"], "pretraining.share and those of tuning: are 1.51"),
        (["seeds=[1, 1]"], "seeds: one is named twice"),
        (["tunning=1"], "tunning: "),
        (["encoder=nowhere"], "encoder: nowhere is not there: make .venv/minilm/installed"),
        (["in_context.asked.tasks=[hypernims]"], "did you mean hypernyms?"),
        (["arms=[gpt, fersh]"], "configs/comparison/fersh/pretraining.yaml"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    directory = tmp_path / "runs"
    given = [PLAN, f"encoder={tmp_path}", f"data={tmp_path}/data", *arguments]
    assert main([*given, "--directory", str(directory)]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not directory.exists()
    assert not (tmp_path / "data").exists()


def test_a_directory_of_another_plan_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "begun.json").write_text('{"hours": 9}')
    given = [PLAN, f"encoder={tmp_path}", f"data={tmp_path}/data"]
    assert main([*given, "--directory", str(tmp_path)]) == 2
    assert "belongs to a comparison of another plan or other hours" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


TINY = [str(TINY_RUN), "run_directory=none", "data.corpus=none", "batch.sequences=16"]


@pytest.mark.parametrize("ratio", [0.0, 0.25])
def test_operations_are_those_of_a_real_step(ratio: float) -> None:
    """The bench counts batches, and is held against torch's own counter."""
    config = load(RunConfig, [*TINY, f"spans.text.ratio={ratio}", "spans.text.min_tokens=8",
                              "spans.text.max_tokens=16"])  # fmt: skip
    S, B = config.data.sequence_tokens, config.batch.sequences
    special = SpecialTokens(start=0, paragraph=1, document=2, padding=3)
    samples = [(0, Sample(id=number, tokens=np.arange(S + 1) + 4)) for number in range(B)]
    batch = build_collator(config, special)(samples)
    there = flops.training(config.built_model, batch)
    decoder = config.model.decoder
    # It has every slot attend to all, where a causal kernel leaves out the later ones.
    later = B * S * (S - (S + 1) / 2)
    there -= 3 * decoder.num_layers * 4 * decoder.width * later
    here = compute.step_operations(config, scored=batch.num_scored)
    assert here == pytest.approx(there, rel=0.03 if ratio else 1e-12)


def test_a_fixed_decoder_costs_a_third_less() -> None:
    free = load(RunConfig, [*TINY, "init_from=x"])
    fixed = load(RunConfig, [*TINY, "init_from=x", "trainable=[encoders, connectors]"])
    share = compute.step_operations(fixed, scored=100) / compute.step_operations(free, scored=100)
    assert 2 / 3 < share < 0.85


def test_losses_are_read_between_points() -> None:
    curve = [(3.0, 5.0), (1.0, 7.0), (5.0, 4.0)]
    assert compute.at(curve, 4.0) == 4.5
    assert compute.at(curve, 5.0) == 4.0
    assert math.isnan(compute.at(curve, 0.5))
    assert math.isnan(compute.at(curve, 6.0))
