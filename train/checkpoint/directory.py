"""The directory of a run's checkpoints: a new one appears whole or not at all.

checkpoints/
  latest                 name of the newest checkpoint, as text
  step_00000100/         complete, since it has an index.json, which is written last
  step_00000100.2/       the same step written again, after going back before it
  step_00000200/         without index.json: being written, or left by a writer that died

The same holds in object storage, where a name appears with its whole content.
"""

import contextlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.checkpoint.format import INDEX_NAME
from train.errors import CheckpointError
from train.storage.checkpoint_files import is_remote, shown, storage_of

LATEST_NAME = "latest"
CHECKPOINTS_NAME = "checkpoints"
_STEP = re.compile(r"^step_(\d+)(?:\.(\d+))?$")
# Of an atomic write that was cut short, and directories of the writers before.
_LEFTOVER = re.compile(r"^\.(latest\.tmp|step_.+\.(tmp|dead))-[0-9a-f]+$")


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
        keep: newest ones.
        keep_every_steps: those whose step is a multiple of it stay as well; None for no others.
    """

    keep: int
    keep_every_steps: int | None = None

    def retired(self, names: Sequence[str], *, newest: str) -> list[str]:
        """Those to remove, the first to go first.

        Args:
            names: of the complete checkpoints.
            newest: the one to continue from, which always stays. After going back there are
                later steps, of an abandoned future: these go first, whatever their step.
        """
        others = sorted((name for name in names if name != newest), key=_order)
        abandoned = [name for name in others if _order(name) > _order(newest)]
        past = [name for name in others if name not in abandoned]
        queue = abandoned + past
        queue = queue[: max(0, len(queue) + 1 - self.keep)]
        stay = self._milestones([*past, newest])
        return [name for name in queue if name not in stay]

    def _milestones(self, names: Sequence[str]) -> set[str]:
        if self.keep_every_steps is None:
            return set()
        # In order, so that of a step written again the last stays.
        last = {_order(name)[0]: name for name in sorted(names, key=_order)}
        return {name for step, name in last.items() if step % self.keep_every_steps == 0}


def latest(directory: Path) -> Path | None:
    """The newest complete checkpoint in a directory of checkpoints, None if there is none.

    Raises:
        CheckpointError: the pointer names a checkpoint that is not there, or cannot be read.
    """
    pointer = directory / LATEST_NAME
    try:
        storage = storage_of(directory)
        try:
            name = storage.read(pointer).decode(errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            # A writer that died between the first checkpoint and its pointer.
            names = complete(directory)
            return directory / names[-1] if names else None
        if not _STEP.match(name) or not storage.is_file(directory / name / INDEX_NAME):
            raise CheckpointError(
                f"{shown(pointer)} names {name!r}, which is no checkpoint there: write the name of "
                f"one into it"
            )
    except OSError as error:
        raise _unreachable(directory, error) from error
    return directory / name


def resolve(path: Path) -> Path:
    """The checkpoint meant by a run directory, a directory of checkpoints, or one checkpoint.

    Raises:
        CheckpointError: there is none, or the place cannot be read.
    """
    try:
        storage = storage_of(path)
        if storage.is_file(path / INDEX_NAME):
            return path
        for directory in (path / CHECKPOINTS_NAME, path):
            if (found := latest(directory)) is not None:
                return found
        exists = bool(storage.names(path)) or path.exists()
    except OSError as error:
        raise _unreachable(path, error) from error
    reason = "holds no checkpoint" if exists else "is not there"
    raise CheckpointError(
        f"{shown(path)} {reason}: name a run directory, its {CHECKPOINTS_NAME}/, or one "
        f"step_... directory in it"
    )


def complete(directory: Path) -> list[str]:
    """Names of the complete checkpoints in a directory, oldest first."""
    storage = storage_of(directory)
    names = [name for name in storage.names(directory) if _STEP.match(name)]
    found = [name for name in names if storage.is_file(directory / name / INDEX_NAME)]
    return sorted(found, key=_order)


def stage(directory: Path, step: int) -> Path:
    """A fresh directory to write a checkpoint in; removes what dead writers have left.

    Only one process may call it, and no other may be writing to `directory`.
    """
    storage = storage_of(directory)
    storage.make_directory(directory)
    clean(directory)
    name = f"step_{step:08d}"
    revisions = [_order(other)[1] for other in complete(directory) if _order(other)[0] == step]
    if revisions:
        # A complete one is never touched, so a step written again gets another name.
        name = f"{name}.{max(revisions) + 1}"
    storage.make_directory(directory / name)
    return directory / name


def commit(staged: Path, index: bytes, *, retention: Retention) -> None:
    """Makes a staged checkpoint, already on the disk, the latest; drops those that may go.

    Args:
        staged: what `stage` gave.
        index: content of its index.
        retention: which others stay.
    """
    storage, directory = storage_of(staged), staged.parent
    storage.settle(staged)
    storage.settle(directory)
    # With this it is complete.
    storage.replace(staged / INDEX_NAME, index)
    storage.replace(directory / LATEST_NAME, f"{staged.name}\n".encode())
    try:
        retire(directory, retention.retired(complete(directory), newest=staged.name))
    except OSError as error:  # what was to be saved is saved
        warnings.warn(
            f"older checkpoints in {shown(directory)} cannot be removed: {error}", stacklevel=2
        )


def retire(directory: Path, names: Sequence[str]) -> None:
    """Removes checkpoints; a crash on the way leaves no half of one that looks complete."""
    storage = storage_of(directory)
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # someone else was faster
            storage.remove(directory / name / INDEX_NAME)
            storage.settle(directory / name)
            storage.remove(directory / name)


def clean(directory: Path) -> None:
    """Removes what writers that died have left."""
    storage = storage_of(directory)
    whole = set(complete(directory))
    for name in storage.names(directory):
        if _LEFTOVER.match(name) or (_STEP.match(name) and name not in whole):
            storage.remove(directory / name)


def _unreachable(place: Path, error: OSError) -> CheckpointError:
    remedy = "credentials and S3_ENDPOINT_URL" if is_remote(place) else "permissions"
    return CheckpointError(
        f"{shown(place)} cannot be read ({error.strerror or error}): check its name, {remedy}"
    )


def _order(name: str) -> tuple[int, int]:
    match = _STEP.match(name)
    assert match is not None, name
    return int(match[1]), int(match[2] or 1)
