"""A rank that is killed: seconds until a new step is made, under our keeper and under torchrun.

The same trainer and the same run, whose ranks are this machine's; each time a run of its own. And
what watching costs: what ranks tell their keeper, and what it does with that.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from tools.bench.rounds import Findings, ratio, spread, turns
from tools.bench.shapes import Plan
from tools.chaos.experiment import NUM_RANKS, REPOSITORY, build_corpus, words
from tools.chaos.processes import processes_of, ranks_of
from tools.chaos.timeline import Timeline, next_new
from tools.endings import end_with_parent
from tools.keep.listening import Listener
from train.watch.heartbeat import Heartbeat, Section

MOST_ROUNDS: Final = 5
_STEPS: Final = 100_000
"""More than it comes to."""
_KILLED_AT: Final = 30
_WATCHED_STEPS: Final = 200
_CALLS: Final = 2_000
_DEADLINE_SECONDS: Final = 240.0
_TURN_SECONDS: Final = 0.02
_IDLE_SECONDS: Final = 1.0
_END_SECONDS: Final = 20.0
_KEEP: Final = (sys.executable, "-m", "tools.keep", "--ranks", str(NUM_RANKS))
_TORCHRUN: Final = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=3"),
    *(f"--nproc-per-node={NUM_RANKS}", "-m"),
)
LAUNCHERS: Final = {"warm": (*_KEEP, "--warm"), "cold": _KEEP, "torchrun": _TORCHRUN}


@dataclass(frozen=True)
class Started:
    """A run under its launcher.

    Attributes:
        launcher: the process that has started the ranks.
        timeline: of what they record.
    """

    launcher: subprocess.Popen[bytes]
    timeline: Timeline

    @property
    def step(self) -> int:
        """Last that was recorded."""
        return self.timeline.steps[-1].step if self.timeline.steps else 0


def against_torchrun(plan: Plan) -> Findings:
    """Kill a rank under each launcher in turn."""
    found = Findings(settings={"ranks": NUM_RANKS, "killed_at": _KILLED_AT})
    seconds: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    with tempfile.TemporaryDirectory(prefix="restarting-") as name:
        directory, numbers = Path(name), itertools.count()
        build_corpus(directory / "corpus")
        for launcher in turns([*LAUNCHERS], min(plan.heavy.rounds, MOST_ROUNDS)):
            run = directory / f"run-{next(numbers)}"
            seconds[launcher].append(_seconds_to_new_step(launcher, directory / "corpus", run))
    found.settings["seconds"] = {each: spread(taken).median for each, taken in seconds.items()}
    found.ratios |= {
        f"restart_vs_torchrun_{each}": ratio(seconds[each], seconds["torchrun"])
        for each in ("warm", "cold")
    }
    return found


def watching(plan: Plan) -> Findings:
    """What a rank and its keeper do for being watched, as a share of a step of a tiny model."""
    del plan  # a step of this model is what watching weighs most in
    with tempfile.TemporaryDirectory(prefix="watching-") as name:
        directory = Path(name)
        build_corpus(directory / "corpus")
        with _started("cold", directory / "corpus", directory / "run") as run:
            _wait(lambda: run.step >= _KILLED_AT, run)
            keeper = psutil.Process(run.launcher.pid)
            before, times, began = run.step, keeper.cpu_times(), time.perf_counter()
            _wait(lambda: run.step >= before + _WATCHED_STEPS, run)
            after, wall = keeper.cpu_times(), time.perf_counter() - began
            steps = run.step - before
    kept = (after.user + after.system - times.user - times.system) / steps
    told = _seconds_of_telling()
    found = Findings(
        settings={
            "step_seconds": wall / steps,
            "keeper_processor_seconds_a_step": kept,
            "rank_seconds_a_step": told,
        }
    )
    found.ratios["watching_overhead"] = spread([(kept + told) * steps / wall])
    return found


def _seconds_of_telling() -> float:
    """That a rank takes in a step to tell where it is; somebody listens, between."""
    taken: list[float] = []
    with Listener() as listener:
        beat = Heartbeat(listener.address, rank=0)
        beat.count_own_time(lambda: 0.0, stage=0)
        for step in range(1, _CALLS):
            began = time.perf_counter()
            beat.enter(Section.READ, step=step)
            beat.enter(Section.STEP, step=step)
            taken.append(time.perf_counter() - began)
            listener.listen(0.0)
    return spread(taken).median


def _seconds_to_new_step(launcher: str, corpus: Path, directory: Path) -> float:
    with _started(launcher, corpus, directory) as run:
        _wait(lambda: run.step >= _KILLED_AT, run)
        if launcher == "warm":
            _wait(partial(_stand_by, directory), run)
        start, killed = run.timeline.starts, time.time()
        ranks_of(directory, variable="RANK")[1].kill()
        find = partial(next_new, since=killed, start=start, ends_an_attempt=True)
        _wait(lambda: find(run.timeline.steps) is not None, run)
        step = find(run.timeline.steps)
        assert step is not None, "or it were still waited for"
        return step.arrived - killed


def _stand_by(run: Path) -> bool:
    """Whether the next ranks are there, and have done their imports: they do nothing any more."""
    processes = [process for process, _ in processes_of(run, "train")]
    youngest = sorted(processes, key=lambda each: each.create_time())[NUM_RANKS:]
    if len(youngest) < NUM_RANKS:
        return False
    before = [each.cpu_times().user for each in youngest]
    time.sleep(_IDLE_SECONDS)
    return before == [each.cpu_times().user for each in youngest]


@contextlib.contextmanager
def _started(launcher: str, corpus: Path, run: Path) -> Generator[Started]:
    """A run under a launcher, ended in the end, with what it records."""
    command = [*LAUNCHERS[launcher], "train", *words(corpus, run, steps=_STEPS)]
    command += ["checkpoint.every_steps=20"]
    output = run.with_suffix(".txt")
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=dict(_own_environment()),
            stdout=file,
            stderr=subprocess.STDOUT,
            # As it ends: a launcher that is killed leaves its ranks behind.
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )
    try:
        yield Started(process, Timeline(run=run))
    except TimeoutError as error:
        raise RuntimeError(f"{launcher}: {error}\n{output.read_text()[-4000:]}") from None
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        for module in ("train", "tools.keep"):
            for each, _ in processes_of(run, module):
                with contextlib.suppress(ProcessLookupError):
                    each.kill()
        process.kill()
        process.wait()


def _own_environment() -> Iterator[tuple[str, str]]:
    """This process is a rank of the bench; the run's are others'."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    yield from ((name, value) for name, value in os.environ.items() if name not in ours)
    yield "OMP_NUM_THREADS", "1"


def _wait(is_so: Callable[[], bool], run: Started) -> None:
    """Until something is so.

    Raises:
        TimeoutError: it never is, or nobody starts the ranks again.
    """
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        run.timeline.look()
        if is_so():
            return
        if run.launcher.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"ended at step {run.step} in {run.timeline.starts} starts")
        time.sleep(_TURN_SECONDS)
