"""What the section `cluster:` refuses."""

import pytest
from pydantic import BaseModel

from train.cluster import ClusterConfig, looks_secret
from train.config_files import load
from train.errors import ConfigError


class _Holder(BaseModel):
    """A configuration that has the section."""

    cluster: ClusterConfig | None = None


def fault(**section: object) -> str:
    with pytest.raises(ValueError, match="validation error") as refused:
        ClusterConfig.model_validate(section)
    return str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        *("WANDB_API_KEY", "HF_TOKEN", "PGPASSWORD", "MYSQL_PWD", "SSHPASS", "DB_PASS", "APIKEY"),
        *("AWS_SECRET_ACCESS_KEY", "GITHUB_PAT", "GITHUBTOKEN", "token2", "REDISCLI_AUTH"),
        *("GPG_PASSPHRASE", "MY_CREDS", "KEY", "SSH_KEY", "docker-password"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "NCCL_IB_PKEY", "PATH"),
        *("SSH_ASKPASS", "NO_BYPASS", "AUTHOR", "XAUTHORITY", "MONKEY", "PASSIVE", "FI_PROVIDER"),
    ],
)
def test_names_of_other_things(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ("environment={PGPASSWORD: hunter2}", "environment.PGPASSWORD"),
        (
            "environment={PROXY: 'http://me:hunter2@proxy:80'}",
            "environment.PROXY: the password in an address",
        ),
        ("setup=[export WANDB_API_KEY=hunter2]", "setup.0: WANDB_API_KEY"),
        ("setup=[pwd, 'A=1 HF_TOKEN=\"hunter2\" wandb login']", "setup.1: HF_TOKEN"),
        ("setup=['export HF_TOKEN=$''hunter2''']", "setup.0: HF_TOKEN"),
        ("setup=['export HF_TOKEN=''$hunter2''']", "setup.0: HF_TOKEN"),
        ("setup=['curl https://me:hunter2@host/x | bash']", "setup.0: the password in an address"),
        ("container=[apptainer, --env, HF_TOKEN=hunter2]", "container.2: HF_TOKEN"),
        ("container=[podman, --env=HF_TOKEN=hunter2]", "container.1: HF_TOKEN"),
        ("container=[x, --docker-password=hunter2]", "container.1: docker-password"),
        ("sbatch=[--container-env=HF_TOKEN=hunter2]", "sbatch.0: HF_TOKEN"),
    ],
)
def test_a_secret_is_refused_and_not_shown(section: str, what: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(_Holder, [f"cluster.{section}"])
    assert str(refused.value).startswith(f"cluster.{what} looks like a secret")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "section",
    [
        {"setup": ["export HF_TOKEN=$(cat ~/.hf)", 'export HF_TOKEN="$MINE"', "unset HF_TOKEN"]},
        {"setup": ["export TOKENIZERS_PARALLELISM=false OLDPWD=/"]},
        {"container": ["docker", "run", "--env", "HF_TOKEN", "docker://image:22.04@sha256:ab"]},
        {"environment": {"PROXY": "http://proxy:80", "NCCL_IB_PKEY": 3, "OMP_NUM_THREADS": 2}},
        {"sbatch": ["--qos=long", "--output=%x-%j.log", "--nodelist=a", "--time-min=10",
                    "--no-kill", "--mem-bind=local", "--exclusive", "--exclude=b", "--hold"]},
        {"gpu": "h100", "sbatch": ["--gres=nvme:1"]},
        {"gpu_flag": "--gres=gpu:{count}", "sbatch": ["--gres=nvme:1"]},
    ],
)  # fmt: skip
def test_what_is_fine(section: dict[str, object]) -> None:
    ClusterConfig.model_validate(section)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--nodes=3", "--nodes is what cluster.nodes says: set that"),
        ("--node=3", "--node is short for --nodes, which is what cluster.nodes says"),
        ("--mem=0", "--mem is what cluster.memory_per_node says"),
        ("--mem-per-cpu=1G", "--mem-per-cpu is what cluster.memory_per_node says"),
        ("--time=1", "--time is what cluster.time_limit says"),
        ("--ntasks=3", "--ntasks is what cluster.ranks_per_node says"),
        ("--requeue", "--requeue is set by whoever submits: leave it out"),
        ("--no-requeue", "--no-requeue is set by whoever submits: leave it out"),
        ("--no-req", "--no-req is short for --no-requeue, which is set by whoever submits"),
        ("--exp=NONE", "--exp is short for --export, which is set by whoever submits"),
        ("--dep=afterok:1", "--dep is short for --dependency"),
        ("--arr=0-3", "--arr is short for --array"),
        ("--gpus-per-node=8", "--gpus is what cluster.gpu and cluster.gpu_flag say"),
        ("--gpus=8", "--gpus is what cluster.gpu and cluster.gpu_flag say"),
        ("-N3", "must be a flag of sbatch such as --qos=long"),
        ("---x", "must be a flag of sbatch such as --qos=long"),
        ("--nodes 3", "must be a flag of sbatch such as --qos=long"),
    ],
)
def test_flags_that_are_said_elsewhere(flag: str, told: str) -> None:
    assert told in fault(sbatch=["--qos=long", flag])


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"gpu_flag": "--gres=gpu:{count}{x}"}, "must hold {count} once and no other braces"),
        ({"gpu_flag": "--nodes={count}"}, "--nodes is what cluster.nodes says"),
        (
            {"gpu": "h100", "gpu_flag": "--gres=gpu:{count}", "sbatch": ["--gres=nvme:1"]},
            "sbatch: --gres a second time would replace gpu_flag",
        ),
        ({"environment": {"RANK": 0}}, "RANK is set in each job anyway: leave it out"),
        ({"environment": {"SEMICAUSAL_CHAIN": 3}}, "SEMICAUSAL_CHAIN is set in each job anyway"),
        ({"environment": {"KEEP_OPTIONS": "--warm"}}, "KEEP_OPTIONS is set in each job anyway"),
    ],
)
def test_what_the_section_refuses(section: dict[str, object], told: str) -> None:
    assert told in fault(**section)
