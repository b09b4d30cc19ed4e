"""Keeps the trainer's side of slurm/launch.sh's agreement, in seconds and without a model.

Installed by tests as `train/__main__.py` of a directory of their own. Usage:
`python -m train CONFIG.yaml run_directory=DIR [stand_in.num_steps=N] [stand_in.fail=true]
[stand_in.import_seconds=S]`.

Every rank adds one at each step; the sums over all ranks go to `DIR/steps.txt`, one line a step.
Ranks meet where a process group of torch's would, which takes five seconds of a core to import.
"""

import json
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path

STOPPED_AND_SAVED = 75
PATIENCE_SECONDS = 30.0


class Group:
    """All ranks: the first one listens at the address that the environment names."""

    def __init__(self, rank: int, world_size: int) -> None:
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if rank == 0:
            with socket.create_server(address) as listener:
                listener.settimeout(PATIENCE_SECONDS)
                found = [listener.accept()[0] for _ in range(world_size - 1)]
        else:
            found = [_connected(address)]
        for each in found:
            each.settimeout(PATIENCE_SECONDS)
        self._is_first = rank == 0
        self._files = [each.makefile("rw") for each in found]

    def sums(self, *values: float) -> list[float]:
        """Of what all ranks give, each of them waiting for all others."""
        if not self._is_first:
            self._tell([*values])
            [told] = self._heard()
            return told
        sums = [math.fsum(each) for each in zip(values, *self._heard(), strict=True)]
        self._tell(sums)
        return sums

    def _tell(self, values: list[float]) -> None:
        for file in self._files:
            file.write(f"{json.dumps(values)}\n")
            file.flush()

    def _heard(self) -> list[list[float]]:
        lines = [file.readline() for file in self._files]
        if not all(lines):
            raise ConnectionError("another rank has gone")
        return [json.loads(line) for line in lines]


def _connected(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return socket.create_connection(address)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main() -> int:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    run_directory = Path(options["run_directory"])
    num_steps = int(options.get("stand_in.num_steps", "5"))
    rank = int(os.environ.get("RANK", os.environ["SLURM_PROCID"]))
    world_size = int(os.environ.get("WORLD_SIZE", os.environ["SLURM_NTASKS"]))

    # Imports take this long; signals that come meanwhile meet no handler.
    time.sleep(float(options.get("stand_in.import_seconds", "0")))
    is_asked_to_stop = False

    def ask_to_stop(_number: int, _frame: object) -> None:
        nonlocal is_asked_to_stop
        is_asked_to_stop = True

    signal.signal(signal.SIGUSR1, ask_to_stop)
    signal.signal(signal.SIGTERM, ask_to_stop)

    group = Group(rank, world_size)
    if options.get("stand_in.fail") == "true" and rank == world_size - 1:
        raise ValueError("the stand-in was told to fail")
    steps_file = run_directory / "steps.txt"
    run_directory.mkdir(parents=True, exist_ok=True)
    first_step = len(steps_file.read_text().splitlines()) if steps_file.exists() else 0
    # Rank 0 alone would write the file while another still reads where to start.
    group.sums()

    exit_status = 0
    for step in range(first_step, num_steps):
        time.sleep(0.1)
        # One rank may be asked a step before another: they stop when any was asked.
        sums = group.sums(1.0, float(is_asked_to_stop))
        if rank == 0:
            with steps_file.open("a") as file:
                restart = os.environ.get("SLURM_RESTART_COUNT", "0")
                file.write(f"{step} sum={sums[0]:.0f} restart={restart}\n")
        if sums[1] > 0:
            exit_status = STOPPED_AND_SAVED
            break
    # Python's teardown restores what signals do by default: the next one would kill.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    group.sums()
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
