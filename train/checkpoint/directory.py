"""The directory of a run's checkpoints: a new one appears whole or not at all.

checkpoints/
  latest                 name of the newest checkpoint, as text; while one is being completed, its
                         name on a second line: from its index on, it is the newest
  step_00000100/         complete, since it has an index.json, which is written last
  step_00000100.2/       the same step written again, after going back before it
  step_00000200/         without index.json: being written, or left by a writer that died

The same holds in object storage, where a name appears with its whole content.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from train.checkpoint.format import INDEX_NAME, STEP_NAME, telling
from train.errors import CheckpointError, InUseError
from train.storage.place import Place, ReplacedError

LATEST_NAME = "latest"
CHECKPOINTS_NAME = "checkpoints"
CONFIG_NAME = "config.yaml"
"""Of a run, in its directory."""
_NAME_BYTES_AT_MOST = 4096
_NAME_SHOWN = 80
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
        stay = self._milestones([*past, newest])
        queue = (abandoned + past)[: max(0, len(others) + 1 - self.keep)]
        return [name for name in queue if name not in stay]

    def _milestones(self, names: Sequence[str]) -> set[str]:
        if self.keep_every_steps is None:
            return set()
        # In order, so that of a step written again the last stays.
        last = {_order(name)[0]: name for name in sorted(names, key=_order)}
        return {name for step, name in last.items() if step % self.keep_every_steps == 0}


def latest(directory: Place | Path) -> Place | None:
    """The newest complete checkpoint in a directory of checkpoints, None if there is none.

    Raises:
        CheckpointError: the pointer names a checkpoint that is not there, or cannot be read.
    """
    directory = Place.of(directory)
    with _reading(directory):
        name = pointed_to(directory)
        if name is None:
            # A writer that died between the first checkpoint and its pointer.
            names = complete(directory)
            return directory / names[-1] if names else None
        if not STEP_NAME.match(name) or (directory / name / INDEX_NAME).find() is None:
            if pointed_to(directory) not in (name, None):
                return latest(directory)  # a run has saved and dropped it meanwhile
            raise CheckpointError(
                f"{directory / LATEST_NAME} names {name[:_NAME_SHOWN]!r}, which is no checkpoint "
                f"there, with its {INDEX_NAME}: write the name of one into it"
            )
    return directory / name


def _is_announcing(named: str) -> bool:
    before, _, coming = named.partition("\n")
    return bool(STEP_NAME.match(before) and STEP_NAME.match(coming))


def pointed_to(directory: Place) -> str | None:
    """What a directory of checkpoints names its newest, whatever it is; None if nothing."""
    try:
        content = (directory / LATEST_NAME).read(limit_bytes=_NAME_BYTES_AT_MOST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    named = content.decode(errors="replace").strip()
    if not _is_announcing(named):
        return named
    before, coming = named.split("\n")
    return before if (directory / coming / INDEX_NAME).find() is None else coming


def resolve(path: Place | Path) -> Place:
    """The checkpoint meant by a run directory, a directory of checkpoints, or one checkpoint.

    Raises:
        CheckpointError: there is none, or the place cannot be read.
    """
    path = Place.of(path)
    with _reading(path):
        if (path / INDEX_NAME).find() is not None:
            return path
        for directory in (path / CHECKPOINTS_NAME, path):
            if (found := latest(directory)) is not None:
                return found
        reason = "holds no checkpoint" if path.exists() else "is not there"
        if (path / CONFIG_NAME).exists():
            raise CheckpointError(
                f"{path} is a run that has made no checkpoint yet, or keeps them elsewhere: wait "
                "for the first, or name its checkpoint.directory"
            )
    raise CheckpointError(
        f"{path} {reason}: name a run directory, its {CHECKPOINTS_NAME}/, or one "
        f"step_... directory in it"
    )


def complete(directory: Place | Path) -> list[str]:
    """Names of the complete checkpoints in a directory, oldest first."""
    directory = Place.of(directory)
    names = [name for name in directory.names() if STEP_NAME.match(name)]
    found = [name for name in names if (directory / name / INDEX_NAME).find() is not None]
    return sorted(found, key=_order)


def step_of(checkpoint: Place) -> int:
    """The step of a checkpoint, by its name."""
    return _order(checkpoint.name)[0]


def newest_of(names: Iterable[str]) -> str:
    """Of some names of checkpoints the one of the last step, or of the last time it was written."""
    return max(names, key=_order)


Guard = Callable[[], object]
"""Raises where the directory is no longer this process's, which may have slept for long."""


