"""The section `checkpoint.local:` of a configuration."""

from typing import Annotated

from pydantic import Field

from model.config import Config, PathText


class LocalConfig(Config):
    """Checkpoints on the nodes' own disks, beside those of `checkpoint.directory`.

    A run that is started again goes on from the newest that all its nodes have between them. Costs
    a second copy of each rank's share in host memory, and on each disk room for two checkpoints'
    shares, `copies` included.
    """

    directory: PathText
    """Directory of a disk that each node has to itself; where it would be one and the same,
    `$SLURMD_NODENAME` in it tells the nodes apart. Each run has a directory of its own in it."""
    every_steps: Annotated[int, Field(ge=1, le=10**12)]
    """A preemption saves as well."""
    copies: Annotated[int, Field(ge=0, le=16)] = 1
    """How many of the nodes that follow keep a copy of each node's share: as many nodes that stand
    next to each other may be lost."""
