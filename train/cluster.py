"""The section `cluster:` of a configuration: what a run's job asks of Slurm, and finds there.

Stored with no run: what one cluster is like says nothing of a run that goes on upon another.
"""

import re
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from model.config import Config, PathText

GPU = Literal["h100", "h200", "a100", "other"]
Launcher = Literal["srun", "torchrun", "deepspeed"]
Count = Annotated[int, Field(ge=1, le=2**17)]

_IS_SECRET: Final = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE
)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_OURS: Final = (
    *("array", "chdir", "comment", "dependency", "export", "job-name", "parsable"),
    *("signal", "test-only", "wait", "wrap"),
)


def looks_secret(name: str) -> bool:
    """Whether a variable of this name may hold what nobody else may read."""
    return _IS_SECRET.search(name) is not None


def _environment(given: Any) -> Any:
    """Variables by name, each with a text or a number."""
    for name, value in given.items() if isinstance(given, dict) else ():
        if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a variable: use letters, digits and _")
        if looks_secret(name):
            raise ValueError(
                f"{name} looks like a secret, which a file is no place for: export it where you "
                "submit, for jobs get the environment of whoever submits them"
            )
        if not isinstance(value, str | int) or isinstance(value, bool) or "\0" in str(value):
            raise ValueError(f"{name} must be text or a whole number: write it in quotes")
    return given


def _one_line(text: str) -> str:
    if not text.strip() or any(sign < " " for sign in text):
        raise ValueError("must be one line of text")
    return text


def _flag(text: str) -> str:
    name = text.removeprefix("--").partition("=")[0]
    if not text.startswith("--") or not name:
        raise ValueError("must be a flag of sbatch such as --qos=long: write it with both dashes")
    if name in _OURS:
        raise ValueError(f"--{name} is set by whoever submits: leave it out")
    return _one_line(text)


def _spelled(pattern: str, remedy: str) -> AfterValidator:
    """That a text is of a form, in words."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(remedy)
        return text

    return AfterValidator(check)


Line = Annotated[str, AfterValidator(_one_line)]
Flag = Annotated[str, AfterValidator(_flag)]
GpuFlag = Annotated[
    Flag, _spelled(r".*\{count\}.*", "must hold {count}, such as --gres=gpu:{count}")
]
TimeLimit = Annotated[
    str,
    _spelled(
        r"[0-9]{1,9}-[0-9]{1,9}(:[0-9]{1,9}){0,2}|[0-9]{1,9}(:[0-9]{1,9}){0,2}",
        'must be a time as Slurm writes it, such as "24:00:00" or "7-00"',
    ),
]
Memory = Annotated[str, _spelled(r"[0-9]{1,12}[KMGT]?", "must be as Slurm writes it, such as 900G")]
Word = Annotated[str, _spelled(r"[^\s\x00-\x1f-][^\s\x00-\x1f]{0,255}", "must be one word")]
Store = Annotated[str, _spelled(r"s3://[^\s/]+\S*", "must be such as s3://bucket/runs")]


class ClusterConfig(Config):
    """What a job asks of Slurm (`python -m tools.submit`), and what is set up in it (`slurm/*.sh`).

    A job that was submitted by hand has what `sbatch` was told; launcher, environment, setup and
    container are read in the job in any case.
    """

    partition: Word | None = None
    """Default: the cluster's own."""
    account: Word | None = None
    """Which the hours are booked on."""
    nodes: Count = 1
    """Machines."""
    ranks_per_node: Count = 1
    """Ranks on each: its GPUs, or cores of CPUs."""
    gpu: GPU | None = None
    """Of each rank, as the planner knows it, `other` where it does not; none: ranks on CPUs."""
    gpu_flag: GpuFlag = "--gpus-per-node={count}"
    """How this cluster is asked for GPUs, such as `--gres=gpu:h100:{count}`."""
    cpus_per_rank: Count = 1
    """Each rank has as many threads."""
    memory_per_node: Memory | None = None
    """As Slurm writes it, such as `900G`. Default: the cluster's own."""
    time_limit: TimeLimit | None = None
    """Of each job, as Slurm writes it: `minutes`, `hours:minutes:seconds`, `days-hours`. Default:
    the cluster's own."""
    warn_seconds: Annotated[int, Field(ge=10, le=65_535)] = 120
    """How long before that limit the ranks are told to save and stop."""
    sbatch: list[Flag] = Field(default_factory=list)
    """Further flags, such as `--qos=long` or `--constraint=ib`."""
    launcher: Launcher = "srun"
    """What starts the ranks: a task each, or an agent on each node. In every case
    `python -m tools.keep` watches them and starts them again."""
    environment: Annotated[dict[str, str | int], BeforeValidator(_environment)] = Field(
        default_factory=dict
    )
    """Variables of all ranks, such as `NCCL_SOCKET_IFNAME`. What Slurm's job has already, these
    replace."""
    setup: list[Line] = Field(default_factory=list)
    """Lines of bash before all else in the job, such as `module load cuda/12.8`."""
    container: list[Line] = Field(default_factory=list)
    """Words before the command of each rank, such as `[apptainer, exec, --nv, image.sif]`. The
    repository, its `.venv` and the run's directories lie at the same paths inside."""
    scratch: PathText | None = None
    """Directory of each node, `$VARIABLE` in it as the job knows it: for temporary files, fetched
    shards and compiled kernels. Default: the system's own."""
    store: Store | None = None
    """Holds the runs' mirrors, each of the name of its directory, unless `run_mirror` or
    `checkpoint.directory` says where. Such as `s3://bucket/runs`."""

    @property
    def ranks(self) -> int:
        """Of the job."""
        return self.nodes * self.ranks_per_node


def in_the_store(tree: Any) -> Any:
    """A configuration that nothing has checked yet, with its mirror in the cluster's store."""
    if not isinstance(tree, dict):
        return tree
    cluster, checkpoint, run = (tree.get(k) for k in ("cluster", "checkpoint", "run_directory"))
    store = cluster.get("store") if isinstance(cluster, dict) else None
    checkpoint = {} if checkpoint is None else checkpoint
    is_open = isinstance(checkpoint, dict) and checkpoint.get("directory") is None
    is_open = is_open and tree.get("run_mirror") is None
    if not (isinstance(store, str) and isinstance(run, str) and is_open):
        return tree
    return {**tree, "run_mirror": f"{store.rstrip('/')}/{PurePath(run).name}"}
