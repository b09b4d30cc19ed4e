"""Agents: where a launcher has one process on each node that starts the ranks there.

torchrun and `deepspeed --no_ssh`; srun starts the agents, one task a node, and without Slurm ssh
does. Neither starts anything again: the keeper does. Neither sees status 75, at which it would kill
ranks that still save: the keeper is told it by the ranks themselves.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from tools.keep.shell import DEAF, RANK, RANK_OF_AGENT
from train.errors import UserError

AGENTS: Final = ("torchrun", "deepspeed")

_KILLED: Final = "tools.corpus"
"""The module that saves all the time, and hears no signals: one ends it."""
_DEEPSPEED: Final = """\
hosts=$(mktemp) && printf '%s\\n' {hosts} >"$hosts" || exit 1
{runner} --hostfile "$hosts" --node_rank {node} {rest}
status=$?
rm -f "$hosts"
exit "$status"
"""


def step_of(
    launcher: str,
    command: Sequence[str],
    *,
    inside: Sequence[str],
    environment: Mapping[str, str],
    num_nodes: int,
    port: int,
) -> list[str]:
    """Arguments of srun: how many tasks there are, and what each runs.

    Args:
        launcher: "srun", or one of `AGENTS`.
        command: of a rank, its interpreter first.
        inside: words that enter a container.
        environment: of the job.
        num_nodes: on which there are ranks.
        port: at which ranks meet.

    Raises:
        UserError: nodes have different numbers of ranks.
    """
    cpus = int(environment.get("SLURM_CPUS_PER_TASK", "1"))
    # `--cpus-per-task` is named because srun no longer inherits it from sbatch.
    if launcher == "srun":
        shell = () if _KILLED in command[:3] else RANK
        return [f"--cpus-per-task={cpus}", *shell, *inside, *command]
    ranks, host = ranks_per_node(environment), environment["MASTER_ADDR"]
    tasks = (f"--ntasks={num_nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus * ranks}")
    slots = {f"node{node}": ranks for node in range(num_nodes)}
    script = agent(launcher, command, inside=inside, slots=slots, host=host, port=port)
    return [*tasks, "bash", "-c", script]


def agent(
    launcher: str,
    command: Sequence[str],
    *,
    inside: Sequence[str],
    slots: Mapping[str, int],
    host: str,
    port: int,
    node: str | None = None,
) -> str:
    """What bash runs on a node to start its ranks, deaf to what asks these to stop.

    Args:
        launcher: of `AGENTS`.
        command: of a rank, its interpreter first.
        inside: words that enter a container.
        slots: ranks on each node, the nodes in order.
        host: at which ranks meet.
        port: likewise.
        node: which one this is, by name; None where Slurm says it.
    """
    number = '"$SLURM_NODEID"' if node is None else str([*slots].index(node))
    ranks = next(iter(slots.values())) if node is None else slots[node]
    python, ranked = command[0], [*RANK_OF_AGENT, *command]
    if launcher == "torchrun":
        words = [*inside, python, "-m", "torch.distributed.run", f"--nnodes={len(slots)}"]
        words += [f"--nproc-per-node={ranks}", f"--master-addr={host}", f"--master-port={port}"]
        words += ["--no-python"]
        script = f"exec {shlex.join(words)} --node-rank {number} {shlex.join(ranked)}\n"
    else:
        runner = [*inside, python, "-m", "deepspeed.launcher.runner", "--no_ssh", "-q"]
        rest = [f"--master_addr={host}", f"--master_port={port}", "--no_python", "--no_local_rank"]
        script = _DEEPSPEED.format(
            hosts=shlex.join(f"{name} slots={count}" for name, count in slots.items()),
            runner=shlex.join(runner),
            node=number,
            rest=shlex.join([*rest, *ranked]),
        )
    return DEAF + script


def ranks_per_node(environment: Mapping[str, str]) -> int:
    """Ranks that an agent starts.

    Args:
        environment: of the job.

    Raises:
        UserError: nodes have different numbers of them.
    """
    told = environment.get("SLURM_TASKS_PER_NODE", environment.get("SLURM_NTASKS", "1"))
    found = re.fullmatch(r"([0-9]+)(\(x[0-9]+\))?", told)
    if found is None:
        raise UserError(
            f"cluster.launcher: torchrun and deepspeed start as many ranks on each node, and the "
            f"job has {told}: give sbatch --ntasks-per-node, or use srun"
        )
    return int(found[1])
