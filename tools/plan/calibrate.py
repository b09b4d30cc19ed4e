"""`python -m tools.plan calibrate`: this machine's rates, measured in about a minute."""

import argparse
import os
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from rich.table import Table

from model.decoder import DecoderConfig
from model.semicausal import ModelConfig, SemiCausal
from parallel.launch import join, multiplies_bf16
from parallel.mesh import LayoutConfig
from parallel.zero.config import Precision, ZeroConfig
from tools.bench.processes import ProcessFailed, in_processes
from tools.bench.training import build
from tools.plan.machines import (
    KINDS,
    Links,
    Machine,
    MachineKind,
    Rates,
    RatesAt,
    calibration_path,
    nominal,
    write_machine,
)
from tools.plan.measure import Trial, batches_of, engine_of, mesh_of, train_step
from tools.plan.rates import (
    CPU,
    CUDA,
    DTYPES,
    Sizes,
    StageRates,
    Timed,
    compute_rates,
    group_links,
    seconds_of,
)
from tools.plan.step_time import UPDATE_BYTES
from tools.plan.table import console

TIMEOUT_SECONDS = 300.0
NARROW, WIDE = 64, 512
"""Widths of the models that ZeRO is timed with."""
NUM_BLOCKS = 4
BUSY_LOAD = 0.6
"""Load average above which timings are not worth much."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, keep, and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m tools.plan calibrate", description=__doc__)
    parser.add_argument("--gpu", choices=KINDS, help="what this machine is; needed with GPUs")
    parser.add_argument("--calibration", type=Path, help="where to keep it")
    options = parser.parse_args(arguments)
    has_gpus = torch.cuda.is_available()
    if has_gpus == (options.gpu in (None, "cpu")):
        parser.error("--gpu must say which GPU this is" if has_gpus else "there is no GPU here")
    kind: MachineKind = options.gpu or "cpu"
    started = time.perf_counter()
    if os.getloadavg()[0] > BUSY_LOAD and not has_gpus:
        sys.stderr.write(
            f"the machine is busy (load {os.getloadavg()[0]:.1f}): rates will be low\n"
        )
    try:
        machine = measure(kind)
    except ProcessFailed as error:
        sys.stderr.write(f"calibration failed: {error}\n")
        return 1
    path = options.calibration or calibration_path(kind)
    _show(machine, seconds=time.perf_counter() - started)
    try:
        write_machine(machine, path)
    except OSError as error:
        sys.stderr.write(f"{path}: cannot be written: {error.strerror}\n")
        return 1
    console().print(f"kept in {path}", markup=False)
    return 0


def measure(kind: MachineKind, *, sizes: Sizes | None = None) -> Machine:
    """Time everything in processes of its own.

    Args:
        kind: what this machine is.
        sizes: what is timed; default: by the device.

    Raises:
        ProcessFailed: a process failed or hung.
    """
    if kind != "cpu":
        return _measure_gpu(kind, sizes or CUDA)
    sizes = sizes or CPU
    cores = os.cpu_count() or 1
    memory_bytes = float(psutil.virtual_memory().total)
    preset = nominal("cpu", cores=cores, memory_bytes=memory_bytes)
    precisions: list[Precision] = ["fp32", *(["bf16"] if multiplies_bf16() else [])]
    alone = in_processes(
        alone_rates, precisions, sizes, ranks=1, threads=1, timeout_seconds=TIMEOUT_SECONDS
    )
    entries = [
        RatesAt(precision=precision, busy_ranks=1, rates=rates)
        for precision, rates in alone.items()
    ]
    links = preset.within_node
    if cores > 1:
        links, together = in_processes(
            joint_rates, precisions, sizes, ranks=2, threads=1, timeout_seconds=TIMEOUT_SECONDS
        )
        entries += [
            RatesAt(precision=p, busy_ranks=2, rates=_as_busy(timed, alone[p]))
            for p, timed in together.items()
        ]
    peaks = {p: max(rate for _, rate in alone[p].products) for p in precisions}
    return preset.model_copy(
        update={
            "device": f"one thread of {_processor()}",
            "measured": True,
            "peak_flops": peaks,
            "rates": entries,
            "within_node": links,
        }
    )


def _measure_gpu(kind: MachineKind, sizes: Sizes) -> Machine:
    precisions: list[Precision] = ["fp32", "bf16"]
    found = in_processes(
        gpu_rates,
        precisions,
        sizes,
        ranks=1,
        threads=4,
        timeout_seconds=TIMEOUT_SECONDS,
        cuda=True,
    )
    properties = torch.cuda.get_device_properties(0)
    return nominal(kind).model_copy(
        update={
            "device": f"{properties.name} (its links by data sheet)",
            "measured": True,
            "memory_bytes": float(properties.total_memory),
            "rates": [
                RatesAt(precision=precision, busy_ranks=1, rates=rates)
                for precision, rates in found.items()
            ],
        }
    )


def gpu_rates(precisions: list[Precision], sizes: Sizes) -> dict[Precision, Rates]:
    """Rates of one GPU."""
    join(timeout_seconds=TIMEOUT_SECONDS)
    return alone_rates(precisions, sizes)


def alone_rates(precisions: list[Precision], sizes: Sizes) -> dict[Precision, Rates]:
    """Rates of one rank that is alone, ZeRO's included."""
    return {p: _with_engines(compute_rates(p, sizes), p, sizes) for p in precisions}


def joint_rates(precisions: list[Precision], sizes: Sizes) -> tuple[Links, dict[Precision, Timed]]:
    """Links, and rates of ranks that are all busy."""
    assert dist.get_world_size() > 1
    return group_links(), {p: compute_rates(p, sizes) for p in precisions}


