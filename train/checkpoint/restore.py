"""Restoring training: any number of ranks, in any layout, reads what any other wrote.

`saver` writes, `format` says what lies on the disk, `directory` how a checkpoint becomes the latest
one. Paths of this host are welcome wherever a place is asked for.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field
from torch import nn

from model.layers import logical_name, placement
from parallel.agreement import gathered, on_all_ranks, on_first_rank
from parallel.zero.engine import ZeroEngine
from parallel.zero.pages import release_files
from parallel.zero.state import StateSlice, local_slices, publish, set_optimizer_steps
from train.checkpoint.directory import resolve
from train.checkpoint.format import STATE_NAME, Index, State, Stated, stored_state
from train.checkpoint.reader import ChunkReader, needed
from train.errors import CheckpointError
from train.storage.place import Place
from train.storage.record import Count

Amax = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TrainingState(State):
    """What restoring needs beside the tensors.

    Attributes:
        optimizer_steps: updates that AdamW has made.
        fp8_amaxes: of inputs and gradients of each product in fp8; None without such.
    """

    optimizer_steps: Count
    fp8_amaxes: list[tuple[Amax, Amax]] | None = None


class Pieces(Protocol):
    """Files of a checkpoint that do not all lie at one place."""

    def bring(self, files: Collection[str]) -> Place:
        """The place where this rank finds the files that it names; every rank must call it.

        Raises:
            CheckpointError: some rank cannot read or write one; on all ranks.
        """
        ...

    def mend(self, found: CheckpointError) -> None:
        """Have `bring` give other files after one was damaged or not read; every rank must call it.

        Raises:
            CheckpointError: there are no others.
        """
        ...


def restore(
    path: Place | Path, engine: ZeroEngine, *, pieces: Pieces | None = None
) -> TrainingState:
    """Brings weights, moments and AdamW's step count back; every rank must call it.

    Each rank reads the chunks that it needs, once, and hashes them on the way. Where there are
    others, damage has all of them filled anew.

    Args:
        path: a checkpoint, or anything that `resolve` understands.
        engine: what to restore, at whatever layout.
        pieces: where its files are; None if all ranks find all of them at `path`.

    Returns:
        The state that was saved, with `step`.

    Raises:
        CheckpointError: it is damaged, or of another model; on all ranks. What can be seen
            without reading the numbers (the index, the state, missing and truncated files,
            another model) is found before the engine is touched. A wrong checksum is found
            midway: the engine is then partly filled and must not be used.
    """
    # One rank reads what all need to know, so that all know the same.
    path, index, state = on_first_rank(lambda: _read_index(path, TrainingState), CheckpointError)
    slices = local_slices(engine)
    here = {name for names in gathered({part.name for part in slices}) for name in names}
    on_all_ranks(lambda: _check_same_parameters(path, index, slices, here), CheckpointError)
    if pieces is None:
        _fill(path, index, slices)
    else:
        files = {chunk.file for part in slices for chunk in needed(index, part)}
        while True:
            try:
                # A disk that cannot be read is noticed by those that fetch from it, too.
                _fill(pieces.bring(files), index, slices)
                break
            except CheckpointError as error:  # on all ranks
                pieces.mend(error)
    set_optimizer_steps(engine, state.optimizer_steps)
    publish(engine)
    if engine.scales is not None and state.fp8_amaxes is not None:
        engine.scales.restore(state.fp8_amaxes)
    return state


def _fill(place: Place, index: Index, slices: Sequence[StateSlice]) -> None:
    with ChunkReader(place, index) as reader:

        def check() -> None:
            for part in slices:
                reader.check(part)

        def fill() -> None:
            for part in slices:
                reader.fill(part)
                release_files()  # state that lives in files does not fit into memory

        on_all_ranks(check, CheckpointError)
        on_all_ranks(fill, CheckpointError)


def load_module(path: Place | Path, module: nn.Module) -> State:
    """Fills a plain module, in one process, and returns the state that was saved.

    Raises:
        CheckpointError: it is damaged, or of another model. The module is untouched unless a
            wrong checksum is found midway; it must not be used then.
    """
    path, index, state = _read_index(path, State)
    _check_names(path, dict(module.named_parameters()), index)
    load_weights(path, module)
    return state


def load_weights(path: Place | Path, module: nn.Module, *, prefix: str = "") -> None:
    """Fills the weights that a module holds, whole or in parts, and no others.

    Args:
        path: a checkpoint, or anything that `resolve` understands.
        module: a model, a rank's part of one, or one of its modules.
        prefix: what the names of the module's parameters lack.

    Raises:
        CheckpointError: as `load_module`.
    """
    path, index, _ = _read_index(path, State)
    slices: list[StateSlice] = []
    for own_name, parameter in module.named_parameters():
        name, held = logical_name(prefix + own_name, parameter), placement(parameter)
        if name not in index.parameters:
            raise _another_model(path, f"it has no parameter {name}", _SAME_MODEL)
        _check_shape(path, index, name, held.shape)
        # Padding rows lie behind those of the box.
        values = parameter.data.view(-1)[: held.stop]
        slices.append(StateSlice(name=name, kind="value", region=held, tensor=values))
    with ChunkReader(path, index) as reader:
        for part in slices:
            reader.check(part)
        for part in slices:
            reader.fill(part)


def load_masters(path: Place | Path, engine: ZeroEngine, *, prefix: str = "") -> None:
    """Gives masters the values of a checkpoint, which the narrower type of weights has rounded.

    Every rank must call it, before the first step, with weights that come from that checkpoint.

    Args:
        path: a checkpoint, or anything that `resolve` understands.
        engine: whose weights that train have masters of a wider type.
        prefix: of the names of the weights that come from there; others, such as adapters, that
            the checkpoint does not have stay as they are.

    Raises:
        CheckpointError: it is damaged; on all ranks.
    """
    path, index, _ = on_first_rank(lambda: _read_index(path, State), CheckpointError)
    slices = local_slices(engine)
    training = {part.name for part in slices if part.kind != "value"}

    def fill() -> None:
        for part in slices:
            is_there = part.name in index.parameters and part.name.startswith(prefix)
            if part.kind == "value" and part.name in training and is_there:
                reader.fill(part)
                release_files()

    with ChunkReader(path, index) as reader:
        on_all_ranks(fill, CheckpointError)
    publish(engine)


def read_state(path: Place | Path, schema: type[Stated] = State) -> Stated:
    """What was saved beside the tensors, such as `step` and `config`.

    Args:
        path: a checkpoint, or anything that `resolve` understands.
        schema: what is known of it.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    return _read_index(path, schema)[2]


