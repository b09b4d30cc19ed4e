"""A Slurm cluster of several nodes on this one machine, from Debian's packages, without systemd.

One `munged`, one `slurmctld`, and for every node a `slurmd` on its own port. All run as the
present user; only that user can submit jobs unless it is root. Nothing outside the directory is
written: the node names are known to Slurm alone and need no entry in `/etc/hosts`, because each
node's `NodeAddr` is 127.0.0.1 (programs that need an address ask `scontrol show node`).
"""

import contextlib
import os
import pwd
import socket
import time
from functools import partial
from pathlib import Path

import psutil

from tools.lab.daemons import Daemon, LabError, Record, find_program, free_ports, is_alive, kill
from tools.lab.jobs import called

INSTALL_HINT = (
    "apt-get update && apt-get install -y --no-install-recommends "
    "slurmctld slurmd slurm-client munge"
)
END_TIMEOUT_SECONDS = 30.0
MAX_SOCKET_PATH_BYTES = 107  # and a closing zero

CONFIGURATION = """\
ClusterName=lab{first_job_id}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# Requeued jobs wait until their old credential has expired, two minutes by default.
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n
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
# Ids start at random, so that ports derived from them differ between labs on one machine, as do
# the clusters' names.
FirstJobId={first_job_id}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
"""
NODE = (
    "NodeName=node{index} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 "
    "SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4096 State=UNKNOWN"
)


def up(directory: Path, *, num_nodes: int = 2, num_cpus: int = 2) -> Record:
    """Start a cluster in `directory`, unless one of the same size runs there already.

    Partitions: `main` (the default; its jobs are preempted with 30 s of grace and requeued) and
    `high`, whose jobs preempt those of `main`.

    Args:
        directory: holds configuration, state and logs; emptied first.
        num_nodes: nodes `node1`, `node2`, …
        num_cpus: CPUs that each node claims, whatever the machine has.

    Returns:
        The record, whose `environment` makes `sbatch`, `srun` and the rest talk to this cluster.

    Raises:
        LabError: if a program is missing, a daemon ends, or the nodes do not become idle.
    """
    settings = {"num_nodes": num_nodes, "num_cpus": num_cpus}
    if record := Record.running(directory):
        if record.settings != settings:
            raise LabError(
                f"a cluster of another size already runs in {directory} ({record.settings}): "
                "take it down first"
            )
        return record
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise LabError(
            f"user {os.getuid()} has no name, which Slurm asks for: start it as one who has"
        ) from None
    names = ("munged", "slurmctld", "slurmd", "scontrol", "sinfo")
    programs = {name: find_program(name, install_hint=INSTALL_HINT) for name in names}
    munge = directory / "munge.socket"
    # The longest is that of a job's step, on the last node; without it jobs are held for ever.
    longest = directory / f"node{num_nodes}" / f"node{num_nodes}_999999.4294967295"
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
        raise LabError(f"the path {directory} is too long for a socket: choose another --directory")
    down(directory)
    environment = {"SLURM_CONF": str(directory / "slurm.conf")}
    record = Record(directory=directory, settings=settings, environment=environment)
    record.begin()
    _configure(directory, user=user, num_nodes=num_nodes, num_cpus=num_cpus)

    def launch(name: str, *arguments: str) -> None:
        record.start([programs[name], *arguments], log=f"{name}.out")

    def idle() -> str | None:
        asked = ("sinfo", "--noheader", "--Node", "--partition=main", "--states=idle")
        answer = called(*asked, environment=environment)
        num_idle = len(answer.stdout.splitlines()) if answer.returncode == 0 else 0
        return f"{num_idle} of {num_nodes} nodes came up" if num_idle < num_nodes else None

    launch(
        "munged",
        "--foreground",
        "--force",  # the directory may lie below one that others can write to, such as /tmp
        "--num-threads=2",
        f"--key-file={directory}/munge.key",
        f"--socket={munge}",
        f"--pid-file={directory}/run/munged.pid",
        f"--seed-file={directory}/run/munged.seed",
        f"--log-file={record.logs}/munged.log",
    )
    record.wait(lambda: None if munge.exists() else "munged opened no socket")
    launch("slurmctld", "-D")
    for index in range(1, num_nodes + 1):
        launch("slurmd", "-D", "-N", f"node{index}")
    record.wait(idle)
    return record


