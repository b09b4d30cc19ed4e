"""Processes that have imported everything when they start, which takes five seconds of a core.

A server process imports, runs nothing, and forks each of them: there is no state and no thread
that a copy could spoil. Where torch is built for CUDA nothing is imported in advance, since a
process that has looked for GPUs cannot be forked.
"""

import multiprocessing
import os
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from tools.ranks import replace_environment, shorten_sockets

REPOSITORY = Path(__file__).parents[1]


@cache
def context() -> ForkServerContext:
    """Starts the server, which every process of this context comes from."""
    shorten_sockets()
    found = multiprocessing.get_context("forkserver")
    if torch.version.cuda is None:
        found.set_forkserver_preload(["tests.imported"])
    before = dict(os.environ)
    # Thread pools are sized when torch is imported.
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    try:
        forkserver.ensure_running()
    finally:
        replace_environment(before)
    return found
