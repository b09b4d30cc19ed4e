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
from train.checkpoint.directory import complete
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
from train.errors import CheckpointError
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


@dataclass(frozen=True, kw_only=True)
class WholeStep:
    """A step every piece of which some node has, as its index says.

    Attributes:
        path: its directory on this rank's node.
        holders: by file, the node that has it.
        sizes: of the files.
        nodes: of this start.
    """

    path: Place
    holders: Mapping[str, Collection[int]]
    sizes: Mapping[str, int]
    nodes: Nodes

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
        for node, ranks in enumerate(self.nodes.ranks):
            asked = {name for rank in ranks for name in wanted[rank]}
            lacking = sorted(name for name in asked if node not in self.holders[name])
            for number, name in enumerate(lacking):
                givers = self.nodes.ranks[min(self.holders[name])]
                transfers.append(
                    Transfer(
                        name=name,
                        num_bytes=self.sizes[name],
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


def whole_steps(
    home: Place, nodes: Nodes, *, at_least: int, remarks: list[str]
) -> Iterator[WholeStep]:
    """Steps that can be read, the newest first; every rank must ask for as many.

    Each piece is hashed by a rank of a node that has it.

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
    for (order, _), by_node in sorted(by_step.items(), key=lambda item: item[0], reverse=True):
        one = next(iter(by_node.values()))
        path = home / one.name
        holders = _verified(path, by_node, nodes, remarks)
        if lacking := sorted(one.promised.keys() - holders.keys()):
            files = lacking[0] if len(lacking) == 1 else f"{lacking[0]} and {len(lacking) - 1} more"
            remarks.append(f"no node has step {order[0]} whole: {files} of it cannot be read")
            continue
        step = WholeStep(
            path=path,
            holders={name: [node] for name, node in holders.items()} | {INDEX_NAME: list(by_node)},
            sizes=one.promised | {INDEX_NAME: one.files[INDEX_NAME]},
            nodes=nodes,
        )
        try:
            step.bring([INDEX_NAME, STATE_NAME])
        except CheckpointError as error:  # on all ranks
            remarks.append(str(error))
            continue
        yield step


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
    path: Place, by_node: Mapping[int, _Held], nodes: Nodes, remarks: list[str]
) -> dict[str, int]:
    """The node that has each file of a step as it should be; files that none has are left out."""
    promised = next(iter(by_node.values())).promised
    own = {chunk_file(rank): node for node, ranks in enumerate(nodes.ranks) for rank in ranks}
    left = {
        # First where it is going to be read.
        name: sorted(
            (node for node, held in by_node.items() if held.files.get(name) == num_bytes),
            key=lambda node: node != own.get(name),
        )
        for name, num_bytes in promised.items()
    }
    if not all(left.values()):
        return {name: asked[0] for name, asked in left.items() if asked}
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
