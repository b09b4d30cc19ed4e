"""A Slurm cluster of several nodes on this one machine, from Debian's packages, without systemd.

One `munged`, one `slurmctld`, and for every node a `slurmd` on its own port. All run as the
present user; only that user can submit jobs unless it is root. Nothing outside the directory is
written: the node names are known to Slurm alone and need no entry in `/etc/hosts`, because each
node's `NodeAddr` is 127.0.0.1 (programs that need an address ask `scontrol show node`).
"""

import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tools.lab.daemons import (
    LabError,
    Record,
    find_program,
    free_ports,
    is_alive,
    log_tails,
    prepare_directory,
    start,
    stop,
)

DEFAULT_DIRECTORY = Path("out/lab/slurm")
INSTALL_HINT = (
    "apt-get update && apt-get install -y --no-install-recommends "
    "slurmctld slurmd slurm-client munge"
)
START_TIMEOUT_SECONDS = 30.0
CALL_TIMEOUT_SECONDS = 60.0
# Unix socket paths hold 108 bytes with the closing zero, and munged adds ".lock" to its own.
MAX_SOCKET_PATH_BYTES = 102

CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# Requeued jobs wait until their old credential has expired, two minutes by default.
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/run/slurmctld.pid
SlurmdPidFile={directory}/run/slurmd-%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
SlurmdParameters=config_overrides
# No control groups: they need rights that containers seldom give.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/multifactor
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=10
MinJobAge=600
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=15
MessageTimeout=10
TCPTimeout=5
BatchStartTimeout=20
UnkillableStepTimeout=60
InactiveLimit=0
# Ids start at random, so that ports derived from them differ between labs on one machine.
FirstJobId={first_job_id}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
"""
NODE = (
    "NodeName=node{index} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 "
    "SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory_mib} State=UNKNOWN"
)


def up(
    directory: Path = DEFAULT_DIRECTORY,
    *,
    num_nodes: int = 2,
    num_cpus: int = 2,
    memory_mib: int = 4096,
) -> Record:
    """Start a cluster in `directory`, unless one of the same size runs there already.

    Partitions: `main` (the default; its jobs are preempted with 30 s of grace and requeued) and
    `high`, whose jobs preempt those of `main`.

    Args:
        directory: holds configuration, state and logs; emptied first.
        num_nodes: nodes `node1`, `node2`, …
        num_cpus: CPUs that each node claims, whatever the machine has.
        memory_mib: memory that each node claims.

    Returns:
        The record, whose `environment` makes `sbatch`, `srun` and the rest talk to this cluster.

    Raises:
        LabError: if a program is missing, a daemon ends, or the nodes do not become idle.
    """
    directory = directory.resolve()
    settings = {"num_nodes": num_nodes, "num_cpus": num_cpus, "memory_mib": memory_mib}
    record = Record.load(directory)
    if record is not None and record.is_running:
        if record.settings != settings:
            raise LabError(
                f"a cluster of another size already runs in {directory} ({record.settings}): "
                "take it down first"
            )
        return record
    names = ("munged", "slurmctld", "slurmd", "scontrol", "sinfo")
    programs = {name: find_program(name, install_hint=INSTALL_HINT) for name in names}
    if len(os.fsencode(directory / "munge.socket")) > MAX_SOCKET_PATH_BYTES:
        raise LabError(f"the path {directory} is too long for a socket: choose another --directory")
    down(directory)
    prepare_directory(directory)
    environment = {"SLURM_CONF": str(directory / "slurm.conf")}
    record = Record("slurm", settings, environment)
    record.save(directory)
    _configure(directory, num_nodes=num_nodes, num_cpus=num_cpus, memory_mib=memory_mib)
    try:
        _start(directory, record, programs)
        _wait_for_nodes(directory, record)
    except LabError:
        down(directory)
        raise
    return record


def _configure(directory: Path, *, num_nodes: int, num_cpus: int, memory_mib: int) -> None:
    for name in ("state", "log", "run"):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    host = socket.gethostname().split(".")[0]
    controller_port, *node_ports = free_ports(1 + num_nodes)
    nodes: list[str] = []
    for index, port in enumerate(node_ports, start=1):
        (directory / "spool" / f"node{index}").mkdir(parents=True)
        nodes.append(
            NODE.format(index=index, host=host, port=port, cpus=num_cpus, memory_mib=memory_mib)
        )
    text = CONFIGURATION.format(
        host=host,
        user=getpass.getuser(),
        directory=directory,
        controller_port=controller_port,
        first_job_id=1 + int.from_bytes(os.urandom(2)),
        nodes="\n".join(nodes),
    )
    (directory / "slurm.conf").write_text(text)
    # Read by slurmd even though nothing uses control groups; the default plug-in asks for systemd.
    (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")


def _start(directory: Path, record: Record, programs: Mapping[str, str]) -> None:
    def launch(name: str, *arguments: str) -> None:
        log = directory / "log" / f"{name}.out"
        command = [programs[name], *arguments]
        record.daemons.append(start(command, log=log, environment=record.environment))
        record.save(directory)

    launch(
        "munged",
        "--foreground",
        "--force",  # the directory may lie below one that others can write to, such as /tmp
        "--num-threads=2",
        f"--key-file={directory}/munge.key",
        f"--socket={directory}/munge.socket",
        f"--pid-file={directory}/run/munged.pid",
        f"--seed-file={directory}/run/munged.seed",
        f"--log-file={directory}/log/munged.log",
    )
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not (directory / "munge.socket").exists():
        _check_alive(directory, record)
        if time.monotonic() > deadline:
            raise LabError(f"munged opened no socket\n{_logs(directory)}")
        time.sleep(0.02)
    launch("slurmctld", "-D")
    for index in range(1, record.settings["num_nodes"] + 1):
        launch("slurmd", "-D", "-N", f"node{index}")


def _wait_for_nodes(directory: Path, record: Record) -> None:
    num_nodes = record.settings["num_nodes"]
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        answer = _call(record, "sinfo", "--noheader", "--Node", "--partition=main", "--states=idle")
        num_idle = len(answer.stdout.splitlines()) if answer.returncode == 0 else 0
        if num_idle >= num_nodes:
            return
        _check_alive(directory, record)
        if time.monotonic() > deadline:
            raise LabError(f"{num_idle} of {num_nodes} nodes came up\n{_logs(directory)}")
        time.sleep(0.1)


def _check_alive(directory: Path, record: Record) -> None:
    for daemon in record.daemons:
        if not is_alive(daemon):
            raise LabError(f"{daemon.name} ended at once\n{_logs(directory)}")


def _logs(directory: Path) -> str:
    return log_tails(*sorted((directory / "log").glob("*.log")))


def _call(record: Record, *command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env={**os.environ, **record.environment},
            capture_output=True,
            text=True,
            timeout=CALL_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no answer to {' '.join(command)} in {error.timeout:.0f} s") from error


def down(directory: Path = DEFAULT_DIRECTORY) -> None:
    """Kill the jobs of the cluster in `directory` and stop its daemons; the logs stay."""
    directory = directory.resolve()
    record = Record.load(directory)
    if record is None:
        return
    alive = {daemon.name for daemon in record.daemons if is_alive(daemon)}
    if {"munged", "slurmctld"} <= alive:
        _end_jobs(record)
    # Nothing in the state is wanted again, so no daemon needs time to save it.
    stop(record.daemons, with_signal=signal.SIGKILL, patience_seconds=10.0)


def _end_jobs(record: Record) -> None:
    """Cancel every job and wait until its processes have gone, so that none outlives the daemons.

    A job that ignores SIGTERM takes `KillWait` seconds (10): Slurm kills nothing before that.
    """
    # Pending jobs first, or they would take the place of those that end.
    _call(record, "scancel", "--state=PENDING")
    _call(record, "scancel", "--state=RUNNING")
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        answer = _call(record, "squeue", "--noheader", "--format=%i")
        jobs = answer.stdout.split()
        if answer.returncode != 0 or not jobs:
            return
        # Again, for jobs that were just then being requeued.
        _call(record, "scancel", *jobs)
        time.sleep(0.1)


def status(directory: Path = DEFAULT_DIRECTORY) -> str:
    """Return a few lines: whether the cluster runs, its nodes and its jobs."""
    directory = directory.resolve()
    record = Record.load(directory)
    if record is None or not record.is_running:
        return f"slurm: down ({directory})"
    daemons = ", ".join(f"{daemon.name} {daemon.process_id}" for daemon in record.daemons)
    nodes = _call(record, "sinfo", "--Node", "--format=%N %t %P %c").stdout.strip()
    jobs = _call(record, "squeue", "--format=%i %j %P %T %N %r").stdout.strip()
    return f"slurm: up ({directory})\n{daemons}\n{nodes}\n{jobs}"
