"""The nodes' own directories, and which part of them is a run's."""

import contextlib
import re
import secrets
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from parallel.agreement import on_all_ranks, on_first_rank
from parallel.nodes import Nodes
from train.checkpoint.local.config import LocalConfig
from train.errors import ConfigError, RunDirectoryError, UserError
from train.storage.host_lock import FULL
from train.storage.place import Place
from train.storage.record import Record, content_of, parse

KEY: Final = "checkpoint.local"
_LABEL_CHARACTERS: Final = 80
_BYTES_AT_MOST: Final = 4096


class _Id(Record):
    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


_ID: Final = TypeAdapter(_Id)


class Disks:
    """Where a run's checkpoints lie on its nodes; made by every rank.

    In each node's directory the run has one of its own, whose name ends in an id that the run's
    directory keeps. So another run in a directory of the same name finds nothing; and another id
    has all that was saved before forgotten at once, also by nodes that are away.

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
        self._id = on_first_rank(self._read_id, UserError)
        self.remarks: list[str] = []
        """What whoever watches the run should know; the same on all ranks."""
        self.is_undone = False
        """Whether what was saved before `begin` is of steps that were undone since."""
        self._require_apart(config)

    @property
    def home(self) -> Place | None:
        """The run's directory on this node, which need not be there; None if it never had one."""
        return None if self._id is None else self._directory / f"{self._label}-{self._id}"

    def begin(self, *, anew: bool = False) -> Place:
        """Have the id kept, before anything is saved; every rank must call it.

        Args:
            anew: forget what was saved before.

        Returns:
            The run's directory on this node.

        Raises:
            RunDirectoryError: the id cannot be kept.
        """

        def keep() -> str:
            given = secrets.token_hex(8)
            try:
                self._id_file.write(_Id(id=given).model_dump_json().encode() + b"\n")
            except OSError as error:
                raise RunDirectoryError(
                    f"{self._id_file} cannot be written ({error.strerror or error}): make room "
                    "there, and run again to continue"
                ) from error
            return given

        if anew or self.is_undone or self._id is None:
            forgotten = self.home
            self._id = on_first_rank(keep, UserError)
            self._remove(forgotten)
        assert self.home is not None
        return self.home

    def remove(self) -> None:
        """Remove what the run has on this node, as far as that can be: nobody needs it any more."""
        self._remove(self.home)

    def _remove(self, home: Place | None) -> None:
        if home is not None and self.nodes.is_lead:
            with contextlib.suppress(OSError):
                home.remove()

    def _read_id(self) -> str | None:
        try:
            content = content_of(self._id_file, limit_bytes=_BYTES_AT_MOST)
        except (FileNotFoundError, NotADirectoryError):
            return None
        remedy = "remove it, and the run goes on from its other checkpoints"
        name = str(self._id_file)
        return parse(_ID, content, name=name, error=RunDirectoryError, remedy=remedy).id

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
        token = on_first_rank(lambda: f".node-{secrets.token_hex(4)}", UserError)
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
