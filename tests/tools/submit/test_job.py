"""What a job sets up, run by bash as `slurm/launch.sh` runs it."""

import os
import subprocess
import sys

import pytest

from tools.submit.job import lines, setup_faults
from tools.submit.job import main as set_up
from train.cluster import ClusterConfig
from train.exit_status import ExitStatus

FAIL = 'fail() { echo "fail: $*"; exit 2; }\n'


def run_by_bash(cluster: ClusterConfig, *, then: str = "", before: str = "") -> tuple[int, str]:
    """Exit status and output of a job's settings, and of commands that follow them."""
    text = "\n".join(lines(cluster, ["a.yaml", "name=it's"]))
    script = f'{FAIL}{before}\nsettings=$1\nset --\neval "$settings" || fail eval\n{then}\n'
    ended = subprocess.run(
        ["/bin/bash", "-c", script, "bash", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    return ended.returncode, ended.stdout


@pytest.mark.parametrize(
    "line",
    [
        "export A=1;",
        "export A=1 # why",
        "sleep 0 & export A=1",
        "export A=1; sleep 0 &",
        "if true; then export A=1; fi",
        "cat <<END >/dev/null; export A=1",
        "set -eu; export A=1",
    ],
)
def test_each_line_of_setup_stands_alone(line: str) -> None:
    cluster = ClusterConfig(setup=[line, "export B=2"], launcher="torchrun")
    assert setup_faults(cluster) == []
    shown = 'echo "$A $B $launcher ${arguments[1]}"'
    status, found = run_by_bash(cluster, then=shown)
    assert status == 0
    assert found.endswith("1 2 torchrun name=it's\n")


@pytest.mark.parametrize("line", ["false", "false # why", "false;", "export A=1 \\", "no_such"])
def test_a_line_that_fails_ends_the_job(line: str) -> None:
    cluster = ClusterConfig(setup=["true", line])
    status, shown = run_by_bash(cluster, then="echo went on")
    assert status == 2
    assert shown.endswith(f"fail: cluster.setup: {line}: failed\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('echo "a', "unexpected EOF while looking for matching"),
        ("if true; then", "syntax error"),
        ("fi", "syntax error near unexpected token"),
        ("echo a; }", "syntax error near unexpected token"),
        ("echo a && ", "syntax error"),
    ],
)
def test_what_bash_does_not_read_is_refused(
    line: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = ClusterConfig(setup=["pwd", line])
    [fault] = setup_faults(cluster)
    assert fault.startswith(f"cluster.setup.1: {reason}")
    assert fault.endswith(": each line stands alone: write all of it in one, or in a file that it "
                          "sources")  # fmt: skip
    status, shown = run_by_bash(cluster, then="echo went on")
    assert status == 2
    assert "went on" not in shown
    # The job itself tells it, too, for those that nobody has submitted with our command.
    quoted = line.replace("'", "''")
    assert set_up(["configs/experiment/tiny.yaml", f"cluster.setup=[pwd, '{quoted}']"]) == (
        ExitStatus.MISTAKE
    )
    assert capsys.readouterr().err == f"{fault}\n"


def test_ranks_have_what_environment_says_whatever_it_is_called() -> None:
    names = ("OMP_NUM_THREADS", "MASTER_PORT", "python", "module", "repository", "UID", "TMPDIR")
    cluster = ClusterConfig(
        environment={name: f"it's {name}" for name in names},
        setup=["python=x module=y", "export OMP_NUM_THREADS=3"],
        scratch="/s",
    )
    shown = " ".join(f'"${name}"' for name in names)
    status, found = run_by_bash(
        cluster,
        before="repository=/here OMP_NUM_THREADS=12",
        then='env "${environment[@]}" printenv XDG_CACHE_HOME OMP_NUM_THREADS MASTER_PORT python '
        f'module repository UID TMPDIR; printf "%s\\n" "$scratch" {shown}',
    )
    assert status == 0
    assert found.splitlines() == [
        "/s/cache", *(f"it's {name}" for name in names),
        *("/s", "3", "", sys.executable, "train", "/here", str(os.getuid()), ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scratch", "place"),
    [
        ("/local/$SLURM_JOB_ID", "/local/7"),
        ("$OF_SETUP/a b/${SLURM_JOB_ID}x", "/from setup/a b/7x"),
        ("~/it's", os.path.expanduser("~/it's")),
        ("/a/`b`/$(c)/\\d", "/a/`b`/$(c)/\\d"),
    ],
)
def test_scratch_is_where_the_job_says(scratch: str, place: str) -> None:
    cluster = ClusterConfig(scratch=scratch, setup=["OF_SETUP='/from setup'"])
    assert setup_faults(cluster) == []
    shown = 'echo "$scratch"; env "${environment[@]}" printenv TMPDIR XDG_CACHE_HOME'
    assert run_by_bash(cluster, before="SLURM_JOB_ID=7", then=shown) == (
        0,
        f"{place}\n{place}\n{place}/cache\n",
    )


def test_scratch_by_a_variable_that_no_job_has() -> None:
    assert run_by_bash(ClusterConfig(scratch="/a/$NOWHERE_SET"), then="echo went on") == (
        2,
        "fail: cluster.scratch: /a/$NOWHERE_SET: the job has no variable NOWHERE_SET: write the "
        "path out\n",
    )


@pytest.mark.parametrize(
    ("scratch", "fault"),
    [
        ("s3://bucket/x", "s3://bucket/x is no directory of a node: name one as a path"),
        ("~no-such-user/x", "~no-such-user/x is no directory of a node: name one as a path"),
        ("/a/$1b", "/a/$1b: '1b' is no name of a variable: write the path out"),
        ("/a/${b-c}", "/a/${b-c}: 'b-c' is no name of a variable: write the path out"),
    ],
)
def test_what_is_no_scratch(scratch: str, fault: str) -> None:
    assert setup_faults(ClusterConfig(scratch=scratch)) == [f"cluster.scratch: {fault}"]


def test_a_section_that_is_taken_away_leaves_the_job_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    tiny = ["configs/experiment/tiny.yaml", "configs/cluster/lab.yaml"]
    assert set_up([*tiny, "cluster=null"]) == ExitStatus.COMPLETE
    shown = capsys.readouterr()
    assert "launcher=srun\n" in shown.out
    assert shown.err == ""


def test_a_sourced_file_does_not_see_the_arguments(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("site") / "site.sh"
    file.write_text('export SEEN="$#"\n')
    cluster = ClusterConfig(setup=[f"source {file}"])
    assert run_by_bash(cluster, then='echo "$SEEN"') == (0, "0\n")
