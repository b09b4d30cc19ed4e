"""Nodes that die or are slow."""

from tests.cluster.lab import Lab
from tests.cluster.plays.played import Played, disturbed
from tools.chaos.injected import LAME
from tools.lab import slurm

SHARED_CORE = """\
#!/bin/bash
# In its try-out one node shares a core with four that compute; the others share another core.
[[ " $* " == *" tools.keep.trying "* ]] || exec "$@"
[[ $SLURMD_NODENAME == node2 ]] || exec taskset --cpu-list 1 "$@"
for _ in 1 2 3 4; do
    taskset --cpu-list 0 timeout 60 bash -c 'while :; do :; done' &
done
taskset --cpu-list 0 "$@"
status=$?
kill $(jobs -p)
exit "$status"
"""


def slow_at_the_try_out(lab: Lab, name: str) -> Played:
    """A spare node takes the place of one that is slow before ranks meet."""
    enter = lab.directory / "enter"
    enter.write_text(SHARED_CORE)
    enter.chmod(0o755)
    job = lab.submit(
        name,
        *(f"cluster.container=[{enter}]", "cluster.spare_nodes=1", "keep.try_nodes=true"),
        flags=("--nodes=3",),
    )
    state = job.end()
    [attempt] = job.attempts
    assert attempt.nodes == ["node1", "node3"], job.output
    assert "of the median in matrix products" in attempt.left_out["node2"], job.output
    return Played(state=state, job=job)


def slow_rank(lab: Lab, name: str) -> Played:
    """Over a hundred steps; then all save, and a spare node takes its node's place."""
    played = disturbed(
        lab,
        name,
        lambda job: job.wait(lambda: job.attempts, "the end of the first attempt"),
        *("cluster.spare_nodes=1", "keep.leave_out_slow=true"),
        flags=("--nodes=3",),
        environment={LAME: "node2 0.1"},
    )
    first, last = played.job.attempts
    assert list(first.slow_ranks) == [1], first
    assert last.nodes == ["node1", "node3"], last
    return played


def killed_with_a_spare(lab: Lab, name: str) -> Played:
    played = _killed(lab, name, "node2", "cluster.spare_nodes=1", flags=("--nodes=3",))
    first, last = played.job.attempts
    assert (first.gone, last.nodes) == (["node2"], ["node1", "node3"]), (first, last)
    return played


def killed_without_a_spare(lab: Lab, name: str) -> Played:
    """The run goes on upon the node that is left, in another layout."""
    calm = "optim.lr=1e-3"  # what rounding adds grows with each step
    played = _killed(lab, name, "node2", "keep.fewer_nodes=true", calm)
    first, last = played.job.attempts
    assert (first.gone, last.nodes, last.num_ranks) == (["node2"], ["node1"], 1), played.job.output
    played.relative, played.told = 1e-5, [calm]
    return played


def _killed(lab: Lab, name: str, node: str, *overrides: str, flags: tuple[str, ...] = ()) -> Played:
    """One node dies under a run, and is mended afterwards."""
    played = disturbed(
        lab, name, lambda job: slurm.kill_node(lab.record, node), *overrides, flags=flags
    )
    slurm.revive_node(lab.record, node)
    played.job.wait(lambda: lab.is_idle(node), f"{node} to come back")
    return played