def _with_engines(timed: Timed, precision: Precision, sizes: Sizes) -> Rates:
    """Adds what ZeRO does to gradients and weights: steps of next to no tokens, at each stage."""
    plain = {width: _plain_seconds(precision, sizes, width=width) for width in (NARROW, WIDE)}
    overhead = max(0.0, plain[NARROW] - NUM_BLOCKS * timed.block_seconds)
    by_stage: list[StageRates] = []
    for stage in range(4):
        if stage == 0 and precision == "bf16":
            continue  # it becomes stage 1
        step: list[tuple[int, float]] = []
        microbatch: list[tuple[int, float]] = []
        for width in (NARROW, WIDE):
            one, three = _engine_seconds(precision, sizes, stage=stage, width=width)
            elements = _elements(_tiny(width))
            each = (three - one) / 2
            step.append((elements, one - each - elements * UPDATE_BYTES / timed.update))
            microbatch.append((elements, each - plain[width]))
        by_stage.append(StageRates(*_line(step), *_line(microbatch)))
    if precision == "bf16":
        by_stage.insert(0, by_stage[0])
    return timed.rates(microbatch_seconds=overhead, by_stage=by_stage)


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Seconds an element and seconds a block, neither negative."""
    (few, quick), (many, slow) = points
    slope = max(0.0, (slow - quick) / (many - few))
    return slope, max(0.0, quick - slope * few) / NUM_BLOCKS


def _as_busy(timed: Timed, alone: Rates) -> Rates:
    """ZeRO's copies are slowed by others as the update is: both wait for memory."""
    slower = max(1.0, alone.update / timed.update)
    by_stage = [
        StageRates(step * slower, step_block, microbatch * slower, microbatch_block)
        for step, step_block, microbatch, microbatch_block in zip(
            alone.step_element_seconds,
            alone.step_block_seconds,
            alone.microbatch_element_seconds,
            alone.microbatch_block_seconds,
            strict=True,
        )
    ]
    return timed.rates(microbatch_seconds=alone.microbatch_seconds, by_stage=by_stage)


def _tiny(width: int) -> ModelConfig:
    decoder = DecoderConfig(
        vocabulary=512,
        width=width,
        num_layers=NUM_BLOCKS,
        heads=width // 64,
        feed_forward=4 * width,
        max_tokens=16,
    )
    return ModelConfig(decoder=decoder, encoders={})


def _trial(precision: Precision, *, width: int, stage: int) -> Trial:
    model = _tiny(width)
    return Trial(
        model=model,
        layout=LayoutConfig(),
        split=(model.decoder.num_layers,),
        zero=ZeroConfig.model_validate({"stage": stage}),
        precision=precision,
        ranks=1,
        micro_sequences=1,
        num_microbatches=3,
        sequence_tokens=16,
        span_share=0.0,
    )


def _engine_seconds(
    precision: Precision, sizes: Sizes, *, stage: int, width: int
) -> tuple[float, float]:
    """Steps of one and of three microbatches."""
    trial = _trial(precision, width=width, stage=stage)
    mesh = mesh_of(trial)
    engine = engine_of(trial, mesh)
    given = [b.to(mesh.world.device) for b in batches_of(trial, mesh)[:3]]
    train_step(engine, given)  # makes AdamW's state
    one, three = (
        seconds_of(lambda n=n: train_step(engine, given[:n]), at_least=sizes.seconds)
        for n in (1, 3)
    )
    engine.close()
    return one, three


def _plain_seconds(precision: Precision, sizes: Sizes, *, width: int) -> float:
    """Forward and backward without an engine."""
    trial = _trial(precision, width=width, stage=0)
    mesh = mesh_of(trial)
    model = build(trial.model).to(device=mesh.world.device, dtype=DTYPES[precision])
    batch = batches_of(trial, mesh)[0].to(mesh.world.device)

    def both() -> None:
        model(batch).total.backward()
        model.zero_grad(set_to_none=True)

    return seconds_of(both, at_least=sizes.seconds)


def _elements(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in SemiCausal(config).parameters())


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "this processor"


def _show(machine: Machine, *, seconds: float) -> None:
    table = Table(title=f"{machine.device}, measured in {seconds:.0f} s", title_justify="left")
    table.add_column("rate")
    for entry in machine.rates:
        table.add_column(f"{entry.precision}, {entry.busy_ranks} busy", justify="right")
    rows = {
        "products, largest": lambda r: f"{r.products[-1][1] / 1e9:,.0f} GFLOP/s",
        "attention": lambda r: f"{r.attention / 1e9:,.0f} GFLOP/s",
        "span attention": lambda r: f"{r.span_attention / 1e9:,.1f} GFLOP/s",
        "element-wise": lambda r: f"{r.elementwise / 1e9:,.1f} GB/s",
        "logits": lambda r: f"{r.logits / 1e9:,.1f} GB/s",
        "AdamW": lambda r: f"{r.update / 1e9:,.1f} GB/s",
        "call of a block": lambda r: f"{r.block_seconds * 1e3:.2f} ms",
        "microbatch": lambda r: f"{r.microbatch_seconds * 1e3:.2f} ms",
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(entry.rates) for entry in machine.rates))
    out = console()
    out.print(table)
    reduce = machine.within_node.reduce
    out.print(
        f"all-reduce: {reduce.latency_seconds * 1e6:.0f} us + {reduce.bytes_per_second / 1e9:.2f} "
        "GB/s",
        markup=False,
    )
