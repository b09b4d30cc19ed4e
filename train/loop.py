"""The training loop: load, step, check, log, validate, save, stop."""

import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from parallel.agreement import gathered, on_all_ranks
from parallel.launch import World, total
from parallel.mesh import build_mesh, straddling_warning
from train.build import (
    build_collator,
    build_engine,
    build_feed,
    build_model,
    build_plan,
    count_parameters,
    open_sources,
)
from train.checkpoint import restore as checkpoint
from train.config import RunConfig
from train.data.ledger import LedgerWriter, Start, next_start
from train.data.sources import Sources
from train.errors import CheckpointError, DataError, RunDirectoryError
from train.evaluate import validate
from train.optim import learning_rate
from train.preemption import EXIT_CODE, Preemption
from train.run_directory import (
    CHECKPOINTS,
    SUMMARY,
    TOKENIZER,
    claim,
    hold,
    refuse_other_run,
)
from train.step import reseed, train_step
from train.storage.place import Place
from train.watch.metrics import TrainRecord
from train.watch.monitor import Monitor
from train.wrap_up import unigram_baseline, wrap_up, write_samples


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
    directory = Path(config.run_directory)
    checkpoints = checkpoints_of(config)
    lock = on_all_ranks(lambda: hold(directory) if world.is_main else None, RunDirectoryError)
    # What the first rank sees, all see: another answer from a shared store would part them.
    found = on_all_ranks(lambda: newest(checkpoints) if world.is_main else None, CheckpointError)
    latest: Place | None = None
    state: dict[str, Any] = {"step": 0, "wandb_run_id": None}
    if (first := gathered(found)[0]) is not None:
        latest, state = first
    if latest is not None:
        # A directory of checkpoints may be shared, a run's own may have been copied into.
        refuse_other_run(config, state["config"], str(latest))
    if latest is not None and int(state["step"]) >= config.steps:
        if world.is_main:
            if not (directory / SUMMARY).exists():  # it was killed on its last steps
                wrap_up(config, directory, latest, seconds_to_first_step=None)
            sys.stdout.write(f"{directory} is complete: {latest.name} is its last checkpoint\n")
        return 0
    sources = on_all_ranks(lambda: open_sources(config), DataError)
    collate = build_collator(config, sources.special)
    plan = build_plan(config, sources)
    if config.init_from is not None:
        source = checkpoint.resolve(Place.parse(config.init_from, config.storage))
        refuse_other_corpus(sources, checkpoint.read_state(source), source)
    mesh = build_mesh(config.layout, world)
    warning = next(filter(None, gathered(straddling_warning(mesh))), None)
    model = build_model(config, mesh)
    num_parameters = count_parameters(config, model)
    engine = build_engine(config, model, mesh)

    if latest is not None:
        state = checkpoint.restore(latest, engine)
        refuse_other_corpus(sources, state, latest, resuming=True)
    first_step = int(state["step"])
    if "data" in state:
        plan.start_at(state["data"], step=first_step)

    # Only now is the directory this run's: what failed so far can be mended and tried again.
    if lock is not None:
        claim(config, lock)
    total(0)
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
        num_parameters=num_parameters,
        wandb_run_id=state["wandb_run_id"],
    )

    def validate_now(step: int) -> None:
        monitor.validation(
            validate(
                sources,
                collate,
                engine,
                sequences=config.validation.sequences,
                micro_sequences=config.batch.micro_sequences,
                step=step,
            )
        )

    start = gathered(next_start(directory) if world.is_main else 0)[0]

    def open_ledger() -> LedgerWriter | None:
        if not mesh.speaks_for_sample:
            return None  # another rank reads the same
        about = Start(
            start=start,
            first_step=first_step,
            rank=mesh.data_rank,
            ranks=mesh.data_size,
            entries=plan.entries,
        )
        return LedgerWriter(directory, about, limit_bytes=int(config.data.ledger_mib * 2**20))

    ledger = on_all_ranks(open_ledger, RunDirectoryError)
    saver = checkpoint.Saver(
        checkpoints,
        retention=checkpoint.Retention(
            keep=config.checkpoint.keep, keep_every_steps=config.checkpoint.keep_every_steps
        ),
        asynchronous=config.checkpoint.asynchronous,
    )

    def save(step: int, position: dict[str, Any]) -> None:
        on_all_ranks(ledger.settle if ledger is not None else lambda: None, RunDirectoryError)
        lost = saver.save(
            engine,
            {
                "step": step,
                "sequences_consumed": step * config.batch.sequences,
                "seed": config.seed,
                "config": config.model_dump(mode="json"),
                "wandb_run_id": monitor.wandb_run_id,
                "tokenizer_sha256": sources.tokenizer_sha256,
                "corpus_fingerprint": sources.fingerprint,
                "data": position,
                "code_version": version("semicausal"),
            },
            step=step,
        )
        if lost is not None:
            monitor.note(f"{lost}; the checkpoint of step {step} is tried instead")

    def look_at_data() -> float:
        sources.copy_tokenizer(directory / TOKENIZER)
        return unigram_baseline(config, sources, collate, plan.mixture.mean)

    seconds_to_first_step: float | None = None
    with monitor, saver, build_feed(config, plan, collate, mesh) as feed:
        entropy = on_all_ranks(look_at_data if world.is_main else lambda: 0.0, DataError)
        if world.is_main:
            if warning is not None:
                monitor.note(warning)
            if latest is not None:
                monitor.note(f"continuing from {latest}")
            monitor.baseline(entropy)
        if first_step % config.validation.every_steps == 0:
            validate_now(first_step)  # before any step, or where a stop may have cut it short
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
            monitor.train(
                TrainRecord(
                    step=step,
                    loss=result.averages.loss,
                    first_of_span_loss=result.averages.first_of_span,
                    other_loss=result.averages.other,
                    learning_rate=lr,
                    gradient_norm=result.gradient_norm,
                    tokens=config.batch.sequences * config.data.sequence_tokens,
                    scored_tokens=result.averages.scored_tokens,
                    step_seconds=finished - started,
                    data_wait_seconds=feed.wait_seconds,
                    memory_bytes=peak_memory_bytes(),
                )
            )
            is_last = step == config.steps
            if is_last or (step % config.validation.every_steps == 0 and not result.stop):
                validate_now(step)
            if is_last or result.stop or step % config.checkpoint.every_steps == 0:
                save(step, data.position)
                if config.samples.prompts and not result.stop:
                    latest = saver.finish()  # samples are the words of what was saved
                    if world.is_main:
                        assert latest is not None
                        write_samples(config, latest, monitor, step=step, device=world.device)
            if result.stop and not is_last:
                saver.finish()
                monitor.note(f"stopped after step {step} on a signal; run again to continue")
                preemption.ignore()
                engine.close()
                return EXIT_CODE
    latest = saver.finish()
    preemption.ignore()
    engine.close()
    if world.is_main:
        assert latest is not None
        wrap_up(config, directory, latest, seconds_to_first_step=seconds_to_first_step)
    if lock is not None:
        lock.release()
    return 0


