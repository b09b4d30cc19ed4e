"""Stands in for the trainer where a keeper is to be seen at work: tells all, computes nothing.

Installed by tests as `train/__main__.py` of a directory of their own. Usage:
`python -m train CONFIG.yaml run_directory=DIR stand_in.num_steps=N`.

Each step every rank waits for all others, as collectives do, by files in the run's directory. Asked
to stop, they agree on the step, as the trainer does: the word may reach one of them a step later.
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
    asked_at = 0

    def arrive(step: int) -> None:
        nonlocal asked_at
        asked_at = asked_at or (step if asked else 0)
        scratch = run / f"scratch-{rank}"
        scratch.write_text(f"{step} {asked_at}")
        scratch.replace(place[rank])

    def others() -> list[list[int]]:
        """Of each rank the last step, and the one at which it had been asked to stop, or 0."""
        texts = [path.read_text() if path.exists() else "-1 0" for path in place.values()]
        return [[int(word) for word in text.split()] for text in texts]

    arrive(first)
    for step in range(first + 1, int(options["stand_in.num_steps"]) + 1):
        beat.enter(Section.READ, step=step)
        beat.enter(Section.STEP, step=step)
        time.sleep(STEP_SECONDS)
        arrive(step)
        told = others()
        while min(told)[0] < step:
            time.sleep(0.02)
            told = others()
        if rank == 0:
            with steps.open("a") as file:
                file.write(f"{step} {os.environ['SLURM_STEP_NODELIST']}\n")
        # What was told at a step was told to all before any goes on from it.
        if any(0 < since <= step for _, since in told):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it may still come, at Python's end
            beat.end(SAVED)
            return SAVED
    beat.end(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
