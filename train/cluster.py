"""The section `cluster:` of a configuration: what a run's job asks of Slurm, and finds there.

Stored with no run: what one cluster is like says nothing of a run that goes on upon another.
"""

import os
import re
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from model.config import Config, PathText

GPU = Literal["h100", "h200", "a100", "other"]
Launcher = Literal["srun", "torchrun", "deepspeed"]
Count = Annotated[int, Field(ge=1, le=2**17)]

_IS_SECRET: Final = re.compile(
    # As words, for they are parts of others: MONKEY, NCCL_IB_PKEY, AUTHOR, PATH, COMPASS.
    r"(^|_)(KEY|TOKEN|PASS|AUTH|PAT|CREDS?)(_|[0-9]*$)"
    r"|(?<!ASK)(?<!BY)(?<!COM)PASS$"
    # Anywhere, but TOKENIZERS_PARALLELISM, MAX_TOKENS and the shell's own PWD and OLDPWD.
    r"|(API|ACCESS|PRIVATE|SSH)_?KEY|TOKEN(?!S|I[SZ])|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL"
    r"|(?<!^)(?<!^OLD)PWD",
    re.IGNORECASE,
)
_GIVEN: Final = re.compile(r"""([A-Za-z_][A-Za-z0-9_-]*)=(?=\S)(?!"?(\$(?!['"])|`))""")
"""A name that is given a value, unless that is a variable's or what a command says."""
_IN_ADDRESS: Final = re.compile(r"://[^\s/@:]*:(?!\$)[^\s/@]+@(?!sha256:)")
_NO_PLACE: Final = (
    "looks like a secret, which a file is no place for: export it where you submit, for jobs get "
    "the environment of whoever submits them"
)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_SET_ANYWAY: Final = re.compile(
    r"(LOCAL_)?(RANK|WORLD_SIZE)|PYTHONUNBUFFERED|KEEP_OPTIONS|SEMICAUSAL_.*"
)
_FLAG: Final = re.compile(r"--([^\s=-][^\s=]*)(=|$)")
_SET_BY_KEY: Final = {
    **{name: name for name in ("partition", "account", "nodes")},
    **dict.fromkeys(("ntasks", "ntasks-per-node", "tasks-per-node"), "ranks_per_node"),
    "cpus-per-task": "cpus_per_rank",
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory_per_node"),
    "time": "time_limit",
    "signal": "warn_seconds",
}
_SET_BY_SUBMITTING: Final = (
    *("array", "chdir", "comment", "dependency", "export", "export-file", "job-name", "no-requeue"),
    *("parsable", "requeue", "test-only", "wait", "wrap"),
)
_SAID_ELSEWHERE: Final = {
    **{name: f"is what cluster.{key} says: set that" for name, key in _SET_BY_KEY.items()},
    **dict.fromkeys(_SET_BY_SUBMITTING, "is set by whoever submits: leave it out"),
}
"""Flags that are not among the further ones, each with the rest of the sentence that says so."""


def looks_secret(name: str) -> bool:
    """Whether a variable of this name may hold what nobody else may read."""
    return _IS_SECRET.search(name.replace("-", "_")) is not None


def _secret_in(text: str) -> str | None:
    """What of a text looks like a secret, by its name; None if nothing does."""
    told = next((each[1] for each in _GIVEN.finditer(text) if looks_secret(each[1])), None)
    return told or ("the password in an address" if _IN_ADDRESS.search(text) else None)


def _without_secrets(lines: list[str]) -> list[str]:
    # Of the list, not of its lines: what is said of a fault in a line shows the line.
    for number, line in enumerate(lines):
        if (found := _secret_in(line)) is not None:
            raise ValueError(f"{number}: {found} {_NO_PLACE}")
    return lines


def _environment(given: Any) -> Any:
    """Variables by name, each with a text or a number."""
    for name, value in given.items() if isinstance(given, dict) else ():
        if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a variable: use letters, digits and _")
        if _SET_ANYWAY.fullmatch(name) is not None:
            raise ValueError(f"{name} is set in each job anyway: leave it out")
        if looks_secret(name):
            raise ValueError(f"{name} {_NO_PLACE}")
        if (found := _secret_in(str(value))) is not None:
            raise ValueError(f"{name}: {found} {_NO_PLACE}")
        if not isinstance(value, str | int) or isinstance(value, bool) or "\0" in str(value):
            raise ValueError(f"{name} must be text or a whole number: write it in quotes")
    return given


def _one_line(text: str) -> str:
    if not text.strip() or any(sign < " " for sign in text):
        raise ValueError("must be one line of text")
    return text


