"""What `sbatch` is told of a job."""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.submit.job import BETWEEN_TASKS
from train.cluster import ClusterConfig

SCRIPT: Final = Path("slurm", "pretrain.sh")
_OURS: Final = "semicausal"
_DIGEST_LETTERS: Final = 6
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+")


def flags_of(
    cluster: ClusterConfig, *, name: str, comment: str, tasks: int = 0, is_chained: bool = False
) -> list[str]:
    """Flags of a job, dependencies aside.

    Args:
        cluster: the section.
        name: of the run.
        comment: by which jobs of a run are known again.
        tasks: of the array, which may be one; 0 for a job that is none.
        is_chained: whether another job goes on where this one is stopped.
    """
    wanted = {
        "partition": cluster.partition,
        "account": cluster.account,
        "nodes": cluster.nodes + cluster.spare_nodes,
        "ntasks-per-node": cluster.ranks_per_node,
        "cpus-per-task": cluster.cpus_per_rank,
        "mem": cluster.memory_per_node,
        "time": cluster.time_limit,
        "signal": f"B:USR1@{cluster.warn_seconds}",
    }
    gpus = [] if cluster.gpu is None else [cluster.gpu_flag.format(count=cluster.ranks_per_node)]
    array = [f"--array=0-{tasks - 1}", "--output=slurm-%x-%A_%a.out"] if tasks else []
    return [
        f"--job-name={_NOT_IN_NAMES.sub('_', name)}",
        f"--comment={comment}",
        "--export=ALL",  # whatever SBATCH_EXPORT says: the job finds the repository by a variable
        *(f"--{flag}={value}" for flag, value in wanted.items() if value is not None),
        *gpus,
        *array,
        *(["--no-requeue"] if is_chained else []),
        *cluster.sbatch,
    ]


def comment_of(runs: Sequence[Path]) -> str:
    """What a job says of itself, by which it is known to be for these runs.

    Args:
        runs: their directories.
    """
    return " ".join([_OURS, *map(digest_of, runs)])


def is_for(comment: str, digest: str) -> bool:
    """Whether a job's comment says that it is for a run, by what `digest_of` makes of that."""
    return comment.startswith(_OURS) and f" {digest} " in f"{comment} "


def digest_of(run: Path) -> str:
    """Of a directory, whatever links lead to it: Slurm takes comments of 1,024 bytes at most."""
    return digest(os.path.realpath(run))


def digest(place: str) -> str:
    """Of a place, here or in a store: a few letters."""
    hashed = hashlib.sha256(os.fsencode(place)).digest()
    return base64.urlsafe_b64encode(hashed)[:_DIGEST_LETTERS].decode()


def job_arguments(common: Sequence[str], tasks: Sequence[Sequence[str]]) -> list[str]:
    """Arguments of the script: what all tasks have in common, and what is each one's own."""
    return [*common, *(word for own in tasks for word in (BETWEEN_TASKS, *own))]
