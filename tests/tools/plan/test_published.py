"""Predictions beside what others have published, and the price of ways to send gradients."""

from dataclasses import replace
from pathlib import Path

import pytest

from tools.plan import __main__ as plan
from tools.plan import step_time
from tools.plan.described import Described
from tools.plan.machines import nominal
from tools.plan.published import Row, llm_foundry, nanotron, rows, torchtitan
from tools.plan.search import flops_per_token
from tools.plan.step_time import step_seconds
from tools.plan.task import Candidate, Wire

EXPERIMENT = str(Path(__file__).parents[3] / "configs/experiment/metalm_1p3b.yaml")
TOLERANCE = 0.15


@pytest.fixture(scope="module")
def published() -> list[Row]:
    return list(rows())


def test_published_runs_are_foretold(published: list[Row]) -> None:
    missed = {row.name: row.error for row in published if abs(row.error) > TOLERANCE}
    assert not missed
    # None has rates of its own: stacks of 2023, 2024 and 2026, and our prototype's.
    assert len({str(row.machine.rates) for row in published}) == 4
    assert len(published) == 46


def test_without_contention_or_hops_they_would_be_missed(
    published: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_hops(row: Row) -> Row:
        between = row.machine.between_nodes
        gather = between.gather.model_copy(update={"hop_seconds": 0.0})
        links = between.model_copy(update={"gather": gather})
        return replace(row, machine=row.machine.model_copy(update={"between_nodes": links}))

    assert max(without_hops(row).error for row in published) > TOLERANCE
    monkeypatch.setattr(step_time, "CONTENTION", 0.0)
    assert max(row.error for row in published) > 2 * TOLERANCE


def test_scaling_is_foretold() -> None:
    """The loss over GPUs of two models that no rate of the network was set by."""
    small, *_, large = (row for row in llm_foundry() if row.name.startswith("MPT 7b"))
    lost = large.tokens_per_second / small.tokens_per_second
    assert large.predicted / small.predicted == pytest.approx(lost, abs=0.07)
    few, many = (row for row in torchtitan() if "compiled" in row.name)
    lost = many.tokens_per_second / few.tokens_per_second
    assert many.predicted / few.predicted == pytest.approx(lost, abs=0.02)


def test_models_are_described_as_they_were(published: list[Row]) -> None:
    elements = {row.name.split(",")[0]: row.task.decoder_elements for row in published}
    positions = 2048 * 2048  # a table that ours does not train
    assert elements["MPT 1b"] == 1_315_950_592 - positions
    assert elements["MPT 70b"] == 64_862_437_376 - 2048 * 8192
    assert elements["Llama 3.1 8B"] == 8_030_261_248
    assert round(next(nanotron()).task.decoder_elements / 1e9, 2) == 1.34


def test_figures_are_of_one_formula(published: list[Row]) -> None:
    by_name = {(row.name.split(",")[0], row.candidate.ranks): row for row in published}
    # Their own columns of MFU.
    for name, ranks, mfu in (("MPT 1b", 8, 41.82), ("MPT 1b", 512, 36.65), ("MPT 70b", 512, 41.25)):
        row = by_name[name, ranks]
        assert 100 * row.mfu(row.tokens_per_second) == pytest.approx(mfu, rel=0.005)
    # Theirs leaves out the embedding.
    row = by_name["Llama 3.1 8B", 8]
    assert isinstance(row.task, Described)
    without = flops_per_token(row.task) - 6 * 128_256 * 4096
    assert round(100 * 6_667 * without / 989e12) == 39


def test_a_gate_and_few_keys_count(published: list[Row]) -> None:
    row = next(row for row in published if "Llama" in row.name)
    assert isinstance(row.task, Described)
    more = replace(row.task, key_value_share=1.0)
    added = 32 * 2 * 3072 * 4096
    assert more.decoder_elements - row.task.decoder_elements == added
    assert step_seconds(more, row.candidate, row.machine).compute > row.task.steps * (
        step_seconds(row.task, row.candidate, row.machine).compute
    )


def test_what_is_hidden_and_what_is_not() -> None:
    exposed = step_time._exposed
    # Long enough behind: a share is lost, and never less than one message of many.
    assert exposed(1.0, behind=10.0, messages=100) == step_time.CONTENTION
    assert exposed(1.0, behind=10.0, messages=1) == 1.0
    assert exposed(10.0, behind=1.0, messages=100) == 9.0


def test_ways_to_send_gradients_are_ranked() -> None:
    row = next(llm_foundry())
    machine = nominal("h100")
    spread = replace(row.candidate, data=64, stage=1, num_microbatches=4, wire=Wire())
    task = replace(row.task, sequences=64 * 4 * row.candidate.micro_sequences)

    def data(candidate: Candidate) -> float:
        return step_seconds(task, candidate, machine).data

    plain = data(spread)
    owner, short, hidden = (
        data(replace(spread, wire=wire))
        for wire in (Wire(scatters=True), Wire(reduce_in="bf16"), Wire(overlaps=True))
    )
    assert max(owner, short, hidden) < plain
    # 8 bytes of an element are sent and 2 gathered; 4 and 2 to the owner alone, or in bf16.
    assert owner == pytest.approx(short, rel=0.05)
    assert owner / plain == pytest.approx(6 / 10, rel=0.05)
    # ZeRO-2 sends the gradients of each microbatch.
    assert data(replace(spread, stage=2)) / plain == pytest.approx((4 * 8 + 2) / 10, rel=0.05)


def test_gradients_are_sent_as_the_run_says() -> None:
    row = next(llm_foundry())
    task = replace(row.task, states="fp32")
    first, second = (replace(row.candidate, stage=stage, wire=None) for stage in (1, 2))
    assert task.wire(first) == Wire(scatters=True, reduce_in="fp32")
    assert task.wire(second) == Wire()
    zero = task.zero.model_copy(update={"reduce_precision": "bf16", "overlap": True})
    other = replace(task, zero=zero)
    assert other.wire(first) == Wire(scatters=True, reduce_in="bf16")
    assert other.wire(second) == Wire(overlaps=True)
    assert replace(other, precision="fp32").wire(first) == Wire()


def test_cost_is_told_in_hours(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["cost", EXPERIMENT, "--gpu", "h100", "--gpus", "8", "64"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "hours",
        "GPU-hours",
        "zero.overlap=true",
        "not there",
        "39 published runs and 7 of ours",
        "of 6 more, whose layouts",
    ):
        assert word in shown
    assert plan.main(["cost", EXPERIMENT, "--gpu", "h100", "--gpus", "3"]) == 2
    assert "batch.sequences: 1024 do not divide by 3 GPUs" in capsys.readouterr().err
    assert plan.main(["cost", EXPERIMENT, "precision=fp32", "--gpu", "cpu", "--gpus", "1024"]) == 2
    assert "finds other layouts" in capsys.readouterr().err


def test_the_table_names_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["published"]) == 0
    shown = capsys.readouterr().out
    for word in ("mosaicml/llm-foundry", "pytorch/torchtitan", "huggingface/nanotron", "MPT 70b"):
        assert word in shown
