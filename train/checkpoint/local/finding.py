"""The newest step of which the nodes have every piece between them, whichever nodes are left."""

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist
import xxhash

from parallel.agreement import gathered, on_all_ranks
from parallel.nodes import Nodes
from train.checkpoint.background import chunk_file
from train.checkpoint.directory import complete, step_of
from train.checkpoint.format import (
    INDEX_BYTES_AT_MOST,
    INDEX_NAME,
    STATE_NAME,
    STEP_NAME,
    Index,
    State,
    stored_state,
)
from train.checkpoint.local.exchange import Transfer, deliver
from train.checkpoint.reader import ChunkReader
from train.errors import CheckpointError, LocalCheckpointError
from train.storage.place import Place


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What one node has of a step that it has committed.

    Attributes:
        name: of its directory.
        digest: of its index, by which it is the same step on another node.
        promised: sizes of all files of the step, by the index.
        files: sizes of those that are there.
    """

    name: str
    digest: str
    promised: dict[str, int]
    files: dict[str, int]

    @property
    def order(self) -> tuple[int, int]:
        """Step, and which time it was written."""
        match = STEP_NAME.match(self.name)
        assert match is not None
        return int(match[1]), int(match[2] or 1)


class WholeStep:
    """A step of which some node has every file, as far as sizes tell.

    It is read as if all were well, so that nothing is read twice. Where some rank finds damage,
    `mend` looks at every file that some node has, and leaves those that are whole.

    Attributes:
        path: its directory on this rank's node.
    """

    def __init__(
        self, path: Place, by_node: Mapping[int, _Held], nodes: Nodes, remarks: list[str]
    ) -> None:
        self.path = path
        self._nodes = nodes
        self._remarks = remarks
        one = next(iter(by_node.values()))
        self._sizes = one.promised | {INDEX_NAME: one.files[INDEX_NAME]}
        self._holders = _holders(by_node) | {INDEX_NAME: sorted(by_node)}
        self._is_mended = False

    def bring(self, files: Collection[str]) -> Place:
        """Fetch those files that a node lacks from those that have them; every rank must call it.

        Args:
            files: that this rank is going to read.

        Returns:
            Where they are.

        Raises:
            CheckpointError: some rank cannot read or write one.
        """
        transfers: list[Transfer] = []
        wanted = gathered(sorted(files))
        for node, ranks in enumerate(self._nodes.ranks):
            asked = {name for rank in ranks for name in wanted[rank]}
            lacking = sorted(name for name in asked if node not in self._holders[name])
            for number, name in enumerate(lacking):
                holders = self._holders[name]
                givers = self._nodes.ranks[holders[number % len(holders)]]
                transfers.append(
                    Transfer(
                        name=name,
                        num_bytes=self._sizes[name],
                        source=givers[number % len(givers)],
                        target=ranks[number % len(ranks)],
                    )
                )
        fault = deliver(transfers, self.path, group=None)

        def agree() -> Place:
            if fault is not None:
                raise CheckpointError(
                    f"{self.path} cannot be completed from other nodes "
                    f"({fault.strerror or fault}): make room, or remove it"
                )
            return self.path

        return on_all_ranks(agree, CheckpointError)

    def mend(self, found: CheckpointError) -> None:
        """After damage was found, have `bring` give nothing but what is whole.

        Every rank must call it. Each file is hashed, by a rank of a node that has it, until one is
        as it should be.

        Args:
            found: the damage, or what kept `bring` from giving a file.

        Raises:
            LocalCheckpointError: of some file there is no other; or it was mended before.
        """
        if self._is_mended:
            raise LocalCheckpointError(str(found)) from found
        self._is_mended = True
        self.require(self._sizes.keys() - {INDEX_NAME})

    def require(self, files: Collection[str]) -> None:
        """See that some node has each of some files as it should be; every rank must call it.

        Raises:
            LocalCheckpointError: one is nowhere.
        """
        left = {name: self._holders[name] for name in sorted(files)}
        good = _verified(self.path, left, self._nodes, self._remarks)
        if lacking := [name for name in left if name not in good]:
            raise LocalCheckpointError(_nowhere(self.path, lacking))
        self._holders |= {name: [node] for name, node in good.items()}


def whole_steps(
    home: Place, nodes: Nodes, *, at_least: int, remarks: list[str]
) -> Iterator[WholeStep]:
    """Steps that can be read as far as sizes tell, the newest first; every rank must ask for each.

    Args:
        home: of the run on this rank's node.
        nodes: of this start.
        at_least: no earlier step is looked for.
        remarks: receives what was wrong with others, the same on all ranks.
    """
    found = gathered(_held(home) if nodes.is_lead else [])
    by_step: dict[tuple[tuple[int, int], str], dict[int, _Held]] = defaultdict(dict)
    for node, ranks in enumerate(nodes.ranks):
        for held in found[ranks[0]]:
            if held.order[0] >= at_least:
                by_step[held.order, held.digest][node] = held
    for _, by_node in sorted(by_step.items(), key=lambda item: item[0], reverse=True):
        path = home / next(iter(by_node.values())).name
        if lacking := sorted(name for name, at in _holders(by_node).items() if not at):
            remarks.append(_nowhere(path, lacking))
            continue
        step = WholeStep(path, by_node, nodes, remarks)
        try:
            # The state says whether the run goes on from here at all.
            step.require([STATE_NAME])
            step.bring([INDEX_NAME, STATE_NAME])
        except CheckpointError as error:  # on all ranks
            remarks.append(str(error))
            continue
        yield step


def _holders(by_node: Mapping[int, _Held]) -> dict[str, list[int]]:
    """The nodes that have each file of a step in its size."""
    promised = next(iter(by_node.values())).promised
    return {
        name: [node for node, held in sorted(by_node.items()) if held.files.get(name) == num_bytes]
        for name, num_bytes in promised.items()
    }


def _nowhere(path: Place, lacking: Sequence[str]) -> str:
    files = lacking[0] if len(lacking) == 1 else f"{lacking[0]} and {len(lacking) - 1} more"
    return f"no node has step {step_of(path)} whole: {files} of it cannot be read"


def _held(home: Place) -> list[_Held]:
    """What this rank's node has; nothing where its disk fails."""
    found: list[_Held] = []
    with contextlib.suppress(OSError):
        for name in complete(home):
            with contextlib.suppress(CheckpointError, OSError):
                step = home / name
                index = Index.read(step)
                data = (step / INDEX_NAME).read(limit_bytes=INDEX_BYTES_AT_MOST)
                found.append(
                    _Held(
                        name=name,
                        digest=xxhash.xxh3_128(data).hexdigest(),
                        promised={name: file.bytes for name, file in index.files.items()},
                        files={file.name: file.num_bytes for file in step.files()},
                    )
                )
    return found