def _flag(text: str) -> str:
    found = _FLAG.match(_one_line(text))
    if found is None:
        raise ValueError("must be a flag of sbatch such as --qos=long: write it with both dashes")
    # Slurm takes the beginning of a flag's name for the flag.
    for name, remedy in _SAID_ELSEWHERE.items():
        if name.startswith(found[1]):
            what = "" if name == found[1] else f"is short for --{name}, which "
            raise ValueError(f"--{found[1]} {what}{remedy}")
    return text


def _not_for_gpus(text: str) -> str:
    if text.startswith("--gpus"):
        raise ValueError("--gpus is what cluster.gpu and cluster.gpu_flag say: set these")
    return text


def _spelled(pattern: str, remedy: str) -> AfterValidator:
    """That a text is of a form, in words."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(remedy)
        return text

    return AfterValidator(check)


Lines = Annotated[list[Annotated[str, AfterValidator(_one_line)]], AfterValidator(_without_secrets)]
Flag = Annotated[str, AfterValidator(_flag)]
Flags = Annotated[
    list[Annotated[Flag, AfterValidator(_not_for_gpus)]], AfterValidator(_without_secrets)
]
GpuFlag = Annotated[
    Flag,
    _spelled(
        r"[^{}]*\{count\}[^{}]*",
        "must hold {count} once and no other braces, such as --gres=gpu:{count}",
    ),
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
    """What a job asks of Slurm (`python -m tools.submit`), and what is set up in it.

    A job of training that was submitted by hand (`slurm/pretrain.sh`, `slurm/finetune.sh`) has what
    `sbatch` was told; launcher, environment, setup, container and scratch are read in the job in
    any case. `slurm/evaluate.sh` and `slurm/build.sh` read none of it.
    """

    partition: Word | None = None
    """Default: the cluster's own."""
    account: Word | None = None
    """Which the hours are booked on."""
    nodes: Count = 1
    """Machines."""
    spare_nodes: Annotated[int, Field(ge=0, le=1024)] = 0
    """Further ones that the job has, on which no ranks run until they take the place of a node
    that is dead, or too slow (`keep`)."""
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
    sbatch: Flags = Field(default_factory=list)
    """Further flags, such as `--qos=long` or `--constraint=ib`."""
    launcher: Launcher = "srun"
    """What starts the ranks: a task each, or an agent on each node. In every case
    `python -m tools.keep` watches them and starts them again."""
    environment: Annotated[dict[str, str | int], BeforeValidator(_environment)] = Field(
        default_factory=dict
    )
    """Variables of all ranks, such as `NCCL_SOCKET_IFNAME` or `OMP_NUM_THREADS`. What Slurm's job
    has already, these replace."""
    setup: Lines = Field(default_factory=list)
    """Lines of bash before all else in the job, such as `module load cuda/12.8`. Each stands alone,
    and ends the job if it fails."""
    container: Lines = Field(default_factory=list)
    """Words before the command of each rank, such as `[apptainer, exec, --nv, image.sif]`. The
    repository, its `.venv` and the run's directories lie at the same paths inside."""
    scratch: PathText | None = None
    """Directory of each node, `$VARIABLE` in it as the job knows it: for temporary files, fetched
    shards and compiled kernels. Default: the system's own."""
    store: Store | None = None
    """Holds the runs' mirrors, each of the name of its directory, unless `run_mirror` or
    `checkpoint.directory` says where. Such as `s3://bucket/runs`."""

    @model_validator(mode="after")
    def _one_flag_for_gpus(self) -> Self:
        name = self.gpu_flag.partition("=")[0]
        if self.gpu is not None and any(
            name.startswith(each.partition("=")[0]) for each in self.sbatch
        ):
            raise ValueError(
                f"sbatch: {name} a second time would replace gpu_flag: write all of it in that, "
                "such as --gres=gpu:{count},nvme:1"
            )
        return self

    @property
    def ranks(self) -> int:
        """Of the job."""
        return self.nodes * self.ranks_per_node

    @property
    def slots(self) -> int:
        """Ranks that the job has room for, on its spare nodes, too."""
        return (self.nodes + self.spare_nodes) * self.ranks_per_node


class JobSections(BaseModel):
    """What its job and its keeper read of a run's configuration; the ranks judge all else."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    cluster: ClusterConfig = ClusterConfig()
    run_directory: str = ""

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, tree: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in tree.items() if value is not None}


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
    name = PurePath(run).name
    # Others would share it, or there would be one for each place that it stands for.
    is_no_name = name in ("", "..") or name.startswith("~") or "/" in os.path.expandvars(name)
    return tree if is_no_name else {**tree, "run_mirror": f"{store.rstrip('/')}/{name}"}
