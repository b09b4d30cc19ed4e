"""Prepares a run until it can take its first step, agreed on by all ranks.

What fails on one rank fails on all, with the reason of the first: none is left waiting for another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import Field

from parallel import compiled
from parallel.agreement import on_all_ranks, on_first_rank
from parallel.launch import World
from parallel.mesh import build_mesh
from parallel.zero.engine import ZeroEngine
from train.adapter import base_hash, start_from
from train.build import (
    build_collator,
    build_engine,
    build_mixture,
    build_model,
    build_plan,
    count_parameters,
    first_adapter,
    first_weights,
)
from train.checkpoint.directory import latest, resolve
from train.checkpoint.format import State
from train.checkpoint.local.finding import WholeStep
from train.checkpoint.restore import load_masters, read_state, restore
from train.claim import refuse_other_run, refuse_to_begin_anew
from train.config import RunConfig
from train.config_files import differences, from_stored
from train.data.collate import Collator
from train.data.plan import Position, StepPlan
from train.data.sources import Sources
from train.errors import (
    CheckpointError,
    ConfigError,
    LocalCheckpointError,
    RunDirectoryError,
    UserError,
    named,
)
from train.microbatch import tried
from train.mirror import Mirror
from train.storage.path import local_path
from train.storage.place import Place
from train.storage.record import Count
from train.wrong_numbers.left_out import LeftOut, LeftOutStep
from train.wrong_numbers.spikes import Seen

Result = TypeVar("Result")


class RunState(State):
    """What a run's checkpoint keeps beside the tensors, see `train.loop.state_of`.

    Attributes:
        wandb_run_id: under which it is recorded.
        tokenizer_sha256: of its corpora.
        corpus_fingerprint: of its samples.
        data: how far they were read; None in checkpoints of earlier versions.
        base_hash: of the weights beside which adapters were trained; None where there are none.
        left_out: steps that the run leaves out, as far as it knew of them.
        spikes: what judging the next step needs.
        stored_step: of one on the nodes' disks, the newest checkpoint that the run had then.
    """

    wandb_run_id: str
    tokenizer_sha256: str
    corpus_fingerprint: str
    data: Position | None = None
    base_hash: str | None = None
    left_out: list[LeftOutStep] = Field(default=[])
    spikes: Seen = Field(default=Seen())
    stored_step: Count = 0


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that a run goes on from.

    Attributes:
        path: where it lies.
        state: what it keeps beside the tensors.
        local: where its pieces are, if that is on the nodes' own disks.
    """

    path: Place
    state: RunState
    local: WholeStep | None = None

    @property
    def step(self) -> int:
        """Steps made so far."""
        return self.state.step

    @property
    def config(self) -> RunConfig:
        """Of the run that made them.

        Raises:
            ConfigError: this version does not understand it.
        """
        return from_stored(RunConfig, self.state.config, place=str(self.path))


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run, before its first step.

    Attributes:
        plan: what each step reads, from the first one that is still to be made.
        collate: makes batches of it.
        engine: the model under ZeRO, restored if the run goes on.
        num_parameters: of the whole model.
        num_trainable: parameters that train, of this rank's part.
        config: of the run, with a microbatch that fits.
        note: what the run should say of it, if anything.
        base_hash: of the weights beside which adapters train; None where there are none.
    """

    plan: StepPlan
    collate: Collator
    engine: ZeroEngine
    num_parameters: int
    num_trainable: int
    config: RunConfig
    note: str | None
    base_hash: str | None


def prepare(config: RunConfig, world: World, *, saved: Saved | None = None) -> Run:
    """Builds all parts of a run; every rank must call it.

    Args:
        config: with its precision resolved.
        world: this process among all.
        saved: what the run goes on from.

    Raises:
        LocalCheckpointError: what lies on the nodes' own disks is damaged; it may be tried again
            from what was saved before.
        UserError: some rank cannot have its part; raised on every rank.
    """
    plan = agreed(lambda: build_plan(config))
    agreed(lambda: _refuse_other_data(config, plan, saved))
    mesh = build_mesh(config.layout, world)
    model = agreed(lambda: build_model(config, mesh))
    given = agreed(lambda: first_adapter(config)) if saved is None else {}
    hashed = on_first_rank(lambda: _hashed_base(config, saved), UserError)
    num_parameters = count_parameters(config, model)
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    engine = build_engine(config, model, mesh)
    has_masters = config.precision != "fp32" and config.optim.precision == "fp32"
    if saved is None and has_masters:
        for path, prefix in first_weights(config):
            load_masters(path, engine, prefix=prefix)
    if given:
        start_from(given, engine)
    if saved is not None:
        try:
            restore(saved.path, engine, pieces=saved.local)
        except LocalCheckpointError:  # there may be another one, for another engine
            engine.close()
            raise
        if saved.state.data is not None:
            plan.start_at(saved.state.data, step=saved.step)
    collate = agreed(lambda: build_collator(config, plan.sources.special))
    fitting = tried(config, engine, collate)
    is_auto = config.batch.micro_sequences == "auto"
    return Run(
        plan=plan,
        collate=collate,
        engine=engine,
        num_parameters=num_parameters,
        num_trainable=num_trainable,
        config=fitting,
        note=f"batch.micro_sequences: auto takes {fitting.micro_sequences}" if is_auto else None,
        base_hash=hashed,
    )


def _hashed_base(config: RunConfig, saved: Saved | None) -> str | None:
    """What the adapters' file says of the base, which a later run may have overwritten."""
    if not config.tuning.has_adapters:
        return None
    if saved is not None:
        return saved.state.base_hash
    assert config.init_from is not None, "refused with the configuration"
    return base_hash(Place.parse(config.init_from, config.storage))


