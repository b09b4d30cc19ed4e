"""What a keeper reads of a configuration, and which nodes it may choose from."""

from pathlib import Path

import pytest

from tools.keep.__main__ import main
from tools.keep.settings import Settings
from train.errors import UserError
from train.exit_status import ExitStatus

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_TASKS_PER_NODE": "2(x3)",
    "SLURM_NTASKS": "6",
}


@pytest.fixture(autouse=True)
def _three_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = ("node1", "node2", "node3")
    monkeypatch.setattr("tools.keep.settings.names", lambda nodelist: nodes if nodelist else ())


def settings(*overrides: str) -> Settings:
    return Settings.of(["--dry-run", "name=x", *overrides])


def test_a_job_s_nodes() -> None:
    found = settings().allocation(in_job=True, environment=JOB, keeper="me")
    assert found is not None
    assert (found.nodes, found.num_wanted, found.ranks_per_node, found.may_shrink) == (
        ("node1", "node2", "node3"), 3, 2, False,
    )  # fmt: skip
    asked = settings("cluster.spare_nodes=1", "keep.fewer_nodes=true", "keep.warm=true")
    assert asked.keep.warm
    found = asked.allocation(in_job=True, environment=JOB, keeper="me")
    assert found is not None
    assert (found.num_wanted, found.may_shrink) == (2, True)


def test_without_spare_nodes_slurm_may_say_where_ranks_are() -> None:
    uneven = {**JOB, "SLURM_TASKS_PER_NODE": "2,1", "SLURM_NTASKS": "3"}
    assert settings().allocation(in_job=True, environment=uneven, keeper="me") is None
    assert settings().allocation(in_job=False, environment={}, keeper="me") is None
    nobody_answers = {**JOB, "SLURM_JOB_NODELIST": ""}
    assert settings().allocation(in_job=True, environment=nobody_answers, keeper="me") is None


@pytest.mark.parametrize(
    ("in_job", "environment", "spare", "message"),
    [
        (False, {}, 1, r"^cluster.spare_nodes: 1: needs an allocation, and there is none"),
        (True, JOB, 3, r"^cluster.spare_nodes: 3: the job has 3 node\(s\), and none would be"),
        (
            True,
            {**JOB, "SLURM_TASKS_PER_NODE": "2,1", "SLURM_NTASKS": "3"},
            1,
            r"^cluster.spare_nodes: 1: needs as many ranks on each node: give sbatch --nt",
        ),
    ],
)
def test_spare_nodes_where_there_are_none(
    in_job: bool, environment: dict[str, str], spare: int, message: str
) -> None:
    asked = settings(f"cluster.spare_nodes={spare}")
    with pytest.raises(UserError, match=message):
        asked.allocation(in_job=in_job, environment=environment, keeper="me")


def test_it_is_one_sentence_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.keep.launching.Popen", None)
    status = main(["train", "name=x", "cluster.spare_nodes=1"])
    assert status == ExitStatus.MISTAKE
    assert capsys.readouterr().err == (
        "cluster.spare_nodes: 1: needs an allocation, and there is none: submit the "
        "run with python -m tools.submit, or set cluster.spare_nodes=0\n"
    )


def test_what_is_wrong_with_a_configuration_is_the_ranks_to_tell(tmp_path: Path) -> None:
    for wrong in ("cluster.spare_nodes=-1", "keep.warmm=true", str(tmp_path / "none.yaml")):
        assert settings("keep.warm=true", wrong) == Settings()


@pytest.mark.parametrize(
    ("overrides", "tries"),
    [
        ((), False),
        (("cluster.gpu=h100",), True),
        (("cluster.gpu=h100", "keep.try_nodes=false"), False),
        (("keep.try_nodes=true",), True),
    ],
)
def test_nodes_are_tried_where_they_have_gpus_or_where_asked(
    overrides: tuple[str, ...], tries: bool
) -> None:
    assert settings(*overrides).tries_nodes is tries


def test_a_section_that_is_null_leaves_the_other_as_it_is() -> None:
    assert Settings.of(["cluster=null", "keep.warm=true"]).keep.warm
    assert Settings.of(["keep=null", "cluster.spare_nodes=1"]).cluster.spare_nodes == 1
