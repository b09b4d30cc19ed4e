"""What `make two-clusters` shows."""

import pytest

from tests.cluster.two_clusters import STOPPED_AT, played


@pytest.mark.long
@pytest.mark.timeout(1800)  # it waits for several things, one after another
def test_one_run_over_two_clusters(tmp_path_factory: pytest.TempPathFactory) -> None:
    outcomes = played(tmp_path_factory.mktemp("two"))  # a test's own is too long for a socket
    moved, taken_over = outcomes["moved"], outcomes["taken over"]
    assert moved.is_well, moved
    assert taken_over.is_well, taken_over
    assert moved.states == {"b while a runs": "FAILED", "a": "CANCELLED", "b": "COMPLETED"}
    assert moved.first_step > STOPPED_AT
    there, in_its_job = moved.said.values()
    assert there.startswith("run_mirror: s3://two/mirrors/moved is being written: pid ")
    for said in (there, in_its_job):
        assert "Slurm job " in said, said
    assert "until it ends or has not renewed that for 60 s" in in_its_job
    assert taken_over.states == {"a": "FAILED", "b": "COMPLETED"}
    assert "waiting 60 s to see whether that lives" in taken_over.said["b"]
    assert "it stops, and writes nothing more there" in taken_over.said["a"]
