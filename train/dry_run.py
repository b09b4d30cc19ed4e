"""`--dry-run`: build everything, run one batch, say what it takes."""

import time

import torch
from rich.console import Console
from rich.table import Table

from model.semicausal import parameter_counts
from parallel.launch import World
from parallel.mesh import Mesh, build_mesh
from train.build import (
    build_collator,
    build_engine,
    build_feed,
    build_model,
    build_plan,
    open_sources,
)
from train.config import RunConfig
from train.loop import peak_memory_bytes
from train.step import reseed, train_step
from train.watch.metrics import GIB_BYTES


def dry_run(config: RunConfig, world: World) -> int:
    """Run one step without touching the run directory; every rank must call it."""
    started = time.perf_counter()
    sources = open_sources(config)
    mesh = build_mesh(config.layout, world)
    model = build_model(config, mesh)
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    engine = build_engine(config, model, mesh)
    built_seconds = time.perf_counter() - started
    engine.set_learning_rate(config.optim.lr)
    collate = build_collator(config, sources.special)
    with build_feed(config, build_plan(config, sources), collate, mesh) as feed:
        reseed(config.seed, step=1, mesh=mesh)
        started = time.perf_counter()
        result = train_step(engine, feed.step(1).batches)
        step_seconds = time.perf_counter() - started
    engine.close()
    if world.is_main:
        table = Table("what", "value", title=f"dry run of {config.name}", title_justify="left")
        for part, count in parameter_counts(config.built_model).items():
            table.add_row(f"parameters, {part}", f"{count:,}")
        table.add_row("parameters that train, rank 0", f"{num_trainable:,}")
        table.add_row("tensor x pipeline x data", _layout(config, mesh))
        table.add_row("precision, ZeRO stage", f"{config.precision}, {config.zero.stage}")
        table.add_row("first loss", f"{result.averages.loss:.4f}")
        table.add_row("seconds to build, for the step", f"{built_seconds:.1f}, {step_seconds:.1f}")
        kind = "GPU" if torch.cuda.is_available() else "resident"
        table.add_row(f"peak {kind} memory of rank 0", f"{peak_memory_bytes() / GIB_BYTES:.2f} GiB")
        Console().print(table)
    return 0


def _layout(config: RunConfig, mesh: Mesh) -> str:
    micro = config.batch.micro_sequences
    num_microbatches = config.batch.sequences // (mesh.data_size * micro)
    degrees = f"{mesh.tensor_size} x {mesh.pipeline_size} x {mesh.data_size}"
    return f"{degrees}; {num_microbatches} microbatches of {micro} sequences"
