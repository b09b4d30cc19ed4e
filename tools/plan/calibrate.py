"""`python -m tools.plan calibrate`: this machine's rates, measured in about a minute."""

import os
import sys
import time
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist
from rich.table import Table

from model.semicausal import ModelConfig
from parallel.engine import build_part
from parallel.launch import World, join, multiplies_bf16, processor_name
from parallel.mesh import LayoutConfig, Mesh, build_mesh
from parallel.zero.config import Precision
from tools.arguments import Parser, local_path, require_writable
from tools.command import write_json
from tools.plan.machines import (
    KINDS,
    ZERO_RATES,
    Links,
    Machine,
    MachineKind,
    Rates,
    RatesAt,
    calibration_path,
    nominal,
)
from tools.plan.measure import batches_of, engine_of, measured_task
from tools.plan.rates import (
    CPU,
    CUDA,
    DTYPES,
    NUM_BLOCKS,
    Sizes,
    compute_rates,
    group_links,
    seconds_of,
    small_decoder,
    trained_seconds,
)
from tools.plan.step_time import UPDATE_BYTES
from tools.plan.table import console
from tools.plan.task import Candidate, Task
from tools.random_batches import SEED
from tools.ranks import run_ranks
from train.step import train_step

TIMEOUT_SECONDS = 300.0
WIDTHS = (64, 512)
"""Of the models that ZeRO is timed with."""
BUSY_LOAD = 0.6
"""Load average above which timings are not worth much."""


def main(arguments: list[str]) -> int:
    """Measure, keep, and say what was found.

    Raises:
        ConfigError: the file for the rates cannot be written.
        RanksFailed: a process failed or hung.
    """
    parser = Parser(prog="python -m tools.plan calibrate", description=__doc__)
    parser.add_argument("--gpu", choices=KINDS, help="what this machine is; needed with GPUs")
    parser.add_argument("--calibration", type=local_path, help="where to keep it")
    options = parser.parse_args(arguments)
    has_gpus = torch.cuda.is_available()
    if has_gpus == (options.gpu in (None, "cpu")):
        parser.error("--gpu must say which GPU this is" if has_gpus else "there is no GPU here")
    kind: MachineKind = options.gpu or "cpu"
    path = options.calibration or calibration_path(kind)
    require_writable(path)
    started = time.perf_counter()
    if os.getloadavg()[0] > BUSY_LOAD and not has_gpus:
        sys.stderr.write(
            f"the machine is busy (load {os.getloadavg()[0]:.1f}): rates will be low\n"
        )
    machine = measure(kind)
    _show(machine, seconds=time.perf_counter() - started)
    write_json(path, machine.model_dump(mode="json"))
    console().print(f"kept in {path}", markup=False)
    return 0


def measure(kind: MachineKind) -> Machine:
    """Time everything in processes of its own.

    Raises:
        RanksFailed: a process failed or hung.
    """
    memory_bytes, cores = float(psutil.virtual_memory().total), os.cpu_count() or 1
    preset = nominal(kind, cores=cores, memory_bytes=memory_bytes)
    on_cpu = kind == "cpu"
    sizes = CPU if on_cpu else CUDA
    precisions: list[Precision] = ["fp32"]
    if not on_cpu or multiplies_bf16():
        precisions.append("bf16")
    alone = run_ranks(
        alone_rates,
        precisions,
        sizes,
        ranks=1,
        threads=1 if on_cpu else 4,
        timeout_seconds=TIMEOUT_SECONDS,
        cuda=not on_cpu,
    )
    rates = {1: alone}
    found: dict[str, Any] = {"measured": True}
    if on_cpu:
        found["device"] = f"one thread of {processor_name()}"
        found["peak_flops"] = {p: max(rate for _, rate in alone[p].products) for p in precisions}
    else:
        properties = torch.cuda.get_device_properties(0)
        found["device"] = f"{properties.name} (its links by data sheet)"
        found["memory_bytes"] = float(properties.total_memory)
    if on_cpu and cores > 1:
        found["within_node"], together = run_ranks(
            joint_rates, precisions, sizes, ranks=2, timeout_seconds=TIMEOUT_SECONDS
        )
        rates[2] = {p: _as_busy(together[p], alone[p]) for p in precisions}
    found["rates"] = [
        RatesAt(precision=precision, busy_ranks=busy_ranks, rates=measured)
        for busy_ranks, by_precision in rates.items()
        for precision, measured in by_precision.items()
    ]
    return preset.model_copy(update=found)


