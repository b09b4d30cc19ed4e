"""LoRA beside training all weights; and one step of the 1.3B in little memory."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from model.adapters.kinds import LoraConfig
from model.adapters.tuning import Tuning, tune
from model.semicausal import ModelConfig
from parallel.engine import build_part
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from tools.bench.loading.first import peak_resident_bytes
from tools.bench.rounds import Contestant, Findings, spread
from tools.bench.shapes import RATIO, Plan, Shape
from tools.bench.training import build, engine_of, engine_step, num_parameters, under_zero
from tools.random_batches import SEED, random_batches

TRUE_MODEL = Path("configs/model/metalm_1p3b.yaml")
LORA = Tuning(lora=LoraConfig(rank=16, alpha=32.0))
SLOTS = 512
"""Of the step of the true size: one sequence."""
GIB = 2**30


def lora_vs_full(plan: Plan) -> Findings:
    """Steps with adapters and of all weights, at tiny and medium size."""
    found = Findings(settings={"ratio": RATIO, "rank": 16, "precision": "bf16", "zero_stage": 1})
    for size, shape in (("tiny", plan.ranks), ("medium", plan.proportions)):
        config, given = shape.semi_causal(), shape.batches(ratio=RATIO, count=2)
        contestants = [
            under_zero(f"full {size}", config, given, stage=1, precision="bf16"),
            _tuned(f"lora {size}", config, shape),
        ]
        key = "lora_vs_full" if size == "medium" else f"lora_vs_full_{size}"
        found.compare(contestants, plan.heavy, {key: (f"full {size}", f"lora {size}")})
    return found


def _tuned(name: str, config: ModelConfig, shape: Shape) -> Contestant:
    model = build(config)
    tune(model, LORA, seed=SEED)
    parameters = num_parameters(model)
    given = shape.batches(ratio=RATIO, count=2)
    return Contestant(
        name=name,
        step=engine_step(engine_of(model, stage=1, precision="bf16"), given),
        tokens=given[0].tokens.numel() * dist.get_world_size(),
        parameters=parameters,
        precision="bf16",
    )


def lora_of_true_size(plan: Plan) -> Findings:
    """Two steps of the 1.34 B decoder and 368 M encoder: the most that this process has held."""
    stored = yaml.safe_load(TRUE_MODEL.read_text())["model"]
    config = ModelConfig.model_validate(stored)
    if plan.name == "tiny":
        config = plan.ranks.semi_causal()
    slots = min(SLOTS, config.decoder.max_tokens)
    mesh = build_mesh(LayoutConfig(), World.here())
    with _in_bf16():
        model = build_part(config, LayoutConfig(recompute="full"), mesh, seed=SEED)
        tune(model, LORA, seed=SEED)
    parameters, whole = num_parameters(model), sum(p.numel() for p in model.parameters())
    given = random_batches(
        vocabulary=config.decoder.vocabulary,
        sequence_tokens=slots,
        sequences=1,
        ratio=RATIO,
        count=1,
    )
    step = engine_step(engine_of(model, stage=1, precision="bf16"), given)
    step()
    step()
    found = Findings(
        settings={"parameters": whole, "trained": parameters, "slots": slots, "precision": "bf16"}
    )
    found.ratios["lora_1p3b_peak_gib"] = spread([peak_resident_bytes() / GIB])
    return found


@contextmanager
def _in_bf16() -> Generator[None]:
    """Weights are made in bf16: in fp32 they would not fit."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)
