"""A tool on several ranks: what one of them alone cannot do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from train.exit_status import ExitStatus

RANK = """
import os
from tools.launched import together
from train.errors import DataError

with together(timeout_seconds=120) as world:
    if world.rank == 1:
        raise DataError("this node has no corpus")
    os._exit(0)
"""


@pytest.mark.long
def test_a_rank_that_fails_alone_says_why() -> None:
    places = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        places["MASTER_PORT"] = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            cwd=Path(__file__).parents[2],
            env=os.environ | places | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, ExitStatus.MISTAKE]
    assert "this node has no corpus" in told[1]
    assert "Traceback" not in told[1]
