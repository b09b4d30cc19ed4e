"""Saving and restoring training: any number of ranks and any ZeRO stage reads what any other wrote.

`save` snapshots this rank's share, writes it, and commits once every rank has written. All ranks
succeed or raise together. See `checkpoint_format` for what lies on the disk.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel import zero_state
from parallel.agreement import gathered, on_all_ranks
from parallel.zero import ZeroEngine
from train import checkpoint_directory
from train.checkpoint_directory import latest, resolve
from train.checkpoint_format import (
    INDEX_NAME,
    STATE_NAME,
    Chunk,
    ChunkReader,
    FileRecord,
    Index,
    ParameterRecord,
    TensorKind,
    check_files,
    merge,
    read_json,
    write_chunks,
    write_json,
)
from train.errors import CheckpointError

__all__ = [
    "latest",
    "load_module",
    "read_state",
    "resolve",
    "restore",
    "restore_weights",
    "save",
]

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A rank's share of training state, copied, so that training may go on while it is written.

    Attributes:
        records: what the index will say of it.
        tensors: the pieces by key, on the host.
        state: everything else, the same on every rank.
    """

    records: dict[str, ParameterRecord]
    tensors: dict[str, Tensor]
    state: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a rank has written: its part of the index."""

    records: dict[str, ParameterRecord]
    files: dict[str, FileRecord]


def save(
    directory: Path, engine: ZeroEngine, state: Mapping[str, Any], *, step: int, keep: int
) -> Path:
    """Writes a checkpoint; every rank must call it, between steps.

    A crash at any instant leaves the previous checkpoint whole.

    Args:
        directory: where the run's checkpoints live, on storage that all ranks share.
        engine: what to save.
        state: what else to keep, as JSON has it: samples consumed, seed, resolved config under
            `config`, run id, code version. `step` and `optimizer_steps` are added.
        step: steps made so far.
        keep: how many checkpoints to keep, this one included.

    Returns:
        The directory of the checkpoint.

    Raises:
        CheckpointError: some rank could not write. The earlier checkpoints are still there.
    """
    assert keep > 0, keep
    snapshot = take_snapshot(engine, state, step=step)
    staging = open_staging(directory, step=step)
    try:
        written = _agreed(lambda: write_snapshot(snapshot, staging))
        return commit(staging, written, snapshot.state, step=step, keep=keep)
    except CheckpointError:
        if dist.get_rank() == 0:  # a full disk should not stay full
            shutil.rmtree(staging, ignore_errors=True)
        raise


def take_snapshot(engine: ZeroEngine, state: Mapping[str, Any], *, step: int) -> Snapshot:
    """Copies this rank's share to the host; no rank waits for another."""
    records: dict[str, ParameterRecord] = {}
    tensors: dict[str, Tensor] = {}
    file = _file_name(dist.get_rank())
    for part in zero_state.local_slices(engine):
        if not part.owned:
            continue
        kinds: dict[TensorKind, Tensor] = _kinds(part.value, part.moments)
        chunks: dict[TensorKind, list[Chunk]] = {}
        for kind, tensor in kinds.items():
            key = f"{part.name}/{kind}/{part.start}"
            tensors[key] = tensor.detach().to("cpu", copy=True)
            box = [(0, size) for size in part.shape]
            chunk = Chunk(file=file, key=key, box=box, flat_range=(part.start, part.stop))
            chunks[kind] = [chunk]
        records[part.name] = ParameterRecord(
            shape=list(part.shape),
            dtype=str(part.value.dtype).removeprefix("torch."),
            trainable=part.moments is not None,
            tensors=chunks,
        )
    everything = {
        **state,
        "step": step,
        "optimizer_steps": zero_state.optimizer_steps(engine),
    }
    # Fails here, and on every rank alike, if the state is not what JSON can hold.
    return Snapshot(
        records=records,
        tensors=tensors,
        state=json.loads(json.dumps(everything, allow_nan=False)),
    )


def open_staging(directory: Path, *, step: int) -> Path:
    """Makes the directory to write in; every rank must call it."""
    made = _agreed(lambda: _on_first_rank(lambda: checkpoint_directory.stage(directory, step)))
    staging = gathered(made)[0]
    assert staging is not None
    return staging


def write_snapshot(snapshot: Snapshot, staging: Path) -> Written:
    """Writes this rank's share and brings it to the disk; no rank waits for another."""
    if not snapshot.tensors:  # fewer elements than ranks
        return Written(records={}, files={})
    name = _file_name(dist.get_rank())
    return Written(
        records=snapshot.records, files={name: write_chunks(staging / name, snapshot.tensors)}
    )


def commit(staging: Path, written: Written, state: dict[str, Any], *, step: int, keep: int) -> Path:
    """Makes what all ranks have written the latest checkpoint; every rank must call it."""
    parts = gathered(written)

    def conclude() -> Path:
        files = {name: record for part in parts for name, record in part.files.items()}
        files[STATE_NAME] = write_json(staging / STATE_NAME, state, indent=1)
        index = Index(parameters=merge(part.records for part in parts), files=files)
        write_json(staging / INDEX_NAME, index.model_dump())
        return checkpoint_directory.commit(staging, step=step, keep=keep)

    path = gathered(_agreed(lambda: _on_first_rank(conclude)))[0]
    assert path is not None
    return path