def _configure(directory: Path, *, user: str, num_nodes: int, num_cpus: int) -> None:
    for name in ("state", "run"):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    host = socket.gethostname().split(".")[0]
    controller_port, *node_ports = free_ports(1 + num_nodes)
    nodes: list[str] = []
    for index, port in enumerate(node_ports, start=1):
        (directory / f"node{index}").mkdir()
        nodes.append(NODE.format(index=index, host=host, port=port, cpus=num_cpus))
    text = CONFIGURATION.format(
        host=host,
        user=user,
        directory=directory,
        controller_port=controller_port,
        first_job_id=1 + int.from_bytes(os.urandom(2)),
        nodes="\n".join(nodes),
    )
    (directory / "slurm.conf").write_text(text)
    # Read by slurmd even though nothing uses control groups; the default plug-in asks for systemd.
    (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")


def down(directory: Path) -> None:
    """Kill the jobs of the cluster in `directory` and stop its daemons; the logs stay."""
    if record := Record.load(directory):
        alive = {daemon.name for daemon in record.daemons if is_alive(daemon)}
        if {"munged", "slurmctld"} <= alive:
            end_jobs(record)
        kill(record.daemons)


def kill_node(record: Record, name: str) -> None:
    """Have a node die as in a power cut: its daemon and all that runs on it, by SIGKILL.

    Slurm notices after `SlurmdTimeout` seconds (15). The lab goes on with the other nodes.

    Args:
        record: of a running cluster.
        name: such as `node2`.

    Raises:
        LabError: there is no such node.
    """
    kill([_daemon_of(record, name)])
    wanted = {"SLURMD_NODENAME": name, "SLURM_CONF": record.environment["SLURM_CONF"]}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if wanted.items() <= process.environ().items():
                above = process.parent()
                if above is not None and above.name() == "slurmstepd":
                    above.kill()
                process.kill()


def revive_node(record: Record, name: str) -> None:
    """Start the daemon of a node that was killed, as when it has been mended.

    Args:
        record: of a running cluster.
        name: such as `node2`.

    Raises:
        LabError: there is no such node.
    """
    command = [find_program("slurmd", install_hint=INSTALL_HINT), "-D", "-N", name]
    record.start(command, log="slurmd.out", instead_of=_daemon_of(record, name))


def dead_nodes(record: Record) -> list[str]:
    """The names of nodes that were killed and not revived."""
    return [name for name, daemon in _nodes(record).items() if not is_alive(daemon)]


def _nodes(record: Record) -> dict[str, Daemon]:
    """The daemon of each node, by its name."""
    daemons = (daemon for daemon in record.daemons if daemon.name == "slurmd")
    return {f"node{index}": daemon for index, daemon in enumerate(daemons, start=1)}


def _daemon_of(record: Record, name: str) -> Daemon:
    nodes = _nodes(record)
    if name not in nodes:
        raise LabError(f"{name}: is no node of this lab: name one of {', '.join(nodes)}")
    return nodes[name]


def end_jobs(record: Record) -> None:
    """Cancel every job and wait until its processes have gone, so that none outlives the daemons.

    A job that ignores SIGTERM takes `KillWait` seconds (10): Slurm kills nothing before that.
    """
    # Pending jobs first, or they would take the place of those that end.
    call = partial(called, environment=record.environment)
    call("scancel", "--state=PENDING")
    call("scancel", "--state=RUNNING")
    deadline = time.monotonic() + END_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        answer = call("squeue", "--noheader", "--format=%i")
        jobs = answer.stdout.split()
        if answer.returncode != 0 or not jobs:
            return
        # Again, for jobs that were just then being requeued.
        call("scancel", *jobs)
        time.sleep(0.1)


def status(record: Record) -> str:
    """Return the nodes and jobs of a running cluster."""
    call = partial(called, environment=record.environment)
    nodes = call("sinfo", "--Node", "--format=%N %t %P %c").stdout.strip()
    jobs = call("squeue", "--format=%i %j %P %T %N %r").stdout.strip()
    return f"{nodes}\n{jobs}"
