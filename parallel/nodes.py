"""Which ranks share a node."""

from dataclasses import dataclass
from typing import Self

import torch.distributed as dist

from parallel.agreement import gathered
from parallel.host import node_name


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """All nodes, in the order of their first ranks.

    Attributes:
        names: of the nodes.
        ranks: of each node, in rising order.
    """

    names: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]

    @classmethod
    def of_all_ranks(cls) -> Self:
        """Every rank must call it."""
        ranks: dict[str, list[int]] = {}
        for rank, name in enumerate(gathered(node_name())):
            ranks.setdefault(name, []).append(rank)
        return cls(names=tuple(ranks), ranks=tuple(map(tuple, ranks.values())))

    @property
    def here(self) -> int:
        """Number of this rank's node."""
        rank = dist.get_rank()
        return next(number for number, ranks in enumerate(self.ranks) if rank in ranks)

    @property
    def is_lead(self) -> bool:
        """Whether this rank does what is done once on each node."""
        return self.ranks[self.here][0] == dist.get_rank()
