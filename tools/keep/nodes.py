"""The nodes of a job: their names and addresses, which of them answer, what is asked of them."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tools.submit.calling import plainly

PORTS_APART: Final = 7000
"""Jobs have ports below this from 10,000 on: those of other jobs are kept out of."""

_CALL_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 30.0
"""srun gives up on a node that refuses after ten seconds; one that has no power says nothing."""
_TRY_SECONDS: Final = 120.0
_AFTER_FIRST_SECONDS: Final = 30
"""Once one node has ended its try-out, the others get this long."""
_AT_A_TIME: Final = 32


def called(*command: str, seconds: float = _CALL_SECONDS) -> str | None:
    """What a command prints; None where it fails, or takes longer."""
    try:
        done = subprocess.run(
            command,
            env=plainly(os.environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def names(nodelist: str) -> tuple[str, ...]:
    """The nodes that a list such as `node[1-3]` names, in its order; none where Slurm is away."""
    if not nodelist:
        return ()
    return tuple((called("scontrol", "show", "hostnames", nodelist) or "").split())


def address_of(node: str) -> str:
    """Where a node is reached: Slurm's names need not be known to the system's resolver."""
    shown = called("scontrol", "--oneliner", "show", "node", node) or ""
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return node if found is None or found[1] == "(null)" else found[1]


def beside_ranks(nodes: Sequence[str]) -> list[str]:
    """How srun is told to run a task on each of some nodes, whatever else runs there."""
    return [
        *("srun", "--overlap", "--export=ALL", f"--nodelist={','.join(nodes)}"),
        *(f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1"),
    ]


def asked(node: str, *command: str, seconds: float) -> str | None:
    """What a command prints on a node; None where that does not answer in time."""
    return called(*beside_ranks([node]), "--cpus-per-task=1", *command, seconds=seconds)


def silent(nodes: Sequence[str]) -> list[str]:
    """Those of some nodes on which nothing can be started."""
    if not nodes:
        return []

    def answers(node: str) -> bool:
        return asked(node, "true", seconds=_ANSWER_SECONDS) is not None

    with ThreadPoolExecutor(min(len(nodes), _AT_A_TIME)) as pool:
        return [
            node for node, does in zip(nodes, pool.map(answers, nodes), strict=True) if not does
        ]


def memory_kills(node: str, *, inside: Sequence[str]) -> int:
    """How often the kernel has killed on a node for want of the job's memory; 0 if none says.

    Args:
        node: by name.
        inside: words that enter a container.
    """
    command = [*inside, sys.executable, "-m", "tools.keep.looking"]
    text = asked(node, *command, seconds=_ANSWER_SECONDS) or ""
    return int(text) if text.isdecimal() else 0


def tried(
    nodes: Sequence[str], *, inside: Sequence[str], environment: Mapping[str, str]
) -> list[str]:
    """Lines that the nodes print in their try-out (`tools.keep.trying`); those that there are.

    Args:
        nodes: in Slurm's order.
        inside: words that enter a container.
        environment: of the job.
    """
    cpus = environment.get("SLURM_JOB_CPUS_PER_NODE", "1").partition("(")[0].partition(",")[0]
    # None that the first ranks meet at.
    port = str(int(environment["MASTER_PORT"]) + 2 * PORTS_APART)
    # One that fails is not waited for until the others give it up.
    command = [*beside_ranks(nodes), f"--cpus-per-task={cpus}", f"--wait={_AFTER_FIRST_SECONDS}"]
    command += ["--kill-on-bad-exit=0", *inside]
    command += [sys.executable, "-m", "tools.keep.trying"]
    try:
        done = subprocess.run(
            command,
            env={**environment, "MASTER_ADDR": address_of(nodes[0]), "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=_TRY_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(errors="replace").splitlines()
    except OSError:
        return []
    return done.stdout.decode(errors="replace").splitlines()