def _unguarded() -> None:
    """Nobody else can have taken the directory."""


def stage(directory: Place | Path, step: int, *, guard: Guard = _unguarded) -> Place:
    """The place of a new directory to write a checkpoint in; removes what dead writers have left.

    Only one process may call it, and no other may be writing to `directory`.
    """
    directory = Place.of(directory)
    clean(directory, guard=guard)
    name = f"step_{step:08d}"
    revisions = [_order(other)[1] for other in complete(directory) if _order(other)[0] == step]
    if revisions:
        # A complete one is never touched, so a step written again gets another name.
        name = f"{name}.{max(revisions) + 1}"
    return directory / name


def announce(staged: Place, *, guard: Guard = _unguarded) -> None:
    """Has a checkpoint be the latest at the very moment in which its index is written.

    Else a writer that dies before it names what it has completed would leave the step before as
    the latest: what lies ahead of that counts as undone.

    Raises:
        InUseError: another process has named one meanwhile.
    """

    def named() -> str | None:
        newest = pointed_to(staged.parent)
        # Where none is named, the newest is the latest.
        return None if newest is None else f"{newest}\n{staged.name}\n"

    _point(staged.parent, named, guard)


def withdraw(directory: Place, *, guard: Guard = _unguarded) -> None:
    """Has what was announced and is not complete never be the latest.

    Who announced it may have slept, and write its index once its chunks are gone.

    Raises:
        InUseError: another process has named one meanwhile.
    """
    file = directory / LATEST_NAME

    def named() -> str | None:
        if file.find() is None:
            return None
        content = file.read(limit_bytes=_NAME_BYTES_AT_MOST).decode(errors="replace")
        return f"{pointed_to(directory)}\n" if _is_announcing(content.strip()) else None

    _point(directory, named, guard)


def _point(directory: Place, named: Callable[[], str | None], guard: Guard) -> None:
    """Write what is the latest, unless that has changed since `guard` had nothing against it."""
    file = directory / LATEST_NAME
    before = file.find()
    guard()
    if (content := named()) is None:
        return
    try:
        file.write_over(content.encode(), before=before)
    except ReplacedError as error:
        guard()  # which knows better
        raise InUseError(f"{error}: end one of the processes that save there") from None


def commit(staged: Place, *, retention: Retention, guard: Guard = _unguarded) -> None:
    """Makes a checkpoint the latest; drops those that may go.

    Args:
        staged: what `stage` gave, announced and complete by now.
        retention: which others stay.
        guard: asked before that, and before each that goes: to who has slept, what came since looks
            abandoned.
    """
    directory = staged.parent
    point_to(staged, guard=guard)
    try:
        retired = retention.retired(complete(directory), newest=staged.name)
        retire(directory, retired, guard=guard)
    except OSError as error:  # what was to be saved is saved
        warnings.warn(f"older checkpoints in {directory} cannot be removed: {error}", stacklevel=2)


def point_to(checkpoint: Place, *, guard: Guard = _unguarded) -> None:
    """Makes a complete checkpoint the latest, whatever comes after it.

    Raises:
        InUseError: another process has named one meanwhile.
    """
    _point(checkpoint.parent, lambda: f"{checkpoint.name}\n", guard)


def retire(directory: Place | Path, names: Sequence[str], *, guard: Guard = _unguarded) -> None:
    """Removes checkpoints; a crash on the way leaves no half of one that looks complete."""
    directory = Place.of(directory)
    for name in names:
        guard()
        with contextlib.suppress(FileNotFoundError):  # someone else was faster
            (directory / name / INDEX_NAME).remove()
            (directory / name).remove()


def clean(directory: Place, *, guard: Guard = _unguarded) -> None:
    """Removes what writers that died have left."""
    whole = set(complete(directory))
    for name in directory.names():
        if _LEFTOVER.match(name) or (STEP_NAME.match(name) and name not in whole):
            guard()
            (directory / name).remove()


def _reading(place: Place) -> AbstractContextManager[None]:
    return telling(f"{place} cannot be read", ": check its name, permissions")


def _order(name: str) -> tuple[int, int]:
    match = STEP_NAME.match(name)
    assert match is not None, name
    return int(match[1]), int(match[2] or 1)
