"""The 1.3B on a GPU: tokens/s and MFU of full training steps, as `python -m train` takes them.

What is measured is a configuration of a run, so that every switch of one can be tried.
"""

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from model.batch import Batch
from parallel.compiled import news
from parallel.engine import build_part
from parallel.launch import World, join, peak_memory_bytes
from parallel.mesh import build_mesh
from tools.bench import flops
from tools.bench.instruments import counting_waits, timing_parts
from tools.bench.rounds import Findings
from tools.bench.shapes import Plan
from tools.bench.training import engine_step, num_parameters
from tools.random_batches import random_samples
from train.build import build_collator, build_engine
from train.config import RunConfig
from train.config_files import load
from train.data.tokens import SpecialTokens
from train.watch.utilisation import FORMULA, flops_per_token, peak_flops

METALM = ("configs/experiment/metalm_1p3b.yaml", "configs/cluster/h100x8.yaml")

REPEATABLE = ("optim.lr=3e-4", "model.encoders.text.encoder.dropout=0")
"""Dropout is cheap and no product; without it runs repeat. The rate suits weights drawn here."""

CAUSAL = "spans.text.ratio=0"

MICRO_BATCHES = (1, 2, 4, 8, 12, 16, 24, 32)
WORTHWHILE = 1.02
"""A larger microbatch that gains less than this ends the search."""

TIMED_STEPS = 10
WARMUP_STEPS = 3
LOOKED_AT_STEPS = 2
"""Steps with instruments, which cost a little time, after those that are timed without."""
NUM_BATCHES = 2
DOCUMENTS = 4
"""In a sequence, where they are apart: of some 500 tokens each, as web pages have."""
INIT_STD = 0.02

COUNTED = "counted = matrix products of decoder, scored head, encoder and connector, x 3 / s / peak"


def metalm_1p3b(_: Plan) -> Findings:
    """Causal and semi-causal training steps on one GPU; joins a process group of one rank."""
    device = join(timeout_seconds=600).device
    name = torch.cuda.get_device_name(device)
    measured = matmul_flops(device)
    peak = peak_flops(name) or measured
    semi_causal = load(RunConfig, [*METALM, *REPEATABLE])
    found = Findings(
        settings={
            **semi_causal.model.decoder.model_dump(),
            "device": name,
            "peak_flops": peak,
            "peak_is": "nominal" if peak_flops(name) else "measured matrix product",
            "matmul_flops": measured,
            "precision": "bf16 with fp32 master weights",
            "formula": FORMULA,
            "counted": COUNTED,
        },
    )
    for mode, config in (
        ("causal", load(RunConfig, [*METALM, *REPEATABLE, CAUSAL])),
        ("semi-causal", semi_causal),
    ):
        with Subject(config, device) as subject:
            found.contestants[mode] = _fastest(subject, peak)
    return found


