"""Runs that train a part of the model are planned: bytes against what torch allocates."""

from dataclasses import replace
from typing import Any

import pytest

from model.adapters.kinds import BottleneckConfig, LoraConfig
from model.adapters.tuning import Tuning
from model.semicausal import ModelConfig
from parallel.mesh import LayoutConfig
from parallel.zero.config import Precision
from tools.plan.activations import kept
from tools.plan.check import MEMORY_TOLERANCE
from tools.plan.machines import nominal
from tools.plan.measure import measured_task, observe
from tools.plan.memory import rank_memory
from tools.plan.step_time import step_seconds
from tools.plan.task import Candidate, Task

WIDTH, SLOTS, MICRO_SEQUENCES = 256, 512, 4
ROW_BYTES = MICRO_SEQUENCES * SLOTS * WIDTH * 4
"""What all rows of a microbatch take in fp32."""
TUNINGS = {
    "all": Tuning(lora=LoraConfig(rank=8)),
    "decoder": Tuning(lora=LoraConfig(rank=8, targets=["decoder", "!up", "!down"])),
    "last blocks": Tuning(lora=LoraConfig(rank=8, targets=["decoder.blocks.{-2..-1}"])),
    "bottleneck": Tuning(bottleneck=BottleneckConfig(width=16)),
    "BitFit": Tuning(trainable=["*.bias"]),
}


def _shape(width: int, num_layers: int, heads: int) -> dict[str, Any]:
    return {"width": width, "num_layers": num_layers, "heads": heads, "feed_forward": 4 * width}


def task(tuned: str, precision: Precision) -> Task:
    model = ModelConfig.model_validate(
        {
            "decoder": _shape(WIDTH, 6, 4) | {"vocabulary": 2048, "max_tokens": SLOTS},
            "encoders": {
                "text": {"encoder": _shape(192, 4, 4) | {"max_tokens": 130, "dropout": 0.0}}
            },
        }
    )
    plain = measured_task(
        model, precision=precision, sequences=8, sequence_tokens=SLOTS, span_share=0.25
    )
    return replace(plain, tuning=TUNINGS[tuned])


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tuned", TUNINGS)
@pytest.mark.parametrize(
    ("tensor", "pipeline", "stage"), [(1, 1, 1), (1, 1, 3), (2, 1, 1), (1, 2, 1)]
)
def test_memory_is_as_predicted(
    tuned: str, precision: Precision, tensor: int, pipeline: int, stage: int
) -> None:
    job = task(tuned, precision)
    split = [6] if pipeline == 1 else [3, 3]
    spread = Candidate(
        layout=LayoutConfig(tensor=tensor, pipeline=pipeline, split=split),
        data=1,
        stage=stage,
        micro_sequences=MICRO_SEQUENCES,
        num_microbatches=2,
    )
    peaks = observe(job, spread, timed_steps=0).peak_bytes
    for stage_rank in range(pipeline):
        predicted = rank_memory(job, spread, nominal("cpu"), pipeline_rank=stage_rank).total
        measured = max(peaks[stage_rank * tensor : (stage_rank + 1) * tensor])
        assert predicted == pytest.approx(measured, rel=MEMORY_TOLERANCE), stage_rank


def held(tuned: str, *, stage: int = 1, rank: int = 0, **layout: Any) -> float:
    """Bytes of a microbatch's decoder layers in fp32, without those of spans."""
    spread = Candidate(
        layout=LayoutConfig.model_validate({"split": [6]} | layout),
        data=1,
        stage=stage,
        micro_sequences=MICRO_SEQUENCES,
        num_microbatches=2,
    )
    job = task(tuned, "fp32")
    found = kept(job, spread, job.share(spread, rank), fused=False).pieces[0]
    vectors = job.load(MICRO_SEQUENCES).spans["text"].vectors * (rank == 0)
    return found - vectors * WIDTH * 4


def test_at_stage_3_fixed_layers_keep_what_they_read() -> None:
    """It is an autograd function of DeepSpeed's that multiplies there; Megatron's is another."""
    # What the second norm has written and `up` reads, and what `down` reads.
    spared = 6 * (1 + 4) * ROW_BYTES
    assert held("decoder", stage=3) - held("decoder") == pytest.approx(spared)
    assert held("all", stage=3) == held("all")
    assert held("decoder", stage=3, tensor=2) == held("decoder", tensor=2)


def test_a_stage_keeps_what_lies_behind_what_it_received() -> None:
    """Even below the first layer that trains: what is received has a gradient, on every stage."""
    two: dict[str, Any] = {"pipeline": 2, "split": [3, 3]}
    # Of one layer more: queries, keys and values, what is mixed, what the norms and GELU read; and
    # some numbers a row, of norms and of heads.
    fixed = (3 + 1 + 2 + 4 + 8 / WIDTH) * ROW_BYTES
    assert held("last blocks", rank=1, **two) - held("last blocks") == pytest.approx(fixed)
    assert held("last blocks", **two) == ROW_BYTES  # what it has sent


def seconds(tuning: Tuning, **layout: Any) -> float:
    spread = Candidate(
        layout=LayoutConfig(split=[6], **layout),
        data=1,
        stage=1,
        micro_sequences=MICRO_SEQUENCES,
        num_microbatches=2,
    )
    job = replace(task("all", "bf16"), tuning=tuning)
    return step_seconds(job, spread, nominal("cpu")).total


@pytest.mark.parametrize("layout", [{}, {"tensor": 2}, {"recompute": "full"}])
def test_time_follows_what_trains(layout: dict[str, Any]) -> None:
    """Adapters cost more with more rank and beside more layers; what no gradient reaches is only
    read; weights without gradients spare a third of the products."""

    def lora(rank: int, *targets: str) -> float:
        return seconds(Tuning(lora=LoraConfig(rank=rank, targets=[*targets])), **layout)

    whole = seconds(Tuning(), **layout)
    assert lora(8, "decoder.blocks.{-2..-1}") < lora(8, "decoder") < lora(8, "decoder", "encoders")
    assert lora(8, "decoder", "encoders") < lora(64, "decoder", "encoders")
    assert lora(8, "decoder.blocks.{-2..-1}") < whole
    everything = seconds(Tuning(trainable=["*"]), **layout)
    assert everything == pytest.approx(whole, rel=1e-6)
    assert seconds(Tuning(trainable=["*.bias"]), **layout) < lora(8, "decoder", "encoders")
    # Two narrow products and a pass over the output, for each layer, forward and twice backward.
    few, many = lora(8, "decoder.blocks.5.attention.qkv"), lora(8, "decoder.blocks.5.attention")
    assert few < many
