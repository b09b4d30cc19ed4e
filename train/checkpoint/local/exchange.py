"""Files from node to node, over connections by which the ranks reach each other anyway.

No daemon, port or secret is needed beside those of the run, and who dies is noticed as in training.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from train.storage.place import Place, Source

BLOCK_BYTES = 1 << 24
"""What is sent at a time."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A file that one rank reads and another one writes.

    Attributes:
        name: in the directory, of either.
        num_bytes: its size.
        source: rank that has it.
        target: rank of another node that lacks it.
    """

    name: str
    num_bytes: int
    source: int
    target: int

    @property
    def blocks(self) -> list[int]:
        """Sizes of what is sent at a time."""
        starts = range(0, self.num_bytes, BLOCK_BYTES)
        return [min(BLOCK_BYTES, self.num_bytes - start) for start in starts]


@dataclass
class _Round:
    """Transfers of which a rank sends one at most, and receives one at most."""

    sent: dict[int, Transfer] = field(default_factory=dict)
    received: dict[int, Transfer] = field(default_factory=dict)


def deliver(transfers: Sequence[Transfer], directory: Place, *, group: Any) -> OSError | None:
    """Sends and receives files; every rank must call it, with the same transfers.

    Args:
        transfers: in the same order on all ranks.
        directory: of this rank's node.
        group: process group of all ranks; None is the default one.

    Returns:
        What kept this rank from reading or writing a file, if anything did; the files that it
        wrote for others, or lacks, are then not to be trusted. To be agreed on by all ranks.
    """
    rank, fault = dist.get_rank(), None
    for each in _rounds(transfers):
        found = _pass(each.sent.get(rank), each.received.get(rank), directory, group=group)
        fault = fault or found
    return fault


def _rounds(transfers: Sequence[Transfer]) -> list[_Round]:
    rounds: list[_Round] = []
    for transfer in transfers:
        fitting = (
            each
            for each in rounds
            if transfer.source not in each.sent and transfer.target not in each.received
        )
        if (chosen := next(fitting, None)) is None:
            rounds.append(chosen := _Round())
        chosen.sent[transfer.source] = chosen.received[transfer.target] = transfer
    return rounds


def _pass(
    sent: Transfer | None, received: Transfer | None, directory: Place, *, group: Any
) -> OSError | None:
    """Send a file and receive another one, a block of each at a time.

    Whatever fails here, as many bytes come and go as the other ranks wait for.
    """
    leaving, coming = torch.empty(2, BLOCK_BYTES, dtype=torch.uint8)
    faults: list[OSError] = []
    with (
        closing(_read(directory, sent, leaving, faults)) as reading,
        closing(_write(directory, received, coming, faults)) as writing,
    ):
        next(writing)
        blocks = (transfer.blocks if transfer else [] for transfer in (sent, received))
        for num_sent, num_received in zip_longest(*blocks, fillvalue=0):
            works: list[Any] = []
            if received is not None and num_received:
                works.append(dist.irecv(coming[:num_received], received.source, group=group))
            if sent is not None and num_sent:
                next(reading)
                works.append(dist.isend(leaving[:num_sent], sent.target, group=group))
            for work in works:
                work.wait()
            writing.send(num_received)
        writing.send(None)
    return faults[0] if faults else None


def _read(
    directory: Place, sent: Transfer | None, into: Tensor, faults: list[OSError]
) -> Generator[None]:
    """Fill a buffer with one block of a file after the other; after a fault it stays as it is."""
    source: Source | None = None
    offset = 0
    try:
        for num_bytes in [] if sent is None else sent.blocks:
            if not faults and sent is not None:
                try:
                    source = source or (directory / sent.name).open()
                    source.read_into(into[:num_bytes].numpy().data, offset=offset)
                except OSError as error:
                    faults.append(error)
            offset += num_bytes
            yield
    finally:
        if source is not None:
            source.close()


def _write(
    directory: Place, received: Transfer | None, of: Tensor, faults: list[OSError]
) -> Generator[None, int | None]:
    """Write what a buffer holds, as much as is sent in here, until that is None.

    After a fault nothing more is written, and no file is left.
    """
    try:
        if received is not None:
            with (directory / received.name).create() as sink:
                while (num_bytes := (yield)) is not None:
                    if num_bytes:
                        sink.write(of[:num_bytes].numpy().data)
    except OSError as error:
        faults.append(error)
    while True:
        yield