def alone_rates(precisions: list[Precision], sizes: Sizes) -> dict[Precision, Rates]:
    """Rates of one rank that is alone, ZeRO's included."""
    if torch.cuda.is_available():
        join(timeout_seconds=TIMEOUT_SECONDS)
    return {p: _with_engines(compute_rates(p, sizes), p, sizes) for p in precisions}


def joint_rates(precisions: list[Precision], sizes: Sizes) -> tuple[Links, dict[Precision, Rates]]:
    """Links, and rates of ranks that are all busy, ZeRO's left out."""
    assert dist.get_world_size() > 1
    return group_links(), {p: compute_rates(p, sizes) for p in precisions}


def _with_engines(rates: Rates, precision: Precision, sizes: Sizes) -> Rates:
    """Adds what ZeRO does to gradients and weights: steps of next to no tokens, at each stage."""
    plain = [_plain_seconds(precision, sizes, width=width) for width in WIDTHS]
    by_stage: list[tuple[float, ...]] = []
    for stage in range(4):
        if stage == 0 and precision == "bf16":
            continue  # it becomes stage 1
        step: list[tuple[int, float]] = []
        microbatch: list[tuple[int, float]] = []
        for width, alone in zip(WIDTHS, plain, strict=True):
            elements, one, three = _engine_seconds(precision, sizes, stage=stage, width=width)
            each = (three - one) / 2
            step.append((elements, one - each - elements * UPDATE_BYTES / rates.update))
            microbatch.append((elements, each - alone))
        by_stage.append((*_line(step), *_line(microbatch)))
    if precision == "bf16":
        by_stage.insert(0, by_stage[0])
    found: dict[str, Any] = dict(
        zip(ZERO_RATES, map(list, zip(*by_stage, strict=True)), strict=True)
    )
    found["microbatch_seconds"] = max(0.0, plain[0] - NUM_BLOCKS * rates.block_seconds)
    return rates.model_copy(update=found)


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Seconds an element and seconds a block, neither negative."""
    (few, quick), (many, slow) = points
    slope = max(0.0, (slow - quick) / (many - few))
    return slope, max(0.0, quick - slope * few) / NUM_BLOCKS


def _as_busy(busy: Rates, alone: Rates) -> Rates:
    """Adds ZeRO's; its copies are slowed by others as the update is: both wait for memory."""
    slower = max(1.0, alone.update / busy.update)
    found: dict[str, Any] = {"microbatch_seconds": alone.microbatch_seconds}
    for name in ZERO_RATES:
        factor = slower if "element" in name else 1.0
        found[name] = [seconds * factor for seconds in getattr(alone, name)]
    return busy.model_copy(update=found)


def _trial(precision: Precision, *, width: int, stage: int) -> tuple[Task, Candidate, Mesh]:
    task = measured_task(
        ModelConfig(decoder=small_decoder(width), encoders={}),
        precision=precision,
        sequences=3,
        sequence_tokens=16,
        span_share=0.0,
    )
    layout = LayoutConfig(split=[NUM_BLOCKS])
    candidate = Candidate(layout=layout, data=1, stage=stage, micro_sequences=1, num_microbatches=3)
    return task, candidate, build_mesh(layout, World.here())


def _engine_seconds(
    precision: Precision, sizes: Sizes, *, stage: int, width: int
) -> tuple[int, float, float]:
    """Elements that train, and the time of steps of one and of three microbatches."""
    task, candidate, mesh = _trial(precision, width=width, stage=stage)
    engine = engine_of(task, candidate, mesh)
    given = [batch.to(mesh.world.device) for batch in batches_of(task, candidate, mesh)[:3]]
    train_step(engine, given)  # makes AdamW's state
    one, three = (
        seconds_of(partial(train_step, engine, given[:n]), at_least=sizes.seconds) for n in (1, 3)
    )
    engine.close()
    return task.share(candidate, 0).trained, one, three


def _plain_seconds(precision: Precision, sizes: Sizes, *, width: int) -> float:
    """Forward and backward without an engine."""
    task, candidate, mesh = _trial(precision, width=width, stage=0)
    model = build_part(task.model, candidate.layout, mesh, seed=SEED)
    model = model.to(device=mesh.world.device, dtype=DTYPES[precision])
    batch = batches_of(task, candidate, mesh)[0].to(mesh.world.device)
    return trained_seconds(lambda: model(batch).total, model, at_least=sizes.seconds)


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