def _read_index(path: Place | Path, schema: type[Stated]) -> tuple[Place, Index, Stated]:
    path = resolve(path)
    index = Index.read(path)
    return path, index, stored_state(path, index, schema)


_SAME_MODEL = f"set the config's model to that under config.model in its {STATE_NAME}"


def _check_same_parameters(
    path: Place, index: Index, slices: Sequence[StateSlice], here: Iterable[str]
) -> None:
    """Compares this rank's slices, and the names that all ranks have, with the index."""
    _check_names(path, here, index)
    training = {part.name for part in slices if part.kind != "value"}
    for part in slices:
        _check_shape(path, index, part.name, part.region.shape)
        trains_there, trains_here = index.parameters[part.name].trainable, part.name in training
        if trains_there != trains_here:
            words = ("is frozen", "trains")
            raise _another_model(
                path,
                f"{part.name} {words[trains_there]} there and {words[trains_here]} here",
                "freeze the same parameters, or start a new run from its weights",
            )


def _check_names(path: Place, here: Iterable[str], index: Index) -> None:
    for name in sorted(set(here) - set(index.parameters)):
        raise _another_model(path, f"it has no parameter {name}", _SAME_MODEL)
    for name in sorted(set(index.parameters) - set(here)):
        fault = f"it has a parameter {name}, which is not in this one"
        raise _another_model(path, fault, _SAME_MODEL)


def _check_shape(path: Place, index: Index, name: str, shape: Sequence[int]) -> None:
    there = index.parameters[name].shape
    if there != list(shape):
        fault = f"{name} has shape {there} there and {list(shape)} here"
        raise _another_model(path, fault, _SAME_MODEL)


def _another_model(path: Place, fault: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{path} is a checkpoint of another model: {fault}; {remedy}")
