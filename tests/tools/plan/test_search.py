"""What the planner ranks, what it refuses, and what its times are made of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.encoders.protocol import SpanLoad
from model.semicausal import ModelConfig, parameter_counts
from parallel.mesh import LayoutConfig, layout_faults
from parallel.zero.config import ZeroConfig
from tools.command import write_json
from tools.plan.machines import (
    Link,
    Links,
    Machine,
    nominal,
    read_machine,
)
from tools.plan.memory import fullest_rank
from tools.plan.search import all_plans, flops_per_token, one_plan
from tools.plan.step_time import pieces_seconds, step_seconds
from tools.plan.task import Candidate, Task
from train.config import RunConfig
from train.config_files import load
from train.errors import ConfigError

EXPERIMENT = str(Path(__file__).parents[3] / "configs/experiment/metalm_1p3b.yaml")


@pytest.fixture(scope="module")
def metalm() -> ModelConfig:
    return load(RunConfig, [EXPERIMENT]).model


@pytest.fixture(scope="module")
def job(metalm: ModelConfig) -> Task:
    return Task(
        model=metalm,
        precision="bf16",
        sequences=1024,
        sequence_tokens=2048,
        spans={"text": SpanLoad(vectors=512, spans=512 / 96, longest=128)},
        zero=ZeroConfig(),
        steps=300_000,
    )


@pytest.fixture(scope="module")
def h100() -> Machine:
    return nominal("h100")


def candidate(*, stage: int = 1, data: int = 1, micro: int = 1, num: int = 8, **layout: Any):
    layout = {"split": [24]} | layout
    return Candidate(
        layout=LayoutConfig.model_validate(layout),
        data=data,
        stage=stage,
        micro_sequences=micro,
        num_microbatches=num,
    )


def test_all_that_is_ranked_fits_and_can_be_run(job: Task, h100: Machine) -> None:
    plans = all_plans(job, h100, ranks=16)
    assert len(plans.ranked) > 100
    speeds = [plan.tokens_per_second for plan in plans.ranked]
    assert speeds == sorted(speeds, reverse=True)
    for plan in plans.ranked:
        chosen = plan.candidate
        assert plan.memory.total <= h100.usable_bytes
        assert chosen.ranks == 16
        assert chosen.data * chosen.micro_sequences * chosen.num_microbatches == job.sequences
        assert not list(layout_faults(chosen.layout, job.model))
        assert chosen.stage >= 1  # in bf16 stage 0 is stage 1


def test_reasons_are_grouped(job: Task, h100: Machine) -> None:
    refusals = all_plans(job, h100, ranks=96).refusals
    assert any("tensor 3: does not divide model.decoder.heads 32" in reason for reason in refusals)
    assert "chunks 2: need a multiple of 3 microbatches" in refusals
    assert any("tensor 16: straddles nodes of 8 ranks" in reason for reason in refusals)
    assert any("pipeline 32: more stages than 24 layers" in reason for reason in refusals)
    assert any("GiB of 79.1" in reason for reason in refusals)
    assert "data 3: batch.sequences 1024 does not divide" in refusals


def test_heads_of_the_encoder_count_too(job: Task, h100: Machine) -> None:
    tree = job.model.model_dump()
    tree["encoders"]["text"]["encoder"] |= {"heads": 4}
    narrow = replace(job, model=ModelConfig.model_validate(tree))
    refusals = all_plans(narrow, h100, ranks=8).refusals
    assert refusals["tensor 8: does not divide model.encoders.text.encoder.heads 4"] == 1


def test_nothing_fits_where_nothing_can(job: Task) -> None:
    small = nominal("cpu", cores=1, memory_bytes=2**30)
    plans = all_plans(job, small, ranks=1)
    assert not plans.ranked
    assert any(reason.startswith("needs") for reason in plans.refusals)


def test_a_rank_alone_has_nobody_to_share_with(job: Task, h100: Machine) -> None:
    stages = {plan.candidate.stage for plan in all_plans(job, h100, ranks=1).ranked}
    assert stages == {1}


def test_the_operations_of_a_token_are_those_of_the_formula(job: Task) -> None:
    for norm, tied in (("deepnorm", True), ("pre", False)):
        tree = job.model.model_dump()
        tree["decoder"] |= {"norm": norm, "tied_head": tied}
        config = ModelConfig.model_validate(tree)
        parameters = parameter_counts(config)["decoder"]
        expected = 6 * parameters + 12 * 24 * 2048 * 2048
        assert flops_per_token(replace(job, model=config)) == expected


def test_mfu_and_days_follow_from_the_step(job: Task, h100: Machine) -> None:
    plan = one_plan(job, candidate(data=8, micro=4, num=32), h100)
    assert plan.tokens_per_second == pytest.approx(1024 * 2048 / plan.seconds.total)
    operations = flops_per_token(job) * plan.tokens_per_second
    assert plan.mfu == pytest.approx(operations / (8 * 989e12))
    assert plan.days == pytest.approx(300_000 * plan.seconds.total / 86_400)
    # What such runs are known to reach, 42 to 49 % on one node, less the encoder.
    assert 0.38 < plan.mfu < 0.50


FROZEN = [
    ("bf16", "h100", {"stage": 1}, 39557370880, 0.8158799456985811),
    ("bf16", "h100", {"stage": 3, "data": 8}, 16824561280, 1.5103477504811442),
    (
        *("bf16", "a100", {"stage": 2, "data": 4, "tensor": 2, "sequence_parallel": True}),
        *(10231538176, 1.2782680085664042),
    ),
    (
        *("bf16", "h200", {"data": 2, "pipeline": 2, "split": [10, 14], "recompute": "selective"}),
        *(19523450880, 0.44837867603676995),
    ),
    (
        *("fp32", "h100"),
        {"data": 8, "tensor": 4, "pipeline": 2, "chunks": 2, "split": [5, 7, 7, 5]}
        | {"recompute": "full"},
        *(4804683008, 1.6704328604084544),
    ),
    ("fp32", "cpu", {"stage": 0, "data": 2}, 43975624704, 4465.434549367987),
]
"""Precision, machine, layout; bytes of the fullest rank and seconds of a step. On H100 and H200
products and attention have the rates measured on an H200; ZeRO-1 in bf16 sends gradients to their
owner alone. On GPUs the update moves what it was counted to on an H100."""


@pytest.mark.parametrize(("precision", "kind", "keys", "memory", "seconds"), FROZEN)
def test_predictions_stay_what_they_were(
    job: Task, precision: Any, kind: Any, keys: dict[str, Any], memory: int, seconds: float
) -> None:
    plan = one_plan(
        replace(job, precision=precision), candidate(micro=2, **keys), nominal(kind, cores=2)
    )
    assert plan.memory.total == pytest.approx(memory, rel=1e-9)
    assert plan.seconds.total == pytest.approx(seconds, rel=1e-9)


def test_the_bubble_at_equal_stages(job: Task, h100: Machine) -> None:
    tree = job.model.model_dump()
    tree["decoder"] |= {"vocabulary": 8, "num_layers": 24}
    tree["encoders"] = {}
    gpt = replace(job, model=ModelConfig.model_validate(tree), spans={})
    for stages, chunks, num in ((4, 1, 8), (2, 1, 3), (2, 2, 4)):
        split = [24 // (stages * chunks)] * (stages * chunks)
        this = candidate(pipeline=stages, chunks=chunks, split=split, num=num)
        seconds = step_seconds(gpt, this, h100)
        expected = (stages - 1) / (num * chunks)
        assert seconds.bubble / seconds.compute == pytest.approx(expected, rel=0.06)


def test_uneven_stages_wait_for_the_slowest(job: Task, h100: Machine) -> None:
    even = step_seconds(job, candidate(pipeline=4, split=[6, 6, 6, 6], micro=8), h100)
    balanced = step_seconds(job, candidate(pipeline=4, split=[5, 7, 7, 5], micro=8), h100)
    assert balanced.total < 0.95 * even.total


def test_traffic_of_each_kind(job: Task, h100: Machine) -> None:
    alone = step_seconds(job, candidate(), h100)
    assert alone.tensor == alone.pipeline == alone.data == alone.bubble == 0
    assert step_seconds(job, candidate(tensor=2), h100).tensor > 0
    assert step_seconds(job, candidate(pipeline=2, split=[12, 12]), h100).pipeline > 0
    once, often = (step_seconds(job, candidate(stage=s, data=8), h100).data for s in (1, 3))
    assert often > 5 * once  # gathered again for every microbatch
    node, network = (step_seconds(job, candidate(data=d), h100).data for d in (8, 64))
    assert network > 1.1 * node


def test_recomputation_costs_a_forward(job: Task, h100: Machine) -> None:
    none = pieces_seconds(job, candidate(), h100)
    full = pieces_seconds(job, candidate(recompute="full"), h100)
    assert full.layer.compute / none.layer.compute == pytest.approx(4 / 3, abs=0.03)
    assert full.last == none.last


def test_documents_kept_apart_cost_their_squares(job: Task, h100: Machine) -> None:
    this = candidate(pipeline=2, split=[12, 12])
    whole, unknown, short = (
        one_plan(replace(job, document_tokens=tokens), this, h100)
        for tokens in (2048.0, None, 512.0)
    )
    assert whole.seconds == unknown.seconds, "at most what causal attention costs"
    # A quarter of a slot's pairs, in twelve layers of attention, three passes each.
    rates = h100.rates_for("bf16", ranks=2)
    less = 12 * 3 * 4 * 2048 * ((2048 - 512) / 2) * 2048 / rates.attention
    assert whole.seconds.compute - short.seconds.compute == pytest.approx(8 * less)
    assert whole.memory == short.memory


def test_recomputation_is_chosen_where_it_is_needed_only(job: Task, h100: Machine) -> None:
    plans = all_plans(job, h100, ranks=8)
    recomputing = [p for p in plans.ranked if p.candidate.layout.recompute != "none"]
    assert recomputing
    for plan in recomputing:
        plain = plan.candidate.layout.model_copy(update={"recompute": "none"})
        memory = fullest_rank(job, replace(plan.candidate, layout=plain), h100)
        assert memory.total > h100.usable_bytes


def test_links() -> None:
    link = Link(latency_seconds=1.0, bytes_per_second=10.0)
    links = Links(reduce=link, gather=link, send=link)
    assert links.all_reduce(100.0, ranks=1) == 0
    assert links.all_reduce(100.0, ranks=4) == 1 + 2 * 0.75 * 10
    assert links.all_gather(100.0, ranks=4, times=2) == 2 * (1 + 0.75 * 10)
    machine = nominal("h100")
    assert machine.links(span=8) == machine.within_node
    inside = machine.within_node.reduce.bytes_per_second
    outside = machine.between_nodes.reduce.bytes_per_second
    # Of eight ways out of a node, groups of each eighth rank have one.
    assert machine.links(span=64, stride=8).reduce.bytes_per_second == outside
    assert machine.links(span=64, stride=2).reduce.bytes_per_second == 4 * outside
    assert machine.links(span=64).reduce.bytes_per_second == min(8 * outside, inside)


def test_rates_lie_between_those_measured() -> None:
    rates = nominal("h100").rates_for("bf16", ranks=1)
    (small, slow), (large, fast) = rates.products[1], rates.products[2]
    at = 2 * small**3 / rates.product_seconds(small, small, small)
    assert at == pytest.approx(slow)
    middle = (small * large) ** 0.5
    between = 2 * middle**3 / rates.product_seconds(middle, middle, middle)
    assert between == pytest.approx((slow + fast) / 2)
    assert rates.product_seconds(0, 5, 5) == 0


def test_a_calibration_comes_back_as_it_was(tmp_path: Path) -> None:
    machine = nominal("cpu", cores=2).model_copy(update={"measured": True})
    path = tmp_path / "below" / "machine.json"
    write_json(path, machine.model_dump(mode="json"))
    assert read_machine(path) == machine


def test_damaged_calibrations_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_machine(path)
    path.write_text('{"kind": "cpu"}')
    with pytest.raises(ConfigError, match=r"tools\.plan calibrate"):
        read_machine(path)


def test_a_precision_that_was_not_calibrated(job: Task) -> None:
    machine = nominal("cpu", cores=2)
    only_fp32 = machine.model_copy(update={"rates": machine.rates[:1]})
    with pytest.raises(ConfigError, match="bf16 was not calibrated"):
        all_plans(job, only_fp32, ranks=2)
