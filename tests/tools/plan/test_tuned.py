"""Runs that train a part of the model are planned: bytes against what torch allocates."""

from dataclasses import replace
from typing import Any

import pytest

from model.adapters.kinds import BottleneckConfig, LoraConfig
from model.adapters.tuning import Tuning
from model.semicausal import ModelConfig
from parallel.mesh import LayoutConfig
from parallel.zero.config import Precision
from tools.plan.check import MEMORY_TOLERANCE
from tools.plan.machines import nominal
from tools.plan.measure import measured_task, observe
from tools.plan.memory import rank_memory
from tools.plan.step_time import step_seconds
from tools.plan.task import Candidate, Task

ATTENTION = ["qkv", "out"]
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
            "decoder": _shape(256, 6, 4) | {"vocabulary": 2048, "max_tokens": 512},
            "encoders": {
                "text": {"encoder": _shape(192, 4, 4) | {"max_tokens": 130, "dropout": 0.0}}
            },
        }
    )
    plain = measured_task(
        model, precision=precision, sequences=8, sequence_tokens=512, span_share=0.25
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
        micro_sequences=4,
        num_microbatches=2,
    )
    peaks = observe(job, spread, timed_steps=0).peak_bytes
    for stage_rank in range(pipeline):
        predicted = rank_memory(job, spread, nominal("cpu"), pipeline_rank=stage_rank).total
        measured = max(peaks[stage_rank * tensor : (stage_rank + 1) * tensor])
        assert predicted == pytest.approx(measured, rel=MEMORY_TOLERANCE), stage_rank


def seconds(tuning: Tuning, **layout: Any) -> float:
    spread = Candidate(
        layout=LayoutConfig(split=[6], **layout),
        data=1,
        stage=1,
        micro_sequences=4,
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
