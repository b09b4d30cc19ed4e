"""What launchers say to a process: taken whole, or refused in one sentence."""

import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from torch._C._distributed_c10d import TCPStore

from parallel.launcher import Launched, LaunchError, meet, read

ROOT = Path(__file__).parents[2]
MET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1, 0)),
        ({"MASTER_ADDR": "x"}, (0, 1, 0)),
        ({"LOCAL_RANK": "1"}, (0, 1, 0)),
        ({"WORLD_SIZE": "1"}, (0, 1, 0)),
        ({"RANK": "", "WORLD_SIZE": ""}, (0, 1, 0)),
        (MET | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
        (MET | {"RANK": "3", "WORLD_SIZE": "4"}, (3, 4, 0)),
        (MET | SRUN | {"SLURM_STEP_NUM_TASKS": "2"}, (1, 2, 0)),
        # srun starts one torchrun a node, which starts the ranks.
        (
            MET
            | SRUN
            | {"SLURM_STEP_NUM_TASKS": "2", "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"},
            (9, 16, 1),
        ),
        (SRUN | {"SLURM_PROCID": "0"}, (0, 1, 0)),
        (SRUN | MET | {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1, 0)),
        (SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0)),
        (MET | OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}, (1, 2, 1)),
        (MET | {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}, (1, 2, 1)),
    ],
)
def test_it_is_taken_whole(environment: dict[str, str], place: tuple[int, int, int]) -> None:
    launched = read(environment)
    assert (launched.rank, launched.size, launched.local_rank) == place
    is_batch_script = environment.get("SLURM_NTASKS") in ("2", "8") and place[1] == 1
    is_batch_script &= "SLURM_STEP_NUM_TASKS" not in environment
    assert (launched.remark is not None) == is_batch_script


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"WORLD_SIZE": "4"}, "RANK: is missing beside .* unset WORLD_SIZE"),
        ({"RANK": "0"}, "WORLD_SIZE: is missing beside .* unset RANK"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, "MASTER_ADDR and MASTER_PORT: are missing, and 4 ranks"),
        ({"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT: is missing"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK: 5 is no rank of WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE: 0 processes are none: set it to 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: 0 processes are none"),
        (MET | {"RANK": "0000000001", "WORLD_SIZE": "2"}, "RANK: '0000000001' is no number of at"),
        (MET | {"RANK": "0", "WORLD_SIZE": "20000000000"}, "WORLD_SIZE: '20000000000' is no num"),
        (MET | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "0000000290"}, "MASTER_PORT: '000"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK: 'a' is no number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK: '-1' is no number"),
        ({"RANK": "٣", "WORLD_SIZE": "4"}, "RANK: '٣' is no number"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "x"}, "LOCAL_RANK: 'x' is no number"),
        (MET | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "banana"}, "MASTER_PORT: 'banana'"),
        (MET | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000"}, "MASTER_PORT: '70000'"),
        (
            MET | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "no.such.host.invalid"},
            "MASTER_ADDR: no host is called 'no.such.host.invalid'",
        ),
        (
            MET | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a" * 300},
            "MASTER_ADDR: no host is called 'aaa",
        ),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "2"}, "MASTER_ADDR and MASTER_PORT: are missing"),
        (
            MET | SRUN | {"SLURM_STEP_NUM_TASKS": "2", "RANK": "0", "WORLD_SIZE": "1"},
            r"WORLD_SIZE: 1 processes, but srun has started 2 \(SLURM_STEP_NUM_TASKS\): unset RANK",
        ),
        (OPEN_MPI, "MASTER_ADDR and MASTER_PORT: are missing"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK: is missing beside"),
    ],
)
def test_what_makes_no_sense_is_refused(environment: dict[str, str], fault: str) -> None:
    with pytest.raises(LaunchError, match=fault) as caught:
        read(environment)
    assert len(str(caught.value)) < 330
    assert "\n" not in str(caught.value)


MEETING = """
import os, sys
from parallel.launcher import LaunchError, announced, meet
try:
    meet(announced(), timeout_seconds=float(sys.argv[1]))
    print("met")
except LaunchError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("ranks", "size", "seconds", "told"),
    [
        pytest.param([0, 1, 2], 3, 30, ["met", "met", "met"], marks=pytest.mark.long),
        pytest.param(
            [0],
            2,
            2,
            ["did not meet at .* within 2 s: rank 0 has waited for rank 1: start every"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            [1],
            2,
            2,
            ["did not meet at .* rank 1 has waited for rank 0: start every"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            [0, 1, 1],
            3,
            4,
            ["waited for rank 2", "", "two processes .* call themselves rank 1 of"],
            marks=pytest.mark.long,
        ),
        ([0, 0], 2, 4, ["did not meet", "MASTER_PORT: .* in use by another process"]),
    ],
)
def test_ranks_meet_or_say_who_is_missing(
    ranks: list[int], size: int, seconds: float, told: list[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING, str(seconds)],
            env={
                "PYTHONPATH": str(ROOT),
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in ranks
    ]
    said = [process.communicate(timeout=90)[0] for process in processes]
    patterns = list(told)
    for pattern in patterns:
        assert any(re.search(pattern, text) for text in said), (pattern, said)


def test_ranks_that_torchrun_starts_again_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its store is that of the ranks before, who have left in it that they were there."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    ranks = [Launched(rank=rank, size=2, local_rank=rank) for rank in range(2)]
    for count in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        with ThreadPoolExecutor() as threads:
            first, second = threads.map(partial(meet, timeout_seconds=20), ranks)
        first.set("who", count)
        assert second.get("who") == count.encode()
    with pytest.raises(LaunchError, match=r"two processes at .* call themselves rank 1 of 2"):
        meet(ranks[1], timeout_seconds=20)