def restore(
    path: Path, engine: ZeroEngine, *, expect_model: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Brings weights, moments and AdamW's step count back; every rank must call it.

    Args:
        path: a checkpoint, or anything that `resolve` understands.
        engine: what to restore, at whatever layout.
        expect_model: the `model` part of the resolved config, to be compared with that stored.

    Returns:
        The state that was saved, with `step`.

    Raises:
        CheckpointError: it is damaged, or of another model. The engine is unchanged then, unless
            a file changed while it was read.
    """
    path = resolve(path)
    slices = zero_state.local_slices(engine)

    def check() -> tuple[Index, dict[str, Any]]:
        index = Index.read(path)
        check_files(path, index, [STATE_NAME])
        state = read_json(path / STATE_NAME)
        if expect_model is not None:
            _check_same_config(path, state.get("config", {}).get("model", {}), expect_model)
        _check_same_parameters(path, index, engine.module, with_moments=True)
        return index, state

    index, state = _agreed(check)
    _agreed(lambda: _check_share_of_files(path, index))

    def fill() -> None:
        reader = ChunkReader(path, index)
        for part in slices:
            for kind, view in _kinds(part.value, part.moments).items():
                reader.fill(view, name=part.name, kind=kind, start=part.start)

    _agreed(fill)
    zero_state.set_optimizer_steps(engine, state["optimizer_steps"])
    zero_state.publish(engine)
    return state


def restore_weights(path: Path, target: ZeroEngine | nn.Module) -> None:
    """Starts from the weights of a checkpoint, and from nothing else of it.

    Every rank must call it if the target is an engine; a plain module needs no process group.

    Raises:
        CheckpointError: it is damaged, or of another model; the target is unchanged then.
    """
    path = resolve(path)
    module = target.module if isinstance(target, ZeroEngine) else target

    def check() -> Index:
        index = Index.read(path)
        _check_same_parameters(path, index, module, with_moments=False)
        return index

    if isinstance(target, nn.Module):
        index = check()
        check_files(path, index, index.files)
        reader = ChunkReader(path, index)
        for name, parameter in module.named_parameters():
            values = torch.empty(parameter.numel(), dtype=parameter.dtype)
            reader.fill(values, name=name, kind="value", start=0)
            parameter.data.copy_(values.view(parameter.shape))
        return
    index = _agreed(check)
    _agreed(lambda: _check_share_of_files(path, index))

    def fill() -> None:
        reader = ChunkReader(path, index)
        for part in zero_state.local_slices(target):
            reader.fill(part.value, name=part.name, kind="value", start=part.start)

    _agreed(fill)
    zero_state.publish(target)


def load_module(path: Path, module: nn.Module) -> dict[str, Any]:
    """Fills a plain module, in one process, and returns the state that was saved.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    restore_weights(path, module)
    return read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """What was saved beside the tensors, such as `step` and `config`.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    path = resolve(path)
    check_files(path, Index.read(path), [STATE_NAME])
    return read_json(path / STATE_NAME)


def _agreed(work: Callable[[], Result]) -> Result:
    return on_all_ranks(work, CheckpointError)


def _on_first_rank(work: Callable[[], Result]) -> Result | None:
    return work() if dist.get_rank() == 0 else None


def _file_name(rank: int) -> str:
    return f"chunks-{rank:05d}.safetensors"


def _kinds(value: Tensor, moments: Mapping[str, Tensor] | None) -> dict[TensorKind, Tensor]:
    if moments is None:
        return {"value": value}
    return {
        "value": value,
        "exp_avg": moments["exp_avg"],
        "exp_avg_sq": moments["exp_avg_sq"],
    }


def _check_share_of_files(path: Path, index: Index) -> None:
    # Every file is checked by one rank, not by all.
    check_files(path, index, sorted(index.files)[dist.get_rank() :: dist.get_world_size()])


def _check_same_config(path: Path, stored: Any, expected: Any, key: str = "model") -> None:
    if isinstance(stored, Mapping) and isinstance(expected, Mapping):
        for name in [*expected, *(name for name in stored if name not in expected)]:
            _check_same_config(path, stored.get(name), expected.get(name), f"{key}.{name}")
    elif json.loads(json.dumps(expected)) != stored:
        raise CheckpointError(
            f"{path} is a checkpoint of another model: {key} is {stored!r} there and "
            f"{expected!r} here; change {key} in the config to {stored!r}, or start another run"
        )


def _check_same_parameters(
    path: Path, index: Index, module: nn.Module, *, with_moments: bool
) -> None:
    here = dict(module.named_parameters())
    there = index.parameters

    def refuse(fault: str, remedy: str) -> CheckpointError:
        return CheckpointError(f"{path} is a checkpoint of another model: {fault}; {remedy}")

    remedy = f"set the config's model to that under config.model in its {STATE_NAME}"
    for name in _only_in(here, there):
        raise refuse(f"it has no parameter {name}", remedy)
    for name in _only_in(there, here):
        raise refuse(f"it has a parameter {name}, which is not in this one", remedy)
    for name, parameter in here.items():
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        if there[name].shape != shape:
            raise refuse(f"{name} has shape {there[name].shape} there and {shape} here", remedy)
        if with_moments and there[name].trainable != parameter.requires_grad:
            words = ("trains", "is frozen")
            fault = f"{name} {words[not there[name].trainable]} there"
            raise refuse(
                f"{fault} and {words[not parameter.requires_grad]} here",
                "freeze the same parameters, or start a new run from its weights",
            )


def _only_in(names: Iterable[str], others: Iterable[str]) -> list[str]:
    return sorted(set(names) - set(others))
