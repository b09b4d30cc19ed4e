"""Processes of a run on this machine, found by what they were started with."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from tools.lab.daemons import LabError


def processes_of(run: Path, module: str) -> Iterator[tuple[psutil.Process, Mapping[str, str]]]:
    """Processes that run a module for a run, each with its environment.

    Args:
        run: directory of the run, as it was given to them.
        module: such as "train".
    """
    for process in psutil.process_iter():
        try:
            words = [word for word in process.cmdline()[1:] if word != "-u"]
            if words[:2] == ["-m", module] and f"run_directory={run}" in words:
                yield process, process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def ranks_of(run: Path, *, variable: str = "SLURM_PROCID") -> dict[int, psutil.Process]:
    """The processes that train, by rank; of several the oldest, for younger ones stand by.

    Args:
        run: directory of the run.
        variable: of the environment, that numbers them.

    Raises:
        LabError: there are none.
    """
    found: dict[int, psutil.Process] = {}
    processes = sorted(processes_of(run, "train"), key=lambda each: -each[0].create_time())
    for process, environment in processes:
        if variable in environment:
            found[int(environment[variable])] = process
    if not found:
        raise LabError(f"no rank of {run} runs")
    return found
