"""How often the kernel has killed a process here for want of memory."""

import contextlib
from pathlib import Path, PurePosixPath
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_GROUP: Final = Path("/proc/self/cgroup")


def out_of_memory_kills(*, groups: Path = _CGROUPS, own_group: Path = _OWN_GROUP) -> int:
    """Kills in the group of this process's job, or of its container; 0 where nobody says.

    Slurm gives each job a group on each of its nodes, `…/job_7/step_0/…`, and counts of the groups
    in it, those that are gone, too, add up there.

    Args:
        groups: where the kernel shows them (cgroup v2).
        own_group: where it says which one this process is in.
    """
    found = groups
    with contextlib.suppress(OSError):
        for line in own_group.read_text().splitlines():
            number, _, path = line.partition("::")
            place = PurePosixPath(path)
            job = [each for each in (place, *place.parents) if each.name.startswith("job_")]
            if number == "0" and job:
                found = groups / job[-1].relative_to("/")
    with contextlib.suppress(OSError, ValueError):
        for line in (found / "memory.events").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
