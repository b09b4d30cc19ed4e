"""What a launcher says to each process that it starts, and where these meet.

The one reader of launchers' variables. Each is taken whole or refused in one sentence: half of an
environment, such as a forgotten `export WORLD_SIZE`, must neither start a run of another size nor
have ranks wait for others that never come.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from parallel.errors import UserError

RESTARTS: Final = "TORCHELASTIC_RESTART_COUNT"
"""Variable in which torchrun says how often it has started the ranks again."""


class LaunchError(UserError):
    """A process was started in a way that makes no sense; the message says what to change."""


class Launcher(NamedTuple):
    """The variables in which a launcher tells a process its place."""

    rank: str
    size: str
    local_rank: str


LAUNCHERS: Final = {
    "torchrun or deepspeed": Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    # Not SLURM_NTASKS: a batch script has it too, of which srun has started nothing.
    "srun": Launcher("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "mpirun (Open MPI)": Launcher(
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"
    ),
    "mpirun (MPICH)": Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
}

_SAY_AFTER_SECONDS: Final = 20.0


@dataclass(frozen=True, kw_only=True)
class Launched:
    """This process among those that were started together.

    Attributes:
        rank: global rank.
        size: number of ranks.
        local_rank: rank on this host.
        remark: what the user should know of how it was started.
    """

    rank: int
    size: int
    local_rank: int
    remark: str | None = None


def announced() -> Launched:
    """What this process's environment says; kept there under the names that DeepSpeed reads.

    Raises:
        LaunchError: it contradicts itself, or lacks something.
    """
    launched = read(os.environ)
    os.environ.update(
        RANK=str(launched.rank), WORLD_SIZE=str(launched.size), LOCAL_RANK=str(launched.local_rank)
    )
    return launched


def read(environment: Mapping[str, str]) -> Launched:
    """What the variables of the first launcher say that has set its own.

    A launcher says a size (or RANK). Without, nothing has started this process: LOCAL_RANK and
    MASTER_ADDR alone, which shells and batch scripts export, mean nothing.

    Raises:
        LaunchError: they contradict themselves or another launcher's, or something is missing.
    """
    launchers = {
        name: variables
        for name, variables in LAUNCHERS.items()
        if environment.get(variables.size, "") != ""
        or (variables.rank == "RANK" and environment.get("RANK", "") != "")
    }
    if not launchers:
        return _alone(environment)
    name, variables = next(iter(launchers.items()))
    size = _number(environment, variables.size, name)
    if size == 0:
        raise LaunchError(f"{variables.size}: 0 processes are none: set it to 1 or more")
    if size == 1 and environment.get(variables.rank, "") == "":
        rank = 0
    else:
        rank = _number(environment, variables.rank, name)
    if rank >= size:
        raise LaunchError(
            f"{variables.rank}: {rank} is no rank of {variables.size}={size} processes: ranks go "
            f"from 0 to {size - 1}; correct one, or unset both"
        )
    for other, its in launchers.items():
        if (started := _number(environment, its.size, other)) > size:
            raise LaunchError(
                f"{variables.size}: {size} processes, but {other} has started {started} "
                f"({its.size}): unset {variables.rank}, {variables.size} and "
                f"{variables.local_rank}, which are left from something else"
            )
    if size > 1:
        _check_meeting_place(environment, size)
    return Launched(
        rank=rank, size=size, local_rank=_local_rank(environment, variables, name, size)
    )


def meet(launched: Launched, *, timeout_seconds: float) -> Store:
    """The store over which the ranks find each other, once all are there; every rank must call it.

    Raises:
        LaunchError: not all came in time, or two of them have one number.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    timeout = timedelta(seconds=timeout_seconds)
    rank, size = launched.rank, launched.size
    missing: list[int] = []
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
        if (count := os.environ.get(RESTARTS, "0")) != "0":
            # torchrun's store outlives ranks that it starts again, with all that they left there.
            store = PrefixStore(f"start {count}", store)
        roll = PrefixStore("roll call", store)
        if roll.add(str(rank), 1) > 1:
            raise LaunchError(
                f"RANK: two processes at {place} call themselves rank {rank} of {size}: give each "
                "its own number, or another MASTER_PORT where they are two runs"
            )
        if rank == 0:
            missing = _missing(roll, size, place, timeout_seconds)
            if not missing:
                roll.set("all", "there")
                return store
        else:
            roll.wait(["all"], timeout)
            return store
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            raise LaunchError(
                f"MASTER_PORT: {place} is in use by another process, perhaps a run beside this one "
                "or a second rank 0: choose another port"
            ) from None
        missing = [each for each in range(size) if each != rank]
    raise LaunchError(
        f"the {size} ranks that WORLD_SIZE announces did not meet at {place} within "
        f"{timeout_seconds:g} s: rank {rank} has waited for {_listed(missing)}: start every rank, "
        "and let MASTER_ADDR and MASTER_PORT name the host of rank 0 and a port that all reach"
    )