def checkpoints_of(config: RunConfig) -> Place:
    """Where a run's checkpoints are."""
    if config.checkpoint.directory is not None:
        return Place.parse(config.checkpoint.directory, config.storage)
    return Place.of(Path(config.run_directory) / CHECKPOINTS)


def newest(checkpoints: Place) -> tuple[Place, dict[str, Any]] | None:
    """The newest checkpoint and its state, None if there is none."""
    latest = checkpoint.latest(checkpoints)
    return None if latest is None else (latest, checkpoint.read_state(latest))


def refuse_other_corpus(
    sources: Sources, state: dict[str, Any], path: Place, *, resuming: bool = False
) -> None:
    """Refuse sources of another tokenizer, and to resume on other data.

    Raises:
        CheckpointError: the tokenizers differ, or, when resuming, the samples.
    """
    if state["tokenizer_sha256"] != sources.tokenizer_sha256:
        raise CheckpointError(
            f"{path} was trained on a corpus of another tokenizer: set data.corpus to that one"
        )
    if resuming and state["corpus_fingerprint"] != sources.fingerprint:
        raise CheckpointError(
            f"{path} was trained on other data than {sources.places} holds now: set data.corpus "
            "(or data.sources) to what it was, or start another run with init_from"
        )


def peak_memory_bytes() -> int:
    """Most memory this rank has held: on its GPU if it has one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
