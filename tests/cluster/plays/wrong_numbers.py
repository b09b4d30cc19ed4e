"""Numbers that go wrong, and processors that are unlike."""

import json
import re

from tests.cluster.lab import Lab
from tests.cluster.plays.played import Played, disturbed, submitted_again
from tests.train.fault_lab import losses_of
from tests.train.wrong_numbers.injected import documents_of, sample_of
from tools.chaos.injected import BROKEN, OLD, POISON, SPIKING, STRUCK
from tools.ledger import check_run

STEP, ENTRY = 30, 6
"""Of the sample that breaks the loss: the second rank reads it."""


def struck(lab: Lab, name: str) -> Played:
    """Hardware: it differs on repetition. The job ends, and names the node."""
    job = lab.submit(name, environment={STRUCK: "1 30"})
    job.wait_for_step(29)
    return Played(state=job.end(), job=job)


def broken(lab: Lab, name: str) -> Played:
    job = lab.submit(name, environment={BROKEN: "1 30"})
    return Played(state=job.end(), job=job, told=["left_out=[30]"])


def spiking(lab: Lab, name: str) -> Played:
    job = lab.submit(
        name,
        *("spikes={window_steps: 16, threshold: 40, patience_steps: 2}", "optim.lr=1e-4"),
        environment={SPIKING: "44 45"},
    )
    return Played(state=job.end(), job=job, told=["left_out=[[44, 45]]", "optim.lr=1e-4"])


def poisoned(lab: Lab, name: str) -> Played:
    """A sample breaks the loss: its step is left out, and it is named; by that name it is left
    unscored, and the step is made."""
    tokens = lab.directory / f"{name}.json"
    tokens.write_text(json.dumps([sample_of(lab.corpus, step=STEP, entry=ENTRY)]))
    environment = {POISON: str(tokens)}
    job = lab.submit(name, environment=environment)
    assert job.end() == "COMPLETED", job.output
    assert losses_of(job.directory) == lab.told(f"left_out=[{STEP}]")
    assert check_run(job.directory, corpus=str(lab.corpus)).faults == []
    named = re.findall(r"it is from document (\d+) of corpus \(train/\1\)", job.output)
    assert int(named[0]) in documents_of(lab.corpus, step=STEP, entry=ENTRY), job.output
    ids = ", ".join(f"train/{each}" for each in documents_of(lab.corpus, step=STEP, entry=ENTRY))
    unscored = f"data.unscored_ids=[{ids}]"
    again = lab.submit(f"{name}-unscored", unscored, environment=environment)
    return Played(state=again.end(), job=again, told=[unscored])


def unlike_precision(lab: Lab, name: str) -> Played:
    """Decided once, for all ranks, and kept where their processors are alike later."""
    first = disturbed(
        lab,
        name,
        lambda job: lab.slurm.call("scancel", str(job.number)),
        "precision=auto",
        environment={OLD: "1"},
    )
    assert first.state == "CANCELLED", first.state
    said = "precision: fp32, for all ranks alike: processors are unlike, and bf16 is not multiplied"
    assert f"{said} in hardware on node2 (Old)" in first.job.output, first.job.output
    return submitted_again(lab, name, first, "precision=auto", environment={OLD: "none"})
