"""Starting the ranks of one attempt, asking them to stop, ending them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from subprocess import DEVNULL, Popen
from typing import Final, Protocol

from tools.keep import looking
from tools.keep.agents import ranks_per_node, step_of
from tools.keep.hosts import HostRanks, Hosts
from tools.keep.looking import Look, look
from tools.keep.nodes import PORTS_APART, address_of, asked, called
from tools.keep.shell import RANK
from tools.lab.daemons import free_ports
from train.errors import UserError
from train.exit_status import ExitStatus
from train.watch.heartbeat import ADDRESS, STANDBY

SPEAKS: Final = "train"
"""The module whose ranks tell where they are."""

_CALL_SECONDS: Final = 60.0
_KILL_SECONDS: Final = 30.0
"""A process that waits for a disk that is away cannot be killed: it is left behind."""
_PORTS: Final = 3
"""Of a job, so that a new start does not wait for the port of the last."""


class Ranks(Protocol):
    """The processes of one attempt."""

    num_ranks: int
    knows_each: bool
    """Whether `statuses` are the ranks' own, and not the highest of all."""

    def statuses(self) -> dict[int, int]:
        """Exit status of each rank that is known to have ended, negative for a signal."""
        ...

    def looks(self, processes: Mapping[int, tuple[str, int]]) -> dict[int, Look]:
        """What ranks are found at.

        Args:
            processes: by rank, its node and its process there, as it has said itself.
        """
        ...

    @property
    def all_ended(self) -> bool:
        """Whether nothing runs any more."""
        ...

    def ask(self) -> None:
        """Ask all to save and stop; again and again, for one that imports has not heard."""
        ...

    def kill(self, are_gone: Callable[[], bool] = lambda: False) -> None:
        """End all at once; returns when they have gone.

        Args:
            are_gone: whether all are known to have gone, whatever their launcher says.
        """
        ...


class LocalRanks:
    """Ranks of this host, each a process in a session of its own.

    A terminal's Ctrl-C does not reach them: the keeper tells them once.

    Args:
        command: that each runs.
        num_ranks: processes.
        environment: of all; a rank's place is added.
    """

    knows_each = True

    def __init__(
        self, command: Sequence[str], *, num_ranks: int, environment: Mapping[str, str]
    ) -> None:
        self.num_ranks = num_ranks
        port = str(free_ports(1)[0])
        self._processes: list[Popen[bytes]] = []
        for rank in range(num_ranks):
            place = {
                **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
                **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(num_ranks)),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            try:
                process = Popen(
                    [*RANK, *command],
                    env={**environment, **place},
                    stdin=DEVNULL,
                    start_new_session=True,
                )
            except OSError:
                self.kill()
                raise
            self._processes.append(process)

    def statuses(self) -> dict[int, int]:
        """Exit status of each rank that has ended."""
        found = ((rank, process.poll()) for rank, process in enumerate(self._processes))
        return {rank: status for rank, status in found if status is not None}

    def looks(self, processes: Mapping[int, tuple[str, int]]) -> dict[int, Look]:
        """What ranks are found at, those that never spoke, too."""
        del processes
        return {rank: look(process.pid) for rank, process in enumerate(self._processes)}

    @property
    def all_ended(self) -> bool:
        """Whether no process runs any more."""
        return len(self.statuses()) == self.num_ranks

    def ask(self) -> None:
        """Send SIGUSR1 to each."""
        for process in self._processes:
            process.send_signal(signal.SIGUSR1)

    def kill(self, are_gone: Callable[[], bool] = lambda: False) -> None:
        """Kill each with whatever it has started."""
        del are_gone
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        until = time.monotonic() + _KILL_SECONDS
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, until - time.monotonic()))


