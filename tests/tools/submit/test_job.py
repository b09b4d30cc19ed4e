"""What a job sets up, run by bash as `slurm/launch.sh` runs it."""

import subprocess

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


def test_a_sourced_file_does_not_see_the_arguments(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("site") / "site.sh"
    file.write_text('export SEEN="$#"\n')
    cluster = ClusterConfig(setup=[f"source {file}"])
    assert run_by_bash(cluster, then='echo "$SEEN"') == (0, "0\n")
