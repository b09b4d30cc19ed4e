"""`--dry-run`: build everything, run one batch, say what it takes."""

import time
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from parallel.compiled import in_words
from parallel.launch import World, peak_memory_bytes
from parallel.mesh import Mesh
from train.build import build_feed, parameters_by_part
from train.config import RunConfig
from train.data.document import Kind
from train.loop import asker, pass_over
from train.prepare import agreed, prepare
from train.saves import disks_of
from train.step import reseed, train_step
from train.watch.metrics import GIB_BYTES


def dry_run(config: RunConfig, world: World) -> int:
    """Run one step without touching the run directory; every rank must call it."""
    started = time.perf_counter()
    disks_of(config)  # what is wrong with them is told here, too
    run = prepare(config, world)
    config = run.config
    asker(config, run)
    built_seconds = time.perf_counter() - started
    run.engine.set_learning_rate(config.optim.lr)
    with build_feed(config, run.plan, run.collate, run.engine.mesh) as feed:
        reseed(config.seed, step=1, mesh=run.engine.mesh)
        started = time.perf_counter()
        data = feed.try_step(1)
        result = train_step(run.engine, data if isinstance(data, Exception) else data.batches)
        step_seconds = time.perf_counter() - started
        assert not isinstance(data, Exception)
        loss, note = f"{result.averages.loss:.4f}", None
        if result.averages.scored_tokens == 0:
            loss, note = "none", agreed(partial(pass_over, config, feed, data, step=1))
    run.engine.close()
    if world.is_main:
        kind = "GPU" if torch.cuda.is_available() else "resident"
        counts = parameters_by_part(config)
        slots = {
            f"slots of one {name}": str(
                part.connector.item_slots or f"{part.longest_span:,} at most"
            )
            for name, part in config.built_model.encoders.items()
            if config.spans[name].medium != Kind.TEXT_SPAN
        }
        rows = {f"parameters, {part}": f"{count:,}" for part, count in counts.items()}
        rows |= slots | {
            "parameters that train, rank 0": f"{run.num_trainable:,}",
            "tensor x pipeline x data": _layout(config, run.engine.mesh),
            "precision, ZeRO stage": f"{config.precision}, {config.zero.stage}",
            "blocks": in_words(run.engine.module),
            "first loss": loss,
            "seconds to build, for the step": f"{built_seconds:.1f}, {step_seconds:.1f}",
            f"peak {kind} memory of rank 0": f"{peak_memory_bytes() / GIB_BYTES:.2f} GiB",
        }
        table = Table("what", "value", title=f"dry run of {config.name}", title_justify="left")
        for row in rows.items():
            table.add_row(*row)
        console = Console()
        console.print(table)
        if note is not None:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    return 0


def _layout(config: RunConfig, mesh: Mesh) -> str:
    micro = config.micro_sequences
    num_microbatches = config.batch.sequences // (mesh.data_size * micro)
    degrees = f"{mesh.tensor_size} x {mesh.pipeline_size} x {mesh.data_size}"
    return f"{degrees}; {num_microbatches} microbatches of {micro} sequences"