def agreed(work: Callable[[], Result]) -> Result:
    """What `work` gives on this rank, if it succeeds on all; it must not talk to other ranks."""

    def told() -> Result:
        try:
            return work()
        except Exception as error:
            if (lacking := named(error)) is not error:
                raise lacking from error
            raise

    return on_all_ranks(told, UserError)


def find_saved(config: RunConfig, checkpoints: Place) -> Saved | None:
    """The checkpoint that the run goes on from, None for a new run.

    Raises:
        UserError: it cannot be read, or is of another run.
    """
    path = latest(checkpoints)
    if path is None:
        refuse_to_begin_anew(config, checkpoints)
        return None
    saved = Saved(path=path, state=read_state(path, RunState))
    # A directory of checkpoints may be shared, a run's own may have been copied into.
    refuse_other_run(config, saved.config, path)
    return saved


def find_left_out(
    config: RunConfig, saved: Saved | None, *, mirror: Mirror | None = None
) -> LeftOut:
    """The steps that the run leaves out, as far as it knows of them.

    Args:
        config: of the run.
        saved: what it goes on from.
        mirror: of its directory, if it has one.

    Raises:
        RunDirectoryError: one of them was made; or what was kept of them is damaged.
    """
    return LeftOut.of_run(
        Place.of(config.directory.left_out) if mirror is None else mirror.left_out,
        named=config.steps_left_out,
        saved=[] if saved is None else saved.state.left_out,
        saved_step=0 if saved is None else saved.step,
    )


def use_compile_cache(config: RunConfig) -> None:
    """Has what is compiled kept where the configuration says; called before anything is.

    Raises:
        ConfigError: the directory cannot be written.
    """
    if config.compile_cache is None:
        return
    try:
        compiled.keep_in(local_path(config.compile_cache))
    except OSError as error:
        raise ConfigError(
            f"compile_cache: {config.compile_cache} cannot be written "
            f"({error.strerror or error}): name another directory, or leave it out"
        ) from None


class FirstState(State):
    """What a checkpoint that supplies weights says of its data.

    Attributes:
        tokenizer_sha256: of its corpus; None where it does not say, as after `tools.import`.
    """

    tokenizer_sha256: str | None = None


def refuse_other_tokenizer(sources: Sources, state: FirstState | RunState, path: Place) -> None:
    """Refuses sources of another tokenizer than a checkpoint's, if it says which it had.

    Raises:
        CheckpointError: the tokenizers differ.
    """
    if state.tokenizer_sha256 not in (None, sources.tokenizer_sha256):
        raise CheckpointError(
            f"{path} was trained on a corpus of another tokenizer: set data.corpus to that one"
        )


def refuse_other_corpus(sources: Sources, state: RunState, path: Place) -> None:
    """Refuses to resume on other data.

    Raises:
        CheckpointError: the tokenizers differ, or the samples.
    """
    refuse_other_tokenizer(sources, state, path)
    names = [source.name for source in sources.all]
    if not f"{sources.fingerprint}+".startswith(f"{state.corpus_fingerprint}+"):
        raise CheckpointError(
            f"{path} was trained on other data than {sources.places} holds now: set data.corpus "
            "(or data.sources) to what it was, or start another run with init_from; new text is "
            f"another source behind {' and '.join(names)} in data.sources, such as NAME: {{corpus: "
            f"PLACE, weight_by_step: [[{state.step}, 0], [{state.step + 1}, 1]]}}"
        )


def _refuse_other_data(config: RunConfig, plan: StepPlan, saved: Saved | None) -> None:
    if config.init_from is not None:
        path = resolve(Place.parse(config.init_from, config.storage))
        refuse_other_tokenizer(plan.sources, read_state(path, FirstState), path)
    if saved is not None:
        refuse_other_corpus(plan.sources, saved.state, saved.path)
        _refuse_other_plan(config, plan, saved)


def _refuse_other_plan(config: RunConfig, plan: StepPlan, saved: Saved) -> None:
    """Refuses shares of the sources by which steps that were made would have read otherwise.

    Raises:
        RunDirectoryError: they would.
    """
    owner = saved.config
    if (owner.steps, owner.data.mixed) == (config.steps, config.data.mixed):
        return
    before = build_mixture(owner, plan.sources).history(saved.step)
    now = plan.mixture.history(saved.step)
    num_before = before.shape[1]
    if (now[:, :num_before] != before).any() or now[:, num_before:].any():
        changed = differences(owner.identity(), config.identity())
        raise RunDirectoryError(
            f"{saved.path} has made {saved.step} steps with other shares of its sources than "
            f"steps={config.steps} and data.sources say now: what comes may change, as with "
            "weight_by_step, what was read may not, and epochs and tokens are spread over all "
            "steps; go back, or start "
            "another run with init_from\n" + "\n".join(f"  {change}" for change in changed)
        )
