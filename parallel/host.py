"""How this process's node is called; imports nothing heavy."""

import os
import socket
from typing import Final

NODE: Final = "SEMICAUSAL_NODE"
"""Variable with the name by which a hostfile calls this host."""


def node_name() -> str:
    """As a hostfile or Slurm calls it (a host may be several of their nodes), else its host's."""
    names = (os.environ.get(name) for name in (NODE, "SLURMD_NODENAME"))
    return next(filter(None, names), None) or socket.gethostname()
