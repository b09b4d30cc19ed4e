"""LoRA beside training all weights, and beside peft; one step of the 1.3B in little memory."""

import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from model.adapters.kinds import LoraConfig
from model.adapters.tuning import Tuning, tune
from model.batch import Batch
from model.semicausal import ModelConfig
from parallel.engine import build_part
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from parallel.zero.config import Precision
from tools.bench import task_rows
from tools.bench.exported import Exported, exported, peer_loss
from tools.bench.loading.first import peak_resident_bytes
from tools.bench.rounds import Contestant, Findings, ratio, spread
from tools.bench.shapes import RATIO, Plan
from tools.bench.training import (
    build,
    engine_of,
    engine_step,
    num_parameters,
    plain,
    under_zero,
)
from tools.random_batches import SEED, random_batches
from train.checkpoint.background import owned_slices
from train.checkpoint.directory import Retention
from train.checkpoint.saver import Saver
from train.data.collate import Attend

TRUE_MODEL = Path("configs/model/metalm_1p3b.yaml")
RANK, ALPHA = 16, 32
LORA = Tuning(lora=LoraConfig(rank=RANK, alpha=ALPHA))
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")
ATTEND: tuple[Attend, ...] = ("within", "across")
SAVE_SECONDS, SAVE_COPIES = 0.005, 1.3
SLOTS = 512
"""Of the step of the true size: one sequence."""
GIB = 2**30


def lora_vs_full(plan: Plan) -> Findings:
    """Steps with adapters and of all weights, at tiny and medium size."""
    found = Findings(settings={"ratio": RATIO, "rank": RANK, "precision": "bf16", "zero_stage": 1})
    for size, shape in (("tiny", plan.ranks), ("medium", plan.proportions)):
        config, given = shape.semi_causal(), shape.batches(ratio=RATIO, count=2)
        contestants = [
            under_zero(f"full {size}", config, given, stage=1, precision="bf16"),
            _tuned(f"lora {size}", config, given),
        ]
        key = "lora_vs_full" if size == "medium" else f"lora_vs_full_{size}"
        found.compare(contestants, plan.heavy, {key: (f"full {size}", f"lora {size}")})
    return found


def lora_vs_peft(plan: Plan) -> Findings:
    """Steps with adapters, and transformers' with peft's on the same model, as it is exported.

    First on sequences of equal length, then on rows as tasks have them, which we pack and the peer
    pads. The peer has all in one type: adapters in fp32 on a base in bf16, which are peft's
    default, take longer.
    """
    shape = plan.ranks
    found = Findings(settings=shape.settings | {"ratio": RATIO, "rank": RANK})
    config = shape.semi_causal(max_tokens=shape.sequence_tokens)
    even = shape.batches(ratio=RATIO, count=2)
    rows = task_rows.rows_of(shape, count=2)
    tight = [task_rows.batch_of(task_rows.packed(each, shape), attend="within") for each in rows]
    wide = [task_rows.batch_of(each, attend="across") for each in rows]
    tokens = sum(len(row.tokens) for each in rows for row in each) // len(rows)
    found.settings |= {
        "task_tokens": tokens,
        "slots_packed": tight[0].tokens.numel(),
        "slots_padded": wide[0].tokens.numel(),
    }
    with exported(build(config), sequence_tokens=shape.sequence_tokens) as files:
        for precision in PRECISIONS:
            suffix = "" if precision == "bf16" else "_fp32"
            for key, ours, theirs, count in (
                ("lora", even, even, shape.tokens),
                ("lora_packed", tight, wide, tokens),
            ):
                contestants = [
                    _peft(f"peft {key} {precision}", files, theirs, precision, tokens=count),
                    _tuned(f"{key} {precision}", config, ours, precision, tokens=count),
                ]
                names = (contestants[0].name, contestants[1].name)
                found.compare(contestants, plan.heavy, {f"{key}_vs_peft{suffix}": names})
    return found


def within_vs_across(plan: Plan) -> Findings:
    """Steps with adapters on the same packed rows, which attend within their own or across all."""
    shape = plan.ranks
    config = shape.semi_causal(max_tokens=shape.sequence_tokens)
    rows = [task_rows.packed(each, shape) for each in task_rows.rows_of(shape, count=2)]
    found = Findings(settings=shape.settings | {"rank": RANK})
    for precision in PRECISIONS:
        contestants = [
            _tuned(
                f"{attend} {precision}",
                config,
                [task_rows.batch_of(each, attend=attend) for each in rows],
                precision,
            )
            for attend in ATTEND
        ]
        key = "within_vs_across" if precision == "bf16" else "within_vs_across_fp32"
        within, across = (contestant.name for contestant in contestants)
        found.compare(contestants, plan.heavy, {key: (across, within)})
    return found


def _tuned(
    name: str,
    config: ModelConfig,
    given: Sequence[Batch],
    precision: Precision = "bf16",
    *,
    tokens: int | None = None,
) -> Contestant:
    model = build(config)
    tune(model, LORA, seed=SEED)
    parameters = num_parameters(model)
    return Contestant(
        name=name,
        step=engine_step(engine_of(model, stage=1, precision=precision), given),
        tokens=tokens or given[0].tokens.numel() * dist.get_world_size(),
        parameters=parameters,
        precision=precision,
    )


def _peft(
    name: str, files: Exported, given: Sequence[Batch], precision: Precision, *, tokens: int
) -> Contestant:
    peer = files.peer().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    assert LORA.lora is not None
    config = PeftConfig(r=RANK, lora_alpha=ALPHA, target_modules=LORA.lora.targets)
    adapted = get_peft_model(peer, config, autocast_adapter_dtype=False)
    return replace(plain(name, adapted, peer_loss, given), tokens=tokens, precision=precision)


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


def adapter_save(plan: Plan) -> Findings:
    """How long saving a run that trains adapters alone holds it up, over what is allowed.

    That is 5 ms and 1.3 times one copy of the masters and moments that train.
    """
    shape = plan.proportions
    model = build(shape.semi_causal())
    tune(model, LORA, seed=SEED)
    engine = engine_of(model, stage=1, precision="bf16")
    step = engine_step(engine, shape.batches(ratio=RATIO, count=1))
    parts = owned_slices(engine)
    trained = {part.name for part in parts if part.kind != "value"}
    state = {f"{p.name}/{p.kind}": p.tensor for p in parts if p.name in trained}
    room = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    seconds: dict[str, list[float]] = {"blocked": [], "copy": []}
    with tempfile.TemporaryDirectory(prefix="semicausal-bench-") as name:
        saver = Saver(Path(name), retention=Retention(keep=1))
        for number in range(plan.heavy.rounds + 1):
            step()
            begun = time.perf_counter()
            saver.save(engine, {}, step=number)
            saved = time.perf_counter()
            saver.finish()
            copying = time.perf_counter()
            for key, tensor in state.items():
                room[key].copy_(tensor)
            if number:  # the first finds its memory
                seconds["blocked"].append(saved - begun)
                seconds["copy"].append(time.perf_counter() - copying)
    allowed = [SAVE_SECONDS + SAVE_COPIES * copy for copy in seconds["copy"]]
    return Findings(
        settings=shape.settings
        | {
            "trained_bytes": sum(tensor.nbytes for tensor in state.values()),
            "seconds": {key: round(spread(taken).median, 5) for key, taken in seconds.items()},
        },
        ratios={"adapter_save_vs_allowed": ratio(seconds["blocked"], allowed)},
    )


@contextmanager
def _in_bf16() -> Generator[None]:
    """Weights are made in bf16: in fp32 they would not fit."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)
