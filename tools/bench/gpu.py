"""The 1.3B on a GPU: tokens/s and MFU of full training steps in bf16."""

import gc
from dataclasses import replace

import torch
from torch.utils.benchmark import Timer

from model.semicausal import ModelConfig, SemiCausal
from parallel.launch import join
from tools.bench import flops
from tools.bench.rounds import Findings, Step
from tools.bench.shapes import RATIO, Plan, Shape
from tools.bench.training import engine_of, engine_step, num_parameters

METALM = Shape(
    width=2048,
    num_layers=24,
    heads=32,
    vocabulary=64_000,
    sequence_tokens=2048,
    sequences=1,
    encoder_width=1024,
    encoder_heads=16,
)
"""configs/model/metalm_1p3b.yaml."""

ENCODER_TOKENS = 512
MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
WORTHWHILE = 1.02
"""A larger microbatch that gains less than this ends the search."""

TIMED_STEPS = 10
INIT_STD = 0.02

FORMULA = (
    "MFU = tokens/s x (6 N + 12 L d T) / peak; N decoder parameters, L layers, d width, T slots"
)
COUNTED = "counted = matrix products of decoder, scored head, encoder and connector, x 3 / s / peak"

PEAK_FLOPS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("B200", 2250e12),
)
"""Dense bf16 peak by a part of the device's name, as its maker gives it; the first match holds."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second that the maker gives, None if the device is not known."""
    return next((peak for part, peak in PEAK_FLOPS if part in device_name), None)


def metalm_1p3b(_: Plan) -> Findings:
    """Causal and semi-causal training steps on one GPU; joins a process group of one rank."""
    device = join(timeout_seconds=600).device
    name = torch.cuda.get_device_name(device)
    measured = matmul_flops(device)
    peak = peak_flops(name) or measured
    found = Findings(
        settings=METALM.settings
        | {
            "device": name,
            "peak_flops": peak,
            "peak_is": "nominal" if peak_flops(name) else "measured matrix product",
            "matmul_flops": measured,
            "precision": "bf16 with fp32 master weights",
            "formula": FORMULA,
            "counted": COUNTED,
        },
    )
    for mode, config, ratio in (
        ("causal", METALM.causal(), 0.0),
        ("semi-causal", METALM.semi_causal(max_tokens=ENCODER_TOKENS), RATIO),
    ):
        found.contestants[mode] = _measure(config, ratio=ratio, peak=peak, device=device)
    return found


def _measure(
    config: ModelConfig, *, ratio: float, peak: float, device: torch.device
) -> dict[str, object]:
    """Tokens/s and MFU at the microbatch that is fastest, of those that fit."""
    with device:
        model = SemiCausal(config)
    decoder_parameters = sum(parameter.numel() for parameter in model.decoder.parameters())
    parameters = num_parameters(model)
    _fill(model)
    engine = engine_of(model, stage=1, precision="bf16")
    flops_per_token = (
        6 * decoder_parameters + 12 * METALM.num_layers * METALM.width * METALM.sequence_tokens
    )
    best: dict[str, object] = {}
    fastest = 0.0
    for sequences in MICRO_BATCHES:
        shape = replace(METALM, sequences=sequences)
        given = [batch.to(device) for batch in shape.batches(ratio=ratio, count=2)]
        torch.cuda.reset_peak_memory_stats(device)
        try:
            seconds = _seconds(engine_step(engine, given), repeats=TIMED_STEPS)
        except torch.OutOfMemoryError:
            break
        speed = shape.tokens / seconds
        if speed < fastest * WORTHWHILE:
            break
        fastest = speed
        counted = sum(flops.training(config, batch) for batch in given) / len(given)
        best = {
            "step_seconds": seconds,
            "tokens_per_second": speed,
            "tokens_per_step": shape.tokens,
            "parameters": parameters,
            "precision": "bf16",
            "sequences": sequences,
            "mfu": speed * flops_per_token / peak,
            "mfu_counted": counted / seconds / peak,
            "memory_bytes": torch.cuda.max_memory_allocated(device),
        }
    engine.close()
    del engine, model
    gc.collect()
    torch.cuda.empty_cache()
    if not best:
        raise RuntimeError("not even one sequence fits: this GPU is too small for the 1.3B")
    return best


@torch.no_grad()
def _fill(model: SemiCausal) -> None:
    """Plausible weights made where they lie; our own initialiser draws on the host, for minutes."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight.normal_(0, INIT_STD)
        if isinstance(module, torch.nn.Linear):
            module.bias.zero_()


def matmul_flops(device: torch.device) -> float:
    """Operations a second of a large bf16 matrix product: what this card reaches at best."""
    size = 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: torch.mm(a, b), repeats=20)


def _seconds(work: Step, *, repeats: int) -> float:
    """Mean seconds, from when the device rests until it rests again, after two warm-ups."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.timeit(repeats).mean
