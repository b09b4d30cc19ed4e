"""The training loop: load, step, note, validate, save, stop."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from parallel.agreement import gathered, on_first_rank
from parallel.compiled import news
from parallel.launch import World
from parallel.mesh import Mesh, straddling_warning
from train.build import build_feed
from train.claim import claim, leases_of, mirror_of
from train.config import RunConfig
from train.config_files import differences
from train.data.feed import Feed, StepData
from train.data.ledger import LedgerWriter, Start, next_start
from train.data.plan import Position, StepPlan
from train.errors import DataError, UserError
from train.evaluate import validate, validate_whole
from train.exit_status import ExitStatus
from train.made import Made
from train.optim import learning_rate
from train.preemption import Preemption
from train.prepare import Run, Saved, agreed, find_saved
from train.samples import write_samples
from train.saves import Saves, disks_of, prepared, starts
from train.step import accumulate, reseed, update
from train.storage.lease import take_those_there
from train.watch.heartbeat import Heartbeat, Section
from train.watch.metrics import BaselineRecord, LeftOutRecord
from train.watch.monitor import Monitor
from train.watch.own_time import tell_own_time
from train.watch.profiling import Profiler
from train.watch.streams import Streams
from train.wrap_up import finish_adapter, look_at_data, say_complete, wrap_up
from train.wrong_numbers.going_back import GoingBack
from train.wrong_numbers.not_finite import NotFinite
from train.wrong_numbers.spikes import Spikes

NAMED_DOCUMENTS = 5
"""Documents that are named of a step without a scored token."""


def train(
    config: RunConfig,
    world: World,
    *,
    imported: float,
    held: contextlib.ExitStack,
    beat: Heartbeat,
    streams: Streams | None = None,
) -> int:
    """Run until the last step, or until a signal asks to stop; every rank must call it.

    Args:
        config: with its precision resolved.
        world: this process among all.
        imported: `time.perf_counter()` when imports had ended.
        held: gives back in the end what this run has to itself.
        beat: tells whoever keeps the run going where this rank is.
        streams: where the progress is shown.

    Returns:
        `COMPLETE`, or `SAVED` when it stopped early.
    """
    preemption = Preemption(answers=world.is_main)
    checkpoints = agreed(lambda: config.checkpoints_of(config.directory))
    leases = leases_of(config, checkpoints) if world.is_main else []
    for lease in leases:
        held.enter_context(lease)
    # Before anything in them is looked at; what is not there yet is made once all is prepared.
    agreed(lambda: take_those_there(leases))
    mirror = mirror_of(config) if world.is_main else None
    stored = on_first_rank(lambda: find_saved(config, checkpoints), UserError)
    if stored is not None and stored.step >= config.steps:
        done = stored
        agreed(lambda: say_complete(config, done, mirror) if world.is_main else None)
        return ExitStatus.COMPLETE
    disks = disks_of(config)
    newest_first = starts(config, checkpoints, stored, disks, mirror=mirror)
    run, saved, left_out = prepared(config, world, newest_first, disks, mirror=mirror)
    spikes = Spikes(config.spikes)
    if saved is not None:
        spikes.seen = saved.state.spikes
    config = run.config
    ask = asker(config, run)
    plan, collate, engine, mesh = run.plan, run.collate, run.engine, run.engine.mesh
    # Only now is the directory this run's: what failed so far can be mended and tried again.
    brought = agreed(
        lambda: (
            claim(config, leases, checkpoints, None if stored is None else stored.path, mirror)
            if world.is_main
            else None
        )
    )
    step = first_step = 0 if saved is None else saved.step
    beat.begin(
        run_directory=str(config.directory.path),
        step=first_step,
        patience_seconds=config.storage.retry_budget_seconds,
    )
    tell_own_time(beat, world.device, held, stage=mesh.pipeline_rank)
    validated = partial(validate, config, plan.sources, collate, engine)
    begins = None if saved is None else goes_on(config, saved)
    ledger = open_ledger(config, plan, mesh, first_step)
    monitor = agreed(
        lambda: Monitor(
            config,
            world,
            first_step=first_step,
            num_parameters=run.num_parameters,
            wandb_run_id=None if saved is None else saved.state.wandb_run_id,
            streams=streams,
        )
    )
    warning = next(filter(None, gathered(straddling_warning(mesh))), None)

    def state(step: int, position: Position) -> dict[str, Any]:
        kept = state_of(config, plan, monitor.wandb_run_id, step, position)
        kept |= {"left_out": left_out.dumped(), "spikes": spikes.seen.model_dump()}
        return kept | ({} if run.base_hash is None else {"base_hash": run.base_hash})

    saves = Saves(
        config,
        engine,
        checkpoints=checkpoints,
        stored=stored,
        disks=disks,
        state=state,
        monitor=monitor,
        guard=lambda: [lease.check() for lease in leases],
        before_commit=lambda: mirror.push() if mirror is not None else None,
        turn=lambda: leases[-1].number,
    )
    profiler = Profiler(config, monitor, beat, mesh)
    feed = build_feed(config, plan, collate, mesh, left_out=left_out)
    not_finite = NotFinite(config, engine, feed, left_out, beat)
    opened = partial(open_ledger, config, plan, mesh)
    made = Made(config, saves, ledger, monitor, not_finite, spikes, imported=imported)
    back = GoingBack(config, engine, left_out, spikes, saves, monitor, opened, beat)
    with monitor, saves, feed, made:
        entropy = on_first_rank(lambda: look_at_data(config, plan, collate), UserError)
        first_notes = (warning, brought, begins, run.note, *news(engine.module, step=0))
        for note in filter(None, first_notes):
            monitor.note(note)
        if entropy is not None:
            monitor.write(BaselineRecord(step=first_step, unigram_entropy=entropy))
        if first_step % config.validation.every_steps == 0:
            # Before any step, or where a stop may have cut it short.
            monitor.write(validated(step=first_step))
        if asks_at(config, first_step):
            ask(monitor, first_step)
        while step < config.steps:
            step += 1
            started = time.perf_counter()
            profiler.begin(step)
            beat.enter(Section.READ, step=step)
            reseed(config.seed, step=step, mesh=mesh)
            lr = learning_rate(config.optim, step=step, total_steps=config.steps)
            engine.set_learning_rate(lr)
            data = made.noted(step, feed.try_step(step))
            made.wait(feed.wait_seconds)
            data = next(filter(None, [lease.fault for lease in leases]), data)
            batches = data if isinstance(data, Exception) else data.batches
            beat.enter(Section.STEP, step=step)
            asked = preemption.requested or beat.keeper_has_gone
            gradients = accumulate(engine, batches, stop=asked)
            # Of the step before: the device has this one's gradients to compute meanwhile.
            if made.settle(under_way=gradients):
                reseed(config.seed, step=step, mesh=mesh)
                gradients = accumulate(engine, batches, stop=asked)
            if made.spikes_found and (earlier := back.before(feed, made, under_way=gradients)):
                profiler.end(step)
                step = earlier
                continue
            launched = update(engine, gradients)
            assert not isinstance(data, Exception)
            if step in left_out:
                monitor.write(LeftOutRecord(step=step, reason=left_out[step]))
            elif launched.is_passed_over:
                monitor.note(agreed(partial(pass_over, config, feed, data, step=step)))
            made.add(step, launched, data, lr=lr, started=started)
            profiler.end(step)
            is_last = step == config.steps
            validates = is_last or (step % config.validation.every_steps == 0 and not launched.stop)
            asks = asks_at(config, step) and (is_last or not launched.stop)
            must_save = is_last or launched.stop
            is_due = must_save or step % config.checkpoint.every_steps == 0
            is_due_locally = not is_last and (launched.stop or config.checkpoint.is_local(step))
            is_watched = validates or asks or is_due or is_due_locally
            if launched.is_done or is_watched or step == first_step + 1:
                made.settle()
            if made.spikes_found and (earlier := back.before(feed, made)):
                step = earlier
                continue
            for note in news(engine.module, step=step - first_step):
                monitor.note(note)
            if validates:
                beat.enter(Section.VALIDATE, step=step)
                monitor.write(watched := validated(step=step))
                if is_last:
                    beat.enter(Section.END, step=step)
                    monitor.write(validate_whole(config, plan.sources, collate, engine, watched))
            if asks:
                beat.enter(Section.EVALUATE, step=step)
                ask(monitor, step)
            if is_due_locally:
                beat.enter(Section.SAVE, step=step)
                made.save_locally(waits=must_save)
            if is_due:
                beat.enter(Section.SAVE, step=step)
                made.save(waits=must_save)
                if config.samples.prompts and not launched.stop:
                    write_samples(config, engine, monitor, step=step)
            if launched.stop and not is_last:
                beat.enter(Section.END, step=step)
                saves.finish()
                monitor.note(f"stopped after step {step} on a signal; run again to continue")
                break
    beat.enter(Section.END, step=step)
    is_complete = step == config.steps
    latest = saves.finish() if is_complete else None
    preemption.ignore()
    if latest is not None:
        finish_adapter(config, latest, engine, is_main=world.is_main)
        saves.clear()
    engine.close()
    if world.is_main and latest is not None:
        wrap_up(config, latest, seconds_to_first_step=made.seconds_to_first_step)
    if is_complete:
        agreed(lambda: None if mirror is None else mirror.finish())
    return ExitStatus.COMPLETE if is_complete else ExitStatus.SAVED


def asker(config: RunConfig, run: Run) -> Callable[[Monitor, int], None]:
    """What asks the model the tasks of `evaluation` and writes its scores; every rank must call it.

    Raises:
        UserError: rows of a task cannot be read, or do not fit the model.
    """
    if config.evaluation is None:
        return lambda monitor, step: None
    # Imported here: what counts answers, scipy among it, takes a second of a first step.
    from train.scores.in_training import Examination

    exam = Examination.of(config.evaluation, run.plan.sources, config.built_model)
    return partial(exam.write_scores, run.engine)


def asks_at(config: RunConfig, step: int) -> bool:
    """Whether tasks are asked after a step."""
    evaluation = config.evaluation
    return evaluation is not None and (step == config.steps or step % evaluation.every_steps == 0)


def goes_on(config: RunConfig, saved: Saved) -> str:
    """What is said of the checkpoint that a run goes on from."""
    told = f"continuing from {saved.path}"
    if saved.local is not None:
        told += " of the nodes' own disks"
    if changed := differences(saved.config.identity(), config.identity()):
        told += f"; changed from step {saved.step + 1} on: {'; '.join(changed)}"
    before = saved.state.config["run_directory"]
    if before != config.run_directory and not config.directory.ledger.exists():
        told += f"; metrics and ledger of its {saved.step} steps stay in {before} and begin here"
    return told


def open_ledger(
    config: RunConfig, plan: StepPlan, mesh: Mesh, first_step: int
) -> LedgerWriter | None:
    """This rank's ledger of what it reads; None where another rank reads the same.

    Raises:
        UserError: some rank's cannot be written; every rank must call it.
    """
    directory = config.directory.ledger
    start = on_first_rank(lambda: next_start(directory), UserError)

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
        return LedgerWriter(directory, about, limit_bytes=int(config.data.ledger_mib * 2**20))

    return agreed(begin)


def state_of(
    config: RunConfig, plan: StepPlan, wandb_run_id: str, step: int, position: Position
) -> dict[str, Any]:
    """What a checkpoint keeps beside the tensors."""
    return {
        "sequences_consumed": step * config.batch.sequences,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "wandb_run_id": wandb_run_id,
        "tokenizer_sha256": plan.sources.tokenizer_sha256,
        "corpus_fingerprint": plan.sources.fingerprint,
        "data": position.model_dump(),
        "code_version": version("semicausal"),
    }


def pass_over(config: RunConfig, feed: Feed, data: StepData, *, step: int) -> str:
    """What is told of a step whose batch has no scored token.

    Raises:
        DataError: such a step ends the run.
    """
    names = feed.name_documents(data, most=NAMED_DOCUMENTS + 1)
    is_all = len(names) <= NAMED_DOCUMENTS and data.entries == feed.plan.entries
    shown = ", ".join(names[:NAMED_DOCUMENTS]) + ("" if is_all else " and others")
    fault = f"step {step}: no token of its batch is scored, which holds {shown}"
    if config.data.unscored == "stop":
        raise DataError(
            f"{fault}: set data.unscored=pass_over to go on without such steps, or score some of "
            "their tokens and build the corpus again"
        )
    return f"{fault}: passed over"
