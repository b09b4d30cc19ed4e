"""The table of `make faults-cluster`."""

from collections.abc import Iterator

import pytest

from tests.cluster.faults import CASES, Case, fault_of, play
from tests.cluster.lab import Lab
from tests.cluster.plays.played import Played
from tools.lab import slurm


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("cluster")) as lab:
        yield lab


@pytest.mark.long
@pytest.mark.timeout(1800)  # a case waits for several things, one after another
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_fault(case: Case, lab: Lab) -> None:
    assert fault_of(result := play(case, lab)) is None, result


def test_a_case_that_fails_leaves_the_lab_to_the_next(lab: Lab) -> None:
    def broken(lab: Lab, name: str) -> Played:
        job = lab.slurm.submit("--nodes=3", "--wrap=srun sleep 300", directory=lab.project)
        lab.slurm.wait(job, states={"RUNNING"}, timeout_seconds=60)
        slurm.kill_node(lab.record, "node2")
        raise AssertionError(f"{name} is")

    result = play(Case(name="broken", play=broken, verdict=None), lab)
    assert result.outcome == "AssertionError: broken is"
    assert fault_of(result) is not None
    assert lab.slurm.call("squeue", "--noheader") == ""
    job = lab.slurm.submit("--nodes=3", "--wrap=srun true", directory=lab.project)
    assert lab.slurm.wait(job, timeout_seconds=60)["JobState"] == "COMPLETED"