class SlurmRanks:
    """Ranks of a job step, one a task of the allocation.

    Args:
        command: that each runs.
        launcher: what starts them, see `tools.keep.agents`.
        inside: words that enter a container.
        environment: of all.
        nodes: on which they run; None where Slurm says it.
        number: of the attempt, from 0.
        wait_seconds: after which srun ends the others, once one has ended; 0 for never.
    """

    knows_each = False

    def __init__(
        self,
        command: Sequence[str],
        *,
        launcher: str,
        inside: Sequence[str],
        environment: Mapping[str, str],
        nodes: Sequence[str] | None,
        number: int,
        wait_seconds: int,
    ) -> None:
        self.num_ranks = int(environment["SLURM_NTASKS"])
        num_nodes, there = int(environment.get("SLURM_JOB_NUM_NODES", "1")), list[str]()
        if nodes is not None:
            num_nodes = len(nodes)
            self.num_ranks = num_nodes * ranks_per_node(environment)
            there = [f"--nodes={num_nodes}", f"--nodelist={','.join(nodes)}"]
            there += [f"--ntasks={self.num_ranks}"]
            environment = {**environment, "MASTER_ADDR": address_of(nodes[0])}
        self._inside = inside
        port = int(environment["MASTER_PORT"]) + PORTS_APART * (number % _PORTS)
        self._name = f"ranks-{number}"
        # A rank that saved and left is no reason to kill: the keeper ends the others itself.
        self._step = Popen(
            [
                # Ranks that stand by share what those that run have.
                *("srun", "--label", "--kill-on-bad-exit=0", "--export=ALL", "--overlap"),
                *(f"--wait={wait_seconds}", f"--job-name={self._name}", *there),
                *step_of(
                    launcher,
                    command,
                    inside=inside,
                    environment=environment,
                    num_nodes=num_nodes,
                    port=port,
                ),
            ],
            env={**environment, "MASTER_PORT": str(port)},
            stdin=DEVNULL,
            start_new_session=True,
        )
        self._job = environment["SLURM_JOB_ID"]

    def statuses(self) -> dict[int, int]:
        """That of srun, the highest of all, once it has ended; before, nothing is known."""
        status = self._step.poll()
        return {} if status is None else dict.fromkeys(range(self.num_ranks), status)

    def looks(self, processes: Mapping[int, tuple[str, int]]) -> dict[int, Look]:
        """What ranks are found at, by a look on each node; without those that do not answer."""

        def asked_on(node: str, arguments: Sequence[str]) -> str | None:
            command = [*self._inside, sys.executable, "-m", looking.__name__, *arguments]
            return asked(node, *command, seconds=looking.LOOK_SECONDS)

        return looking.looks_on(processes, asked_on)

    @property
    def all_ended(self) -> bool:
        """Whether the step has ended."""
        return self._step.poll() is not None

    def ask(self) -> None:
        """Send SIGUSR1 to srun, which forwards it to the ranks; on TERM it would kill them."""
        self._step.send_signal(signal.SIGUSR1)

    def kill(self, are_gone: Callable[[], bool] = lambda: False) -> None:
        """Kill the step's processes, on whatever node."""
        until = time.monotonic() + _KILL_SECONDS
        while self._step.poll() is None and time.monotonic() < until:
            steps = called("squeue", "--steps", f"--jobs={self._job}", "--format=%i %j")
            for line in (steps or "").splitlines():
                step, _, name = line.strip().partition(" ")
                if name == self._name:
                    called("scancel", "--signal=KILL", step)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._step.wait(timeout=2.0)
            if are_gone():  # of a dead node Slurm says so only after minutes
                break
        if self._step.poll() is None:  # one that Slurm knows nothing of, or does not say
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._step.pid, signal.SIGKILL)
            self._step.wait()


def start(
    module: str,
    arguments: Sequence[str],
    *,
    launcher: str,
    hosts: Hosts | None,
    inside: Sequence[str],
    num_ranks: int,
    threads: int | None,
    address: str,
    nodes: Sequence[str] | None,
    number: int,
    stands_by: bool,
) -> Ranks:
    """Start the ranks of an attempt.

    Args:
        module: that each runs.
        arguments: that it is given.
        launcher: "plain", or what starts the ranks of a job of Slurm, or of some hosts.
        hosts: on which they run; None for this one, or the nodes of a job.
        inside: words that enter a container, unless it is plain.
        num_ranks: processes, of the plain launcher.
        threads: of each; None leaves it to the environment.
        address: of the keeper.
        nodes: of a job, on which they run; None where Slurm says it.
        number: of the start, from 0.
        stands_by: whether the ranks do their imports and wait until they are needed.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if module == SPEAKS:
        environment[ADDRESS] = address
    if stands_by:
        environment[STANDBY] = "1"
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if hosts is not None:
        return HostRanks(
            command, launcher=launcher, hosts=hosts, inside=inside, environment=environment
        )
    if launcher != "plain":
        # Ranks that speak are seen to end one by one, and ended by the keeper itself.
        wait_seconds = 0 if module == SPEAKS else 60
        return SlurmRanks(
            command,
            launcher=launcher,
            inside=inside,
            environment=environment,
            nodes=nodes,
            number=number,
            wait_seconds=wait_seconds,
        )
    return LocalRanks(command, num_ranks=num_ranks, environment=environment)


def requeue(job: str) -> ExitStatus:
    """Give a job back to Slurm, which starts it again later.

    Once it was cancelled or already requeued its state is no longer RUNNING. A cancelled job must
    not be requeued: Slurm would obey, and `scancel` would not end it.

    Returns:
        What the keeper is to end with.
    """
    shown = called("scontrol", "--oneliner", "show", "job", job)
    if shown and "JobState=RUNNING" not in shown.split():
        return ExitStatus.SAVED
    sys.stderr.write(f"job {job}: saved; requeued to continue\n")
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=_CALL_SECONDS)
    except (OSError, subprocess.SubprocessError):
        sys.stderr.write(f"job {job}: not requeued; submit the same command again to continue\n")
        return ExitStatus.SAVED
    return ExitStatus.COMPLETE


def require_allocation(launcher: str) -> None:
    """Refuse `srun` and what it starts where it would ask for an allocation of its own.

    Raises:
        UserError: there is none.
    """
    missing = [
        n
        for n in ("SLURM_JOB_ID", "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT")
        if n not in os.environ
    ]
    if missing:
        raise UserError(
            f"--launcher: {launcher} needs an allocation, and {missing[0]} is not set: submit "
            "slurm/pretrain.sh with sbatch, or use --launcher plain"
        )