def _fastest(subject: "Subject", peak: float) -> dict[str, object]:
    """What was measured at the microbatch that is fastest, of those that fit."""
    best: Measured | None = None
    for sequences in MICRO_BATCHES:
        try:
            measured = subject.measure(sequences=sequences, microbatches=1, peak=peak)
        except torch.OutOfMemoryError:
            break
        if best is not None and (measured.tokens_per_second < best.tokens_per_second * WORTHWHILE):
            break
        best = measured
    if best is None:
        raise RuntimeError("not even one sequence fits: this GPU is too small for the 1.3B")
    return {**asdict(best), "parameters": subject.parameters, "precision": "bf16"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What training steps took.

    Attributes:
        step_seconds: mean, from when the device rests until it rests again.
        tokens_per_second: decoder slots.
        tokens_per_step: of all microbatches.
        sequences: of a microbatch.
        microbatches: of a step.
        mfu: by `FORMULA`.
        mfu_counted: by `COUNTED`.
        memory_bytes: most that was allocated.
        host_seconds: of a step, in which the host does not wait for the device.
        waits: calls of a step by which the host waits for the device.
        forward_seconds: of a step, all microbatches.
        backward_seconds: likewise.
        update_seconds: of a step: norm, clipping, AdamW.
    """

    step_seconds: float
    tokens_per_second: float
    tokens_per_step: int
    sequences: int
    microbatches: int
    mfu: float
    mfu_counted: float
    memory_bytes: int
    host_seconds: float
    waits: float
    forward_seconds: float
    backward_seconds: float
    update_seconds: float


class Subject(contextlib.AbstractContextManager["Subject"]):
    """The model of a run under ZeRO on one device, to be trained on random tokens.

    Args:
        config: of the run; its data are not read.
        device: of this process, which has joined a group.

    Attributes:
        parameters: that train.
        notes: what there is to say of compiling it.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        mesh = build_mesh(config.layout, World.here(device))
        with device:
            model = build_part(config.built_model, config.layout, mesh, seed=None)
        _fill(model)
        self.parameters = num_parameters(model)
        self._decoder_parameters = sum(p.numel() for p in model.decoder.parameters())
        self._engine = build_engine(config, model, mesh)
        self._steps = 0
        self.notes: list[str] = []

    def __exit__(self, *_: object) -> None:
        self._engine.close()
        del self._engine
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def flops_per_token(self) -> int:
        """Operations that `FORMULA` counts."""
        decoder = self._config.model.decoder
        return flops_per_token(
            parameters=self._decoder_parameters,
            num_layers=decoder.num_layers,
            width=decoder.width,
            slots=self._config.data.sequence_tokens,
        )

    def batches(self, *, sequences: int, count: int) -> list[Batch]:
        """Fixed batches on the device, with spans as the run chooses them."""
        config = self._config
        samples = random_samples(
            vocabulary=config.model.decoder.vocabulary,
            sequence_tokens=config.data.sequence_tokens,
            count=count * sequences,
            documents=DOCUMENTS if config.data.attend == "within" else 1,
        )
        collate = build_collator(config, SpecialTokens())
        return [
            collate([(0, sample) for sample in samples[i : i + sequences]]).to(self._device)
            for i in range(0, len(samples), sequences)
        ]

    def measure(
        self, *, sequences: int, microbatches: int, peak: float, steps: int = TIMED_STEPS
    ) -> Measured:
        """Time steps, then look at some more through instruments.

        Args:
            sequences: of a microbatch.
            microbatches: of a step.
            peak: operations a second that are the whole of MFU.
            steps: that are timed.
        """
        device = self._device
        given = self.batches(sequences=sequences, count=max(NUM_BATCHES, microbatches))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = engine_step(self._engine, given, at_once=microbatches)
        for _ in range(WARMUP_STEPS):
            step()
        self._take_note(WARMUP_STEPS)
        seconds = timed(step, device, repeats=steps)
        tokens = sequences * self._config.data.sequence_tokens * microbatches
        counted = sum(flops.training(self._config.built_model, each.to(CPU)) for each in given)
        memory_bytes = peak_memory_bytes()
        looked_at = range(LOOKED_AT_STEPS)
        with timing_parts(self._engine, device) as parts:
            for _ in looked_at:
                step()
        with counting_waits(device) as waits:
            whole = timed(step, device, repeats=len(looked_at), resting=False)
        count = len(looked_at)
        self._take_note(steps + 2 * count)
        return Measured(
            step_seconds=seconds,
            tokens_per_second=tokens / seconds,
            tokens_per_step=tokens,
            sequences=sequences,
            microbatches=microbatches,
            mfu=tokens / seconds * self.flops_per_token / peak,
            mfu_counted=counted / len(given) * microbatches / seconds / peak,
            memory_bytes=memory_bytes,
            host_seconds=whole - waits.seconds / count,
            waits=waits.calls / count,
            forward_seconds=parts.forward / count,
            backward_seconds=parts.backward / count,
            update_seconds=parts.update / count,
        )

    def _take_note(self, steps: int) -> None:
        self._steps += steps
        self.notes += news(self._engine.module, step=self._steps)


CPU = torch.device("cpu")


def timed(
    work: Callable[[], object], device: torch.device, *, repeats: int, resting: bool = True
) -> float:
    """Mean seconds, from when the device rests until it rests again, or until the host goes on."""
    rest(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    if resting:
        rest(device)
    return (time.perf_counter() - started) / repeats


def rest(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Plausible weights made where they lie; our own initialiser draws on the host, for minutes."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0, INIT_STD)
        if isinstance(module, nn.Linear):
            module.bias.zero_()


def matmul_flops(device: torch.device, *, size: int = 8192) -> float:
    """Operations a second of a large bf16 matrix product: what this device reaches at best."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _warm(lambda: torch.mm(a, b), device)


def copy_bytes(device: torch.device, *, size_bytes: int = 1 << 30) -> float:
    """Bytes a second that a large copy reads and writes in the device's own memory."""
    a = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size_bytes / _warm(lambda: b.copy_(a), device)


def _warm(work: Callable[[], object], device: torch.device) -> float:
    timed(work, device, repeats=2)
    return timed(work, device, repeats=20)
