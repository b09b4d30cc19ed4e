"""The section `keep:` of a configuration: what `python -m tools.keep` does about faults.

Stored with no run: it says how a run is kept going, and changes none of its numbers.
"""

from model.config import Config


class KeepConfig(Config):
    """What is done to keep a run going; read by `python -m tools.keep` alone."""

    warm: bool = False
    """Have the next ranks stand by with their imports done, for a quicker start. They take memory
    for the imports, and processor time once."""
    fewer_nodes: bool = False
    """Where no spare node takes the place of a dead one, go on with those that are left, in the
    layout that the planner picks, with the same global batches. Default: give the job back."""
    try_nodes: bool | None = None
    """Before the ranks meet, try each node of a job for some seconds: matrix products, memory,
    disk, clock, all-reduce in pairs. One below 0.7 of the median is left out if there is a spare
    one, else named. Default: where `cluster.gpu` is set."""
    leave_out_slow: bool = False
    """Have the ranks save, and put a spare node in the place of one with a rank that computes 20 %
    longer than the median for ten windows of ten steps. Named it is in any case."""