def _verified(
    path: Place, holders: Mapping[str, Sequence[int]], nodes: Nodes, remarks: list[str]
) -> dict[str, int]:
    """The node that has each of some files as it should be; files that none has are left out."""
    own = {chunk_file(rank): node for node, ranks in enumerate(nodes.ranks) for rank in ranks}
    left = {
        # First where it is going to be read.
        name: sorted(at, key=lambda node: node != own.get(name))
        for name, at in holders.items()
    }
    good: dict[str, int] = {}
    while asked := {name: at[0] for name, at in left.items() if at and name not in good}:
        ranks = nodes.ranks[nodes.here]
        at_this_node = sorted(name for name, node in asked.items() if node == nodes.here)
        found = _faults(path, at_this_node[ranks.index(dist.get_rank()) :: len(ranks)])
        for name, fault in (pair for each in gathered(found) for pair in each.items()):
            node = left[name].pop(0)
            if fault is None:
                good[name] = node
            else:
                remarks.append(f"{fault} (on {nodes.names[node]})")
    return good


def _faults(path: Place, files: Sequence[str]) -> dict[str, str | None]:
    """What is wrong with each of some files; None if nothing is."""
    if not files:  # of a node that may lack the index
        return {}
    try:
        index = Index.read(path)
    except CheckpointError as error:  # it was whole a moment ago
        return dict.fromkeys(files, str(error))
    found: dict[str, str | None] = {}
    with ChunkReader(path, index) as reader:
        for name in files:
            if name == STATE_NAME:
                try:
                    stored_state(path, index, State)
                    found[name] = None
                except CheckpointError as error:
                    found[name] = str(error)
            else:
                found[name] = next(reader.faults(only=name), None)
    return found
