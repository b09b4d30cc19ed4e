"""A Slurm cluster and an S3 server for the tests that need one; each starts once a session.

`tests/conftest.py` makes them known with `pytest_plugins = ["tests.lab_fixtures"]`. Where Slurm is
not installed the tests fail, with the command that installs it: skipping would hide that nothing
was tested.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.lab import s3, slurm
from tools.lab.jobs import SlurmLab
from train.storage.place import Place


@pytest.fixture(scope="session")
def slurm_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    directory = tmp_path_factory.mktemp("slurm")
    record = slurm.up(directory, num_nodes=2, num_cpus=2)
    try:
        yield SlurmLab(directory, record.environment)
    finally:
        slurm.down(directory)


@dataclass(frozen=True)
class S3Lab:
    """A running S3 server that holds the bucket `lab`."""

    directory: Path
    environment: Mapping[str, str]
    """What S3 clients need: `S3_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID` and so on."""
    bucket: str = "lab"


def place_at(kind: str, name: str, request: pytest.FixtureRequest) -> Place:
    """A place of a test's own: "here", in its temporary directory, or "in a store"."""
    directory: Path = request.getfixturevalue("tmp_path")
    if kind == "here":
        return Place.of(directory / name)
    lab: S3Lab = request.getfixturevalue("s3_lab")
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for variable, value in lab.environment.items():
        patch.setenv(variable, value)
    return Place.parse(f"s3://{lab.bucket}/{name}/{directory.name}")


@pytest.fixture(scope="session")
def s3_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Lab]:
    directory = tmp_path_factory.mktemp("s3")
    record = s3.up(directory, bucket=S3Lab.bucket)
    try:
        yield S3Lab(directory, record.environment)
    finally:
        s3.down(directory)
