"""Between run configurations and the planner: a task out of one, an overlay into another."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from parallel.launch import multiplies_bf16
from parallel.zero.config import Precision
from tools.plan.machines import MachineKind
from tools.plan.search import Plan
from tools.plan.task import Candidate, Task
from train.config import RunConfig
from train.errors import ConfigError


def task_of(config: RunConfig, *, kind: MachineKind) -> Task:
    """What the planner needs of a run.

    Args:
        config: the run; its own layout, ZeRO stage and microbatch are not looked at.
        kind: settles `precision: auto`.

    Raises:
        ConfigError: the run is of a kind that cannot be planned.
    """
    if config.zero.offload_directory is not None and kind != "cpu":
        raise ConfigError(
            "zero.offload_directory: only training on CPUs is planned with it; leave it out"
        )
    if config.lora is not None:
        raise ConfigError(
            "lora: only runs that train whole weights are planned; adapters fit wherever the model "
            "itself does, so plan the run without lora"
        )
    precision: Precision
    if config.precision != "auto":
        precision = config.precision
    else:
        precision = "bf16" if kind != "cpu" or multiplies_bf16() else "fp32"
    return Task(
        model=config.built_model,
        precision=precision,
        states=config.optim.precision,
        sequences=config.batch.sequences,
        sequence_tokens=config.data.sequence_tokens,
        attend=config.data.attend,
        spans={modality: config.span_load(modality) for modality in config.built_model.encoders},
        zero=config.zero,
        steps=config.steps,
    )


def overlay(candidate: Candidate) -> dict[str, Any]:
    """What `python -m train CONFIG OVERLAY` needs to run a candidate."""
    layout = candidate.layout.model_dump()
    if candidate.layout.pipeline == 1:
        layout["split"] = None  # one that the configuration names would not fit
    return {
        "layout": layout,
        "zero": {"stage": candidate.stage},
        "batch": {"micro_sequences": candidate.micro_sequences},
    }


def write_overlay(path: Path, plan: Plan, *, title: str) -> None:
    """Write the overlay, headed by what is expected of it."""
    gib = plan.memory.total / 2**30
    header = [
        f"# {title}",
        f"# predicted: {plan.seconds.total:.3g} s a step, {plan.tokens_per_second:,.0f} tokens/s, "
        f"{gib:.1f} GiB on the fullest rank",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(overlay(plan.candidate), sort_keys=False, default_flow_style=None)
    path.write_text("\n".join([*header, text]))


def record(plan: Plan) -> dict[str, Any]:
    """A plan's predictions as plain values."""
    return {
        **overlay(plan.candidate),
        "ranks": plan.candidate.ranks,
        "memory_bytes": asdict(plan.memory) | {"total": plan.memory.total},
        "seconds": asdict(plan.seconds) | {"total": plan.seconds.total},
        "tokens_per_second": plan.tokens_per_second,
    }
