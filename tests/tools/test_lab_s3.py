"""The S3 server of the lab: real signatures, real objects, nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.lab_fixtures import S3Lab
from tools.lab import s3
from tools.lab.daemons import Daemon, LabError, Record, is_alive, kill


def run_lab(*arguments: str, environment: dict[str, str] | None = None):
    return subprocess.run(
        [sys.executable, "-m", "tools.lab", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_objects_come_back(s3_lab: S3Lab) -> None:
    client = s3.client(dict(s3_lab.environment))
    body = os.urandom(300_000)
    client.put_object(Bucket=s3_lab.bucket, Key="a/b.bin", Body=body)
    assert client.get_object(Bucket=s3_lab.bucket, Key="a/b.bin")["Body"].read() == body


def test_a_wrong_secret_is_refused(s3_lab: S3Lab) -> None:
    client = s3.client({**s3_lab.environment, "AWS_SECRET_ACCESS_KEY": "wrong"})
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_objects_v2(Bucket=s3_lab.bucket)


def test_an_unknown_key_is_refused(s3_lab: S3Lab) -> None:
    client = s3.client({**s3_lab.environment, "AWS_ACCESS_KEY_ID": "nobody"})
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        client.list_objects_v2(Bucket=s3_lab.bucket)


def test_up_twice_is_one_server(s3_lab: S3Lab) -> None:
    before = Record.load(s3_lab.directory)
    assert before is not None
    assert s3.up(s3_lab.directory, bucket="another") == before
    assert "buckets: another, lab" in s3.status(before)


def test_another_port_needs_a_restart(s3_lab: S3Lab) -> None:
    with pytest.raises(LabError, match="take it down first"):
        s3.up(s3_lab.directory, port=1)


def test_nothing_stays_behind_outside_its_directory(tmp_path: Path) -> None:
    """Neither sockets nor its own logs; others run beside it, and have theirs."""
    script = f"""
import time
from pathlib import Path
from tools.lab import s3
record = s3.up(Path({str(tmp_path / "s3")!r}), bucket="lab")
numbers = [str(port + more) for port in record.settings.values() for more in (0, s3.GRPC_OFFSET)]
def ours():
    return [path.name for path in s3.SOCKETS.glob("seaweedfs-*.sock")
            if path.stem.rpartition("-")[2] in numbers]
until = time.monotonic() + 60
while len(ours()) < 7 and time.monotonic() < until:  # not all are there with the first answer
    time.sleep(0.1)
print(len(ours()))
s3.down(Path({str(tmp_path / "s3")!r}))
print(ours())
"""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert int(before) >= 7
    assert after == "[]"
    assert list(temporary.iterdir()) == []


def test_command_line_from_up_to_down(tmp_path: Path) -> None:
    directory = f"--directory={tmp_path / 's3'}"
    up = run_lab("s3", "up", directory, "--bucket=corpus")
    assert up.returncode == 0, up.stderr
    exported = subprocess.run(
        ["bash", "-c", 'eval "$0"; echo $S3_ENDPOINT_URL $AWS_ACCESS_KEY_ID', up.stdout],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert exported.startswith("http://127.0.0.1:")
    assert run_lab("s3", "env", directory).stdout == up.stdout
    assert "buckets: corpus" in run_lab("s3", "status", directory).stdout

    record = Record.running(tmp_path / "s3")
    assert record is not None
    assert run_lab("s3", "down", directory).returncode == 0
    assert not any(is_alive(daemon) for daemon in record.daemons)
    assert run_lab("s3", "status", directory).stdout.startswith("s3: down")
    env = run_lab("s3", "env", directory)
    assert env.returncode == 2
    assert "start it with python -m tools.lab s3 up" in env.stderr


def test_a_taken_port_is_an_error(s3_lab: S3Lab, tmp_path: Path) -> None:
    record = Record.load(s3_lab.directory)
    assert record is not None
    with pytest.raises(LabError, match=r"port \d+ is taken"):
        s3.up(tmp_path / "s3", port=record.settings["port"])


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(LabError, match="choose another --directory"):
        s3.up(tmp_path)
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("field", ["name", "start_ticks"])
def test_a_process_that_took_over_the_id_is_never_signalled(field: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        process_id = stranger.pid
        text = Path(f"/proc/{process_id}/stat").read_text()
        start_ticks = int(text[text.rindex(")") + 2 :].split()[19])
        if field == "name":
            recorded = Daemon("weed", process_id, start_ticks)
        else:
            recorded = Daemon("sleep", process_id, start_ticks - 1)
        kill([recorded])
        assert stranger.poll() is None
        stranger.kill()
