"""The training loop: load, step, note, validate, save, stop."""

import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parallel.agreement import gathered
from parallel.launch import World, peak_memory_bytes
from parallel.mesh import Mesh, straddling_warning
from train.build import build_feed
from train.checkpoint.directory import Retention
from train.checkpoint.saver import Saver
from train.config import RunConfig
from train.data.ledger import LedgerWriter, Start, next_start
from train.data.plan import StepPlan
from train.data.sources import Sources
from train.evaluate import validate
from train.optim import learning_rate
from train.preemption import EXIT_CODE, Preemption
from train.prepare import agreed, agreed_on_main, checkpoints_of, claim, find_saved, prepare
from train.run_directory import RunDirectory
from train.step import StepResult, reseed, train_step
from train.watch.metrics import TrainRecord
from train.watch.monitor import Monitor
from train.wrap_up import look_at_data, say_complete, wrap_up, write_samples


def train(config: RunConfig, world: World, *, imported: float) -> int:
    """Run until the last step, or until a signal asks to stop; every rank must call it.

    Args:
        config: with its precision resolved.
        world: this process among all.
        imported: `time.perf_counter()` when imports had ended.

    Returns:
        0 when the run is complete, `preemption.EXIT_CODE` when it stopped early and saved.
    """
    preemption = Preemption()
    directory = RunDirectory(Path(config.run_directory))
    lock = agreed(lambda: directory.hold() if world.is_main else None)
    saved = agreed_on_main(world, lambda: find_saved(config, directory))
    if saved is not None and saved.step >= config.steps:
        if world.is_main:
            say_complete(config, directory, saved.path)
        return 0
    run = prepare(config, world, saved=saved)
    engine, sources, plan, mesh = run.engine, run.sources, run.plan, run.mesh
    # Only now is the directory this run's: what failed so far can be mended and tried again.
    agreed(lambda: claim(config, lock) if lock is not None else None)
    first_step = 0 if saved is None else saved.step
    monitor = Monitor(
        directory,
        run_name=config.name,
        config=config.model_dump(mode="json"),
        watch=config.watch,
        first_step=first_step,
        total_steps=config.steps,
        rank=world.rank,
        num_ranks=world.size,
        precision=config.precision,
        num_parameters=run.num_parameters,
        wandb_run_id=None if saved is None else saved.state["wandb_run_id"],
    )
    validated = partial(
        validate,
        sources,
        run.collate,
        engine,
        sequences=config.validation.sequences,
        micro_sequences=config.batch.micro_sequences,
    )
    state = partial(state_of, config, sources, monitor.wandb_run_id)
    ledger = open_ledger(config, directory, plan, mesh, first_step=first_step)
    saver = Saver(
        checkpoints_of(config, directory),
        retention=Retention(
            keep=config.checkpoint.keep, keep_every_steps=config.checkpoint.keep_every_steps
        ),
        asynchronous=config.checkpoint.asynchronous,
    )
    warning = next(filter(None, gathered(straddling_warning(mesh))), None)
    seconds_to_first_step: float | None = None
    stopped = False
    with monitor, saver, build_feed(config, plan, run.collate, mesh) as feed:
        entropy = agreed_on_main(world, lambda: look_at_data(config, directory, run))
        for note in (warning, None if saved is None else f"continuing from {saved.path}"):
            if note is not None:
                monitor.note(note)
        monitor.baseline(entropy)
        if first_step % config.validation.every_steps == 0:
            # Before any step, or where a stop may have cut it short.
            monitor.validation(validated(step=first_step))
        for step in range(first_step + 1, config.steps + 1):
            started = time.perf_counter()
            reseed(config.seed, step=step, mesh=mesh)
            lr = learning_rate(config.optim, step=step, total_steps=config.steps)
            engine.set_learning_rate(lr)
            data = feed.try_step(step)
            if ledger is not None and ledger.fault is not None:
                data = ledger.fault
            result = train_step(
                engine,
                data if isinstance(data, Exception) else data.batches,
                stop=preemption.requested,
            )
            finished = time.perf_counter()
            assert not isinstance(data, Exception)
            if ledger is not None:
                ledger.add(step, data)
            if seconds_to_first_step is None:
                seconds_to_first_step = finished - imported
            waited = feed.wait_seconds
            monitor.train(
                record_of(config, step, result, lr=lr, seconds=finished - started, waited=waited)
            )
            is_last = step == config.steps
            if is_last or (step % config.validation.every_steps == 0 and not result.stop):
                monitor.validation(validated(step=step))
            if is_last or result.stop or step % config.checkpoint.every_steps == 0:
                agreed(lambda: ledger.settle() if ledger is not None else None)
                lost = saver.save(engine, state(step, data.position), step=step)
                if lost is not None:
                    monitor.note(f"{lost}; the checkpoint of step {step} is tried instead")
                if config.samples.prompts and not result.stop:
                    latest = saver.finish()  # samples are the words of what was saved
                    if world.is_main:
                        assert latest is not None
                        write_samples(config, latest, monitor, step=step, device=world.device)
            if result.stop and not is_last:
                saver.finish()
                monitor.note(f"stopped after step {step} on a signal; run again to continue")
                stopped = True
                break
    latest = saver.finish()
    preemption.ignore()
    engine.close()
    if stopped:
        return EXIT_CODE
    if world.is_main:
        assert latest is not None
        wrap_up(config, directory, latest, seconds_to_first_step=seconds_to_first_step)
    if lock is not None:
        lock.release()
    return 0


def open_ledger(
    config: RunConfig, directory: RunDirectory, plan: StepPlan, mesh: Mesh, *, first_step: int
) -> LedgerWriter | None:
    """This rank's ledger of what it reads; None where another rank reads the same.

    Raises:
        UserError: some rank's cannot be written; every rank must call it.
    """
    start = agreed_on_main(mesh.world, lambda: next_start(directory.ledger))

    def begin() -> LedgerWriter | None:
        if not mesh.speaks_for_sample:
            return None
        about = Start(
            start=start,
            first_step=first_step,
            rank=mesh.data_rank,
            ranks=mesh.data_size,
            entries=plan.entries,
        )
        limit_bytes = int(config.data.ledger_mib * 2**20)
        return LedgerWriter(directory.ledger, about, limit_bytes=limit_bytes)

    return agreed(begin)


def state_of(
    config: RunConfig,
    sources: Sources,
    wandb_run_id: str,
    step: int,
    position: dict[str, Any],
) -> dict[str, Any]:
    """What a checkpoint keeps beside the tensors."""
    return {
        "step": step,
        "sequences_consumed": step * config.batch.sequences,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "wandb_run_id": wandb_run_id,
        "tokenizer_sha256": sources.tokenizer_sha256,
        "corpus_fingerprint": sources.fingerprint,
        "data": position,
        "code_version": version("semicausal"),
    }


def record_of(
    config: RunConfig, step: int, result: StepResult, *, lr: float, seconds: float, waited: float
) -> TrainRecord:
    """What is noted of a step."""
    return TrainRecord(
        step=step,
        loss=result.averages.loss,
        first_of_span_loss=result.averages.first_of_span,
        other_loss=result.averages.other,
        learning_rate=lr,
        gradient_norm=result.gradient_norm,
        tokens=config.batch.sequences * config.data.sequence_tokens,
        scored_tokens=result.averages.scored_tokens,
        step_seconds=seconds,
        data_wait_seconds=waited,
        memory_bytes=peak_memory_bytes(),
    )