def _missing(roll: Store, size: int, place: str, timeout_seconds: float) -> list[int]:
    """Ranks that have not come in time; says in the meantime which it waits for."""
    missing = list(range(size))
    began, is_told = time.monotonic(), False
    while missing := [each for each in missing if not roll.check([str(each)])]:
        waited = time.monotonic() - began
        if waited > timeout_seconds:
            break
        if waited > _SAY_AFTER_SECONDS and not is_told:
            sys.stderr.write(f"waiting at {place} for {_listed(missing)} of {size} to start\n")
            is_told = True
        time.sleep(0.05)
    return missing


def _alone(environment: Mapping[str, str]) -> Launched:
    tasks = environment.get("SLURM_NTASKS", "1")
    remark = None
    if "SLURM_JOB_ID" in environment or "SLURM_PROCID" in environment:
        remark = (
            f"SLURM_NTASKS={tasks}, but srun did not start this process: it trains alone; `srun "
            "python -m train ...` starts all tasks (see slurm/pretrain.sh)"
        )
    return Launched(rank=0, size=1, local_rank=0, remark=None if tasks == "1" else remark)


def _number(environment: Mapping[str, str], name: str, launcher: str) -> int:
    text = environment.get(name, "")
    if text == "":
        raise LaunchError(
            f"{name}: is missing beside what else {launcher} sets: start with it, or unset "
            f"{', '.join(each for each in LAUNCHERS[launcher] if environment.get(each))}"
        )
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise LaunchError(
            f"{name}: {text[:40]!r} is no number of at most nine digits: {launcher} sets it, or "
            "unset it"
        )
    return int(text)


def _local_rank(
    environment: Mapping[str, str], variables: Launcher, launcher: str, size: int
) -> int:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if environment.get(variables.local_rank, "") == "":
        if size > 1 and gpus > 1:
            _number(environment, variables.local_rank, launcher)
        return 0
    local_rank = _number(environment, variables.local_rank, launcher)
    if gpus and local_rank >= gpus:
        raise LaunchError(
            f"{variables.local_rank}: {local_rank}, but this host shows {gpus} GPU(s): start at "
            "most one rank for each, or look at CUDA_VISIBLE_DEVICES"
        )
    return local_rank


def _check_meeting_place(environment: Mapping[str, str], size: int) -> None:
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if lacking:
        raise LaunchError(
            f"{' and '.join(lacking)}: {'is' if len(lacking) == 1 else 'are'} missing, and {size} "
            "ranks have to meet: torchrun, deepspeed and slurm/pretrain.sh set them; by hand, name "
            "the host of rank 0 and a free port"
        )
    address, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 2**16):
        raise LaunchError(f"MASTER_PORT: {port[:40]!r} is no port: choose one from 1024 to 65535")
    try:
        socket.getaddrinfo(address, int(port))
    except (OSError, UnicodeError):
        raise LaunchError(
            f"MASTER_ADDR: no host is called {address[:80]!r}: name the host of rank 0, or its "
            "address"
        ) from None


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"rank {shown}" + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
