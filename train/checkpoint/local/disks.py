"""The nodes' own directories, and which part of them is a run's."""

import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from parallel.agreement import on_all_ranks, on_first_rank
from parallel.nodes import Nodes
from train.checkpoint.local.config import LocalConfig
from train.errors import ConfigError, RunDirectoryError, UserError
from train.run_directory import RunDirectory
from train.storage.host_lock import FULL
from train.storage.place import Place
from train.storage.record import Record, content_of, parse

KEY: Final = "checkpoint.local"
_LABEL_CHARACTERS: Final = 80
_OWNER_NAME: Final = ".run.json"
"""In a run's directory on a node: whose it is."""
_MARK: Final = ".node-"
_LEFT_SECONDS: Final = 86_400.0
"""Since the last write, after which nothing can be under way with it."""
_BYTES_AT_MOST: Final = 1 << 16


class _Id(Record):
    """Under which name a run's checkpoints are on its nodes' disks.

    Attributes:
        id: ends the name.
        label: begins it; None where an earlier version did not say.
        directory: of the run when this was written, with all links followed; None likewise.
    """

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    label: Annotated[str, Field(pattern=r"^[\w.-]{0,80}$")] | None = None
    directory: str | None = None


_ID: Final = TypeAdapter(_Id)


def _id_in(file: Place) -> _Id | None:
    """What a file keeps; None if it is not there."""
    try:
        content = content_of(file, limit_bytes=_BYTES_AT_MOST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    remedy = "remove it, and the run goes on from its other checkpoints"
    return parse(_ID, content, name=str(file), error=RunDirectoryError, remedy=remedy)


class Disks:
    """Where a run's checkpoints lie on its nodes; made by every rank.

    In each node's directory the run has one of its own, whose name ends in an id that the run's
    directory keeps. So another run in a directory of the same name finds nothing; and another id
    has all that was saved before forgotten at once, also by nodes that are away. A run directory
    that is renamed keeps both; a copy of one gets an id of its own.

    Args:
        config: of the section.
        directory: that this node has to itself.
        label: begins the name.
        id_file: keeps the id.
    """

    def __init__(
        self, config: LocalConfig, directory: Place, *, label: str, id_file: Place
    ) -> None:
        self.nodes = Nodes.of_all_ranks()
        self.copies = min(config.copies, len(self.nodes.names) - 1)
        """That there are nodes for."""
        self._directory = directory
        self._label = re.sub(r"[^\w.-]", "_", label)[:_LABEL_CHARACTERS]
        self._id_file = id_file
        self._id, remarks = on_first_rank(self._read_id, UserError)
        self.remarks: list[str] = remarks
        """What whoever watches the run should know; the same on all ranks."""
        self.is_undone = False
        """Whether what was saved before `begin` is of steps that were undone since."""
        self._require_apart(config)

    @property
    def home(self) -> Place | None:
        """The run's directory on this node, which need not be there; None if it never had one."""
        if self._id is None:
            return None
        label = self._label if self._id.label is None else self._id.label
        return self._directory / f"{label}-{self._id.id}"

    def begin(self, *, anew: bool = False) -> Place:
        """Have the id kept, before anything is saved; every rank must call it.

        Args:
            anew: forget what was saved before.

        Returns:
            The run's directory on this node.

        Raises:
            RunDirectoryError: the id cannot be kept.
        """
        is_new = anew or self.is_undone or self._id is None
        forgotten = self.home if is_new else None
        self._id = on_first_rank(lambda: self._keep_id(is_new=is_new), UserError)
        self._remove(forgotten)
        assert self.home is not None
        if self.nodes.is_lead:
            self._remove_what_is_left()
        return self.home

    def say_whose(self) -> None:
        """Note in the run's directory on this node whose it is; after `begin`, on its lead.

        Raises:
            OSError: it cannot be written.
        """
        assert self._id is not None
        file = self._home / _OWNER_NAME
        if file.find() is None:
            file.write(self._id.model_dump_json().encode() + b"\n")

    def remove(self) -> None:
        """Remove what the run has on this node, as far as that can be: nobody needs it any more."""
        self._remove(self.home)

    def _remove(self, home: Place | None) -> None:
        if home is not None and self.nodes.is_lead:
            with contextlib.suppress(OSError):
                home.remove()

    def _remove_what_is_left(self) -> None:
        """Remove what runs have on this node that were complete, or forgot it, while it was away.

        And marks of starts that were killed as they looked at each other's.
        """
        for name in self._directory.names():
            path = Path(self._directory / name)
            with contextlib.suppress(OSError, UserError):
                if time.time() - path.stat().st_mtime < _LEFT_SECONDS or path == Path(self._home):
                    continue
                if name.startswith(_MARK) or _is_left(Place.of(path / _OWNER_NAME)):
                    Place.of(path).remove()

    @property
    def _home(self) -> Place:
        assert self.home is not None
        return self.home

    @property
    def _run_directory(self) -> str:
        return os.path.realpath(self._id_file.parent)

    def _keep_id(self, *, is_new: bool) -> _Id:
        label, here = self._label, self._run_directory
        if is_new or self._id is None:
            kept = _Id(id=secrets.token_hex(8), label=label, directory=here)
        elif self._id.directory == here:
            return self._id
        else:  # it has been renamed
            kept = _Id(id=self._id.id, label=self._id.label or label, directory=here)
        try:
            self._id_file.write(kept.model_dump_json().encode() + b"\n")
        except OSError as error:
            raise RunDirectoryError(
                f"{self._id_file} cannot be written ({error.strerror or error}): make room there, "
                "and run again to continue"
            ) from error
        return kept

    def _read_id(self) -> tuple[_Id | None, list[str]]:
        """What is kept, and what is to be said of it."""
        kept = _id_in(self._id_file)
        if kept is None or kept.directory is None:
            return kept, []
        there = Place.of(Path(kept.directory)) / self._id_file.name
        with contextlib.suppress(OSError, UserError):  # it is no more
            other = _id_in(there)
            if other is not None and other.id == kept.id:
                if os.path.samefile(there, self._id_file):
                    return kept, []
                told = f"{self._run_directory} is a copy of {kept.directory}"
                return None, [f"{KEY}: {told}, to which what lies on the nodes' disks belongs"]
        return kept, []

    def _require_apart(self, config: LocalConfig) -> None:
        """See that each node has its directory to itself, and that there are nodes for copies.

        Raises:
            ConfigError: that is not so; or it cannot be written.
        """
        names, here = self.nodes.names, self.nodes.here
        if self.copies < config.copies:
            nodes = "there is 1 node" if len(names) == 1 else f"there are {len(names)} nodes"
            told = f"{KEY}.copies: {config.copies} of each node's share, but {nodes}"
            if self._id is None:
                raise ConfigError(f"{told}: set it to {self.copies}, or take more nodes")
            # Nodes may have died since: that is no reason to stop.
            self.remarks.append(f"{told}: only {self.copies} can be kept")
        token = on_first_rank(lambda: f"{_MARK}{secrets.token_hex(4)}", UserError)
        mine = f"{token}-{here}"

        def mark() -> None:
            try:
                if self.nodes.is_lead:
                    (self._directory / mine).write(b"")
            except OSError as error:
                if error.errno not in FULL:  # that mends itself, and each save will tell
                    raise ConfigError(
                        f"{KEY}.directory: {self._directory} cannot be written on {names[here]} "
                        f"({error.strerror or error}): name another, or change its permissions"
                    ) from None

        def look() -> None:
            if not self.nodes.is_lead:
                return
            seen = (name for name in self._directory.names() if name.startswith(f"{token}-"))
            if others := [names[int(name.rpartition("-")[2])] for name in seen if name != mine]:
                raise ConfigError(
                    f"{KEY}.directory: {self._directory} is one and the same on {names[here]} and "
                    f"{others[0]}: name a disk that each node has to itself, or put "
                    "$SLURMD_NODENAME into it"
                )

        try:
            on_all_ranks(mark, UserError)
            on_all_ranks(look, UserError)
        finally:
            if self.nodes.is_lead:
                with contextlib.suppress(OSError):
                    (self._directory / mine).remove()


def _is_left(file: Place) -> bool:
    """Whether nobody needs what lies on a node any more, by what is kept there of its run."""
    kept = _id_in(file)
    if kept is None or kept.directory is None:
        return False
    run = RunDirectory(Path(kept.directory))
    now = _id_in(Place.of(run.local))
    return run.summary.exists() or (now is not None and now.id != kept.id)
