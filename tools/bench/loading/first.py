"""`python -m tools.bench.loading.first ROOT`: seconds and memory to the first batch, as JSON.

A process of its own, so that nothing else counts.
"""

import json
import sys
import time
from pathlib import Path

from tools.bench.loading.readers import Reading


def main(root: str) -> None:
    """Print what was found."""
    reading = Reading(root=root, has_spans=True, steps=100_000)
    before = peak_resident_bytes()
    started = time.perf_counter()
    with reading.feed() as feed:
        opened = time.perf_counter() - started
        feed.step(1)
        seconds = time.perf_counter() - started
        store = feed.plan.sources.all[0].corpus.train
    found = {
        "documents": len(store),
        "shards": len(store.shard_sizes),
        "seconds_to_open": opened,
        "seconds": seconds,
        "peak_bytes": peak_resident_bytes(),
        "peak_bytes_before": before,
    }
    sys.stdout.write(json.dumps(found) + "\n")


def peak_resident_bytes() -> int:
    """Most memory that this process has held."""
    # Not `getrusage`, which begins with what the parent had at the moment of the fork.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main(sys.argv[1])
