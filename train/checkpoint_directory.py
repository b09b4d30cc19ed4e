"""The directory of a run's checkpoints: a new one appears whole or not at all.

checkpoints/
  latest                     name of the newest checkpoint, as text
  step_00000100/             complete, since a directory gets this name in one rename
  step_00000100.2/           the same step written again, after going back before it
  .step_00000200.tmp-1f2e/   being written, or left by a writer that died
"""

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from train.checkpoint_format import INDEX_NAME, flush
from train.errors import CheckpointError

LATEST_NAME = "latest"
CHECKPOINTS_NAME = "checkpoints"
_COMPLETE = re.compile(r"^step_(\d+)(?:\.(\d+))?$")
_LEFTOVER = re.compile(r"^\.(step_.+\.(tmp|dead)|latest\.tmp)-[0-9a-f]+$")


def latest(directory: Path) -> Path | None:
    """The newest complete checkpoint in a directory of checkpoints, None if there is none.

    Raises:
        CheckpointError: the pointer names a checkpoint that is not there.
    """
    pointer = directory / LATEST_NAME
    try:
        name = pointer.read_text().strip()
    except FileNotFoundError:
        # A writer that died between the first checkpoint and its pointer.
        complete = _complete(directory)
        return complete[-1] if complete else None
    if not _COMPLETE.match(name) or not (directory / name / INDEX_NAME).is_file():
        raise CheckpointError(
            f"{pointer} names {name!r}, which is no checkpoint there: write the name of one into it"
        )
    return directory / name


def resolve(path: Path) -> Path:
    """The checkpoint meant by a run directory, a directory of checkpoints, or one checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    if (path / INDEX_NAME).is_file():
        return path
    for directory in (path / CHECKPOINTS_NAME, path):
        if directory.is_dir() and (found := latest(directory)) is not None:
            return found
    reason = "holds no checkpoint" if path.is_dir() else "is not there"
    raise CheckpointError(
        f"{path} {reason}: name a run directory, its {CHECKPOINTS_NAME}/, or one "
        f"step_... directory in it"
    )


def stage(directory: Path, step: int) -> Path:
    """A fresh directory to write a checkpoint in; removes what dead writers have left.

    Only one process may call it, and no other may be writing to `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    clean(directory)
    staging = directory / f".step_{step:08d}.tmp-{secrets.token_hex(4)}"
    staging.mkdir()
    return staging


def commit(staging: Path, *, step: int, keep: int) -> Path:
    """Turns a staged checkpoint, already on the disk, into the latest; drops the oldest.

    Args:
        staging: what `stage` gave.
        step: its step.
        keep: how many checkpoints to keep, the new one included.
    """
    directory = staging.parent
    name = f"step_{step:08d}"
    if (directory / name).exists():
        # A directory cannot be replaced in one move, so a step written again gets another name.
        revision = max(found[1] for found in map(_order, _complete(directory)) if found[0] == step)
        name = f"{name}.{revision + 1}"
    flush(staging)
    staging.rename(directory / name)
    flush(directory)
    pointer = directory / f".{LATEST_NAME}.tmp-{secrets.token_hex(4)}"
    pointer.write_text(name + "\n")
    flush(pointer)
    pointer.rename(directory / LATEST_NAME)
    flush(directory)
    _retire(directory, directory / name, keep)
    return directory / name


def clean(directory: Path) -> None:
    """Removes what writers that died have left."""
    for path in directory.iterdir():
        if _LEFTOVER.match(path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _retire(directory: Path, newest: Path, keep: int) -> None:
    # After going back, later steps of the abandoned future are still there; they go first.
    others = [path for path in _complete(directory) if path != newest]
    abandoned = [path for path in others if _order(path) > _order(newest)]
    others = abandoned + [path for path in others if path not in abandoned]
    for path in others[: max(0, len(others) + 1 - keep)]:
        # Renamed first, so that half a checkpoint never looks like one.
        dead = directory / f".{path.name}.dead-{secrets.token_hex(4)}"
        path.rename(dead)
        shutil.rmtree(dead)


def _complete(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    with contextlib.suppress(FileNotFoundError):
        paths = [directory / name for name in os.listdir(directory) if _COMPLETE.match(name)]
        return sorted((path for path in paths if (path / INDEX_NAME).is_file()), key=_order)
    return []


def _order(path: Path) -> tuple[int, int]:
    match = _COMPLETE.match(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)
