"""The layout of a run on fewer ranks than it was started with, as the planner picks it.

`python -m tools.keep.replanning RANKS RANKS_PER_NODE FILE|key=value…` prints overrides, or null
where there is no layout. In a process of its own: it imports what trains, and a keeper is to stay
small for weeks.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

_SECONDS: Final = 600.0


@functools.cache
def overrides_on(
    arguments: tuple[str, ...], *, ranks: int, ranks_per_node: int
) -> tuple[str, ...] | None:
    """Overrides that have a run fit so many ranks; None if nothing does, or nobody knows.

    Args:
        arguments: of a rank.
        ranks: of all nodes that are left.
        ranks_per_node: of each.
    """
    said = [each for each in arguments if not each.startswith("-")]
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(ranks), str(ranks_per_node), *said],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_SECONDS,
            check=True,
        )
        found: list[str] | None = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return None if found is None else tuple(found)


def planned(arguments: Sequence[str], *, ranks: int, ranks_per_node: int) -> list[str] | None:
    """Overrides for the fastest layout that fits; None if none does.

    Where the planner does not know such runs, the layout stays, if so many ranks can have it. The
    global batch is the same in any case, and so are the steps.

    Raises:
        UserError: the configuration is wrong.
    """
    # Imported here: whoever only asks for a layout imports nothing that trains.
    from tools.plan.documents import document_tokens
    from tools.plan.search import all_plans
    from tools.plan.task import task_of
    from tools.submit.refusing import machine_of, unplanned
    from train.cluster import ClusterConfig
    from train.config import RunConfig, batch_fault
    from train.config_files import load

    config = load(RunConfig, arguments)
    cluster = config.cluster or ClusterConfig()
    cluster = cluster.model_copy(update={"ranks_per_node": ranks_per_node})
    if unplanned(config, cluster) is not None:
        return [] if batch_fault(config, ranks=ranks) is None else None
    machine = machine_of(cluster)
    task = task_of(config, kind=machine.kind, document_tokens=document_tokens(config))
    plans = all_plans(task, machine, ranks=ranks)
    if not plans.ranked:
        return None
    return [
        f"{section}.{key}={json.dumps(value)}"
        for section, values in plans.ranked[0].candidate.overlay.items()
        for key, value in values.items()
    ]


def main(arguments: Sequence[str]) -> None:
    """Print the overrides."""
    ranks, ranks_per_node, *given = arguments
    found = planned(given, ranks=int(ranks), ranks_per_node=int(ranks_per_node))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
