"""Stands in for the trainer where a keeper is to be seen at work: tells all, computes nothing.

Installed by tests as `train/__main__.py` of a directory of their own. Usage:
`python -m train CONFIG.yaml run_directory=DIR stand_in.num_steps=N`.

Each step every rank waits for all others, as collectives do, by files in the run's directory.
"""

import os
import signal
import sys
import time
from pathlib import Path

from train.watch.heartbeat import Heartbeat, Section

STEP_SECONDS = 0.1
SAVED = 75


def main() -> int:
    beat = Heartbeat.of_environment()
    options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    run = Path(options["run_directory"])
    run.mkdir(parents=True, exist_ok=True)
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
    steps = run / "steps.txt"
    first = len(steps.read_text().splitlines()) if steps.exists() else 0
    beat.begin(run_directory=str(run), step=first, patience_seconds=1.0)
    # Ranks of one start have a port in common.
    place = {each: run / f"{os.environ['MASTER_PORT']}-{each}" for each in range(size)}

    def arrive(step: int) -> None:
        scratch = run / f"scratch-{rank}"
        scratch.write_text(str(step))
        scratch.replace(place[rank])

    arrive(first)
    for step in range(first + 1, int(options["stand_in.num_steps"]) + 1):
        beat.enter(Section.READ, step=step)
        beat.enter(Section.STEP, step=step)
        time.sleep(STEP_SECONDS)
        arrive(step)
        while any(not path.exists() or int(path.read_text()) < step for path in place.values()):
            time.sleep(0.02)
        if rank == 0:
            with steps.open("a") as file:
                file.write(f"{step} {os.environ['SLURM_STEP_NODELIST']}\n")
        if asked:
            beat.end(SAVED)
            return SAVED
    beat.end(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
