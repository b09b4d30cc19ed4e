"""`python -m tools.pretrain`: the first run, from packages to a trained model, on this machine.

Builds the corpus unless there is one at `data.corpus` (a directory or `s3://bucket/path`), measures
the machine in a few real steps, trains `configs/experiment/first_light.yaml`, or where there is a
GPU the larger `first_light_gpu.yaml`, for as many steps as fit `--minutes`, lets the model speak,
and writes the numbers to `out/pretrain.json`. `steps=N` sets the steps instead, and nothing is
measured.
"""

from train.preemption import quiet_until_asked

if __name__ == "__main__":
    quiet_until_asked()  # what is imported next takes seconds

import contextlib
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final

import psutil
import torch
from pydantic import ConfigDict, Field, TypeAdapter
from rich.console import Console
from rich.table import Table

from tools.arguments import Parser, output_file, real
from tools.command import command_line, write_json
from tools.lab.daemons import free_ports
from train.claim import check
from train.config import RunConfig
from train.config_files import load
from train.data.store.index import INDEX_NAME
from train.errors import DataError, UserError
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.storage.record import Count, Record, content_of, parse
from train.watch.metrics import read_metrics

EXPERIMENT = "configs/experiment/first_light.yaml"
EXPERIMENT_ON_GPU = "configs/experiment/first_light_gpu.yaml"
PINNED = "steps="
GO_ON = "stopped; the same command goes on from here"

LEAST_TOKENS = 900_000
"""With a schedule of 819,200 tokens the loss ends 0.71 nats below the unigram entropy."""

STEPS_APART = 20
"""Numbers of steps to choose from: equal choices give equal numbers."""

SLOWER = 2 / 3
"""Fewer ranks are chosen where the usual ones reach less than this share of their speed."""

TOO_SLOW = 10
"""A machine whose least run takes so many times `--minutes` is refused."""

MEASURED = (
    *("steps=4", "optim.warmup_steps=1", "validation.sequences=2", "samples.prompts=[]"),
    *("checkpoint.directory=null", "watch.wandb=disabled"),
)
"""Overrides of the short run that measures the machine."""


@dataclass(frozen=True)
class Choice:
    """How a run fits this machine; kept in its directory, so that it goes on as it began."""

    steps: Annotated[Count, Field(ge=1)]
    ranks: Annotated[Count, Field(ge=1)]
    threads: Annotated[Count, Field(ge=1)]
    """CPU threads of each rank."""
    tokens_per_second_measured: float | None = None
    """Before the first step; None where nothing was measured."""


class Summary(Record):
    """Numbers of a complete run, of which some are shown."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    validation_loss_first: float
    validation_loss_last: float
    unigram_entropy: float
    tokens_per_second: float
    data_wait_fraction: float
    seconds_training: float
    checkpoint: str
    report: str


_CHOICE: Final = TypeAdapter(Choice)
_SUMMARY: Final = TypeAdapter(Summary)
SMALL_BYTES: Final = 1 << 20


@command_line
def main(arguments: list[str] | None = None) -> int | None:
    """Build, measure, train, report; the exit status of the first command that fails."""
    parser = Parser(prog="python -m tools.pretrain", description=__doc__)
    parser.add_argument("--started", type=real(), default=time.time(), help="Unix seconds")
    parser.add_argument("--minutes", type=real(above=0), default=6.0, help="what training may take")
    parser.add_argument("--out", type=output_file, default="out/pretrain.json")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    overrides: list[str] = options.overrides
    console = Console(highlight=False)
    pinned = pinned_steps(overrides)
    config = load(RunConfig, scheduled(overrides, pinned))
    if not config.data.sources and not is_built(config):
        console.rule("corpus")
        corpus, vocabulary = str(config.data.corpus), str(config.model.decoder.vocabulary)
        command = [sys.executable, "-m", "tools.corpus", "build", corpus]
        if code := build([*command, "--vocabulary", vocabulary]):
            return code
    console.rule("training")
    run = config.directory
    choice = recall(run, steps=config.steps)
    if choice is None:
        check(config)
        # Epochs and tokens of a source are what the whole run reads: fewer steps cannot hold them.
        if pinned or any(source.is_budgeted for source in config.data.mixed.values()):
            choice = Choice(config.steps, *spreads()[0])
        else:
            choice = settle(config, overrides, options.minutes, console)
        keep(choice, run)
    arguments = scheduled(overrides, pinned or choice.steps)
    if code := launch(arguments, choice.ranks, choice.threads).returncode:
        return code
    console.rule("result")
    if not run.summary.exists():
        raise UserError(f"the run is saved, but {run.summary} was not written: see what it said")
    summary = read_summary(run.summary)
    if run.summary.stat().st_mtime < options.started and options.out.exists():
        # Nothing was trained now: the numbers of the time it was stay.
        summary = read_summary(options.out)
    else:
        summary = {**asdict(choice), **summary, "seconds_total": time.time() - options.started}
        write_json(options.out, summary)
    show(console, summary, run)


def build(command: Sequence[str]) -> int:
    """Build a corpus; its exit status."""
    with subprocess.Popen(command) as builder:
        try:
            return builder.wait()
        except KeyboardInterrupt:
            builder.wait()  # a terminal tells it, too
            raise KeyboardInterrupt(GO_ON) from None


def pinned_steps(overrides: Sequence[str]) -> int | None:
    """The steps that the user set; None if they were left to the machine."""
    texts = [text.removeprefix(PINNED) for text in overrides if text.startswith(PINNED)]
    try:
        return int(texts[-1])
    except (IndexError, ValueError):  # what is no number is told with the other faults
        return None


def experiment() -> str:
    """The configuration that suits this machine."""
    return EXPERIMENT_ON_GPU if torch.cuda.is_available() else EXPERIMENT


def scheduled(overrides: Sequence[str], steps: int | None = None) -> list[str]:
    """Arguments of a run of so many steps, whose warm-up keeps its share unless it was set.

    Raises:
        ConfigError: the overrides are wrong.
    """
    if steps is None:
        return [experiment(), *overrides]
    rest = [override for override in overrides if not override.startswith(PINNED)]
    if not any(override.startswith("optim.warmup_steps=") for override in rest):
        whole = load(RunConfig, [experiment(), *rest])
        rest.append(f"optim.warmup_steps={round(whole.optim.warmup_steps * steps / whole.steps)}")
    return [experiment(), *rest, f"steps={steps}"]


def spreads() -> list[tuple[int, int]]:
    """Ranks and threads of each that this machine can run, the usual ones first."""
    most = min(2, torch.cuda.device_count()) if torch.cuda.is_available() else 2
    threads = torch.get_num_threads()
    alike = "OMP_NUM_THREADS" in os.environ  # the user's word is for each process
    return [(ranks, threads if alike else max(1, threads // ranks)) for ranks in range(most, 0, -1)]


def choose(
    measure: Callable[[int, int], float],
    spreads: Sequence[tuple[int, int]],
    *,
    steps: int,
    step_tokens: int,
    minutes: float,
) -> Choice:
    """Fit a run to a machine: a function of what is measured, and of nothing else.

    Args:
        measure: tokens a second with so many ranks and threads; asked beyond the first of `spreads`
            only if that one cannot take all steps in time.
        spreads: ranks and threads to choose from, the usual ones first.
        steps: of the whole run; never more.
        step_tokens: tokens of a step.
        minutes: what training may take, unless `LEAST_TOKENS` take longer.

    Raises:
        UserError: even the least run takes `TOO_SLOW` times as long.
    """
    seconds = 60 * minutes
    (ranks, threads), *fewer = spreads
    rate = measure(ranks, threads)
    for other in fewer if steps * step_tokens > rate * seconds else ():
        with contextlib.suppress(UserError):  # a layout may want the usual number of ranks
            if rate < SLOWER * (other_rate := measure(*other)):
                (ranks, threads), rate = other, other_rate
    least = math.ceil(LEAST_TOKENS / step_tokens / STEPS_APART) * STEPS_APART
    fitting = int(rate * seconds / step_tokens / STEPS_APART) * STEPS_APART
    chosen = min(steps, max(least, fitting))
    needed = chosen * step_tokens / rate
    if needed > TOO_SLOW * seconds:
        raise UserError(
            f"this machine is too slow: at {rate:,.0f} tokens/s the {chosen} steps without which "
            f"little is learnt take {needed / 3600:.1f} hours: set STEPS={chosen} to train all the "
            "same, or free the machine of other work"
        )
    return Choice(chosen, ranks, threads, rate)


def settle(config: RunConfig, overrides: Sequence[str], minutes: float, console: Console) -> Choice:
    """Measure this machine in a few real steps, choose, and say what the run will take.

    Raises:
        UserError: the machine is too slow, or the run that measures it failed.
    """

    def measure(ranks: int, threads: int) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            run = RunDirectory(Path(scratch) / "run")
            arguments = [experiment(), *overrides, *MEASURED, f"run_directory={run}"]
            ended = launch(arguments, ranks, threads, quiet=True)
            if ended.returncode:
                raise UserError(f"the run that measures this machine failed:\n{ended.stdout}")
            steps = read_metrics(run.metrics).train[1:]  # the first one warms up
        rate = statistics.median(step.tokens / step.step_seconds for step in steps)
        console.print(f"measured {rate:,.0f} tokens/s with {ranks} x {threads} (ranks x threads)")
        return rate

    step_tokens = config.batch.sequences * config.data.sequence_tokens
    choice = choose(
        measure, spreads(), steps=config.steps, step_tokens=step_tokens, minutes=minutes
    )
    taken = choice.steps * step_tokens / (choice.tokens_per_second_measured or math.inf) / 60
    console.print(
        f"{choice.steps} of at most {config.steps} steps with {choice.ranks} x "
        f"{choice.threads}: about {taken:.1f} minutes of training"
    )
    return choice


def recall(run: RunDirectory, *, steps: int) -> Choice | None:
    """What was chosen for the run in a directory; None if no run has begun there."""
    if not run.config.exists():
        return None
    if run.choice.exists():
        content = content_of(run.choice, limit_bytes=SMALL_BYTES)
        remedy = "delete it to choose anew"
        return parse(_CHOICE, content, name=str(run.choice), error=DataError, remedy=remedy)
    # It was begun by `python -m train`, or before there was a choice.
    return Choice(steps, *spreads()[0])


def read_summary(path: Path) -> dict[str, Any]:
    """The numbers of a run, as they were written.

    Raises:
        DataError: the file is missing, or says something else.
    """
    remedy = "run again with another run_directory, or look at its report"
    try:
        content = content_of(path, limit_bytes=SMALL_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {remedy}") from None
    return parse(_SUMMARY, content, name=str(path), error=DataError, remedy=remedy).model_dump()


def keep(choice: Choice, run: RunDirectory) -> None:
    """Store a choice in the directory of the run that is about to begin."""
    with contextlib.suppress(OSError):  # the run itself says what is wrong
        Place.of(run.choice).write(json.dumps(asdict(choice), indent=2).encode() + b"\n")


def is_built(config: RunConfig) -> bool:
    """Whether a corpus is where the configuration says, built by whatever."""
    corpus = Place.parse(str(config.data.corpus), config.storage)
    return (corpus / f"train/{INDEX_NAME}").exists()


def launch(
    arguments: Sequence[str], ranks: int, threads: int, *, quiet: bool = False
) -> subprocess.CompletedProcess[str]:
    """Train on this machine through the deepspeed launcher; `quiet` keeps what the run says."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)),
        *("--master_port", str(free_ports(1)[0]), "--log_level", "critical"),
        *("--module", "train", *arguments),
    ]
    out, errors = (subprocess.PIPE, subprocess.STDOUT) if quiet else (None, None)
    launcher = subprocess.Popen(
        command, env=environment, text=True, stdout=out, stderr=errors, start_new_session=True
    )
    with relayed(launcher) as asked:
        told, _ = launcher.communicate()
    if asked and (quiet or launcher.returncode != ExitStatus.SAVED):
        raise KeyboardInterrupt(GO_ON)
    if asked:
        sys.stderr.write(f"{GO_ON}\n")
    return subprocess.CompletedProcess(command, launcher.returncode, told)


@contextlib.contextmanager
def relayed(launcher: subprocess.Popen[str]) -> Generator[list[int]]:
    """Have what this command is sent reach the ranks: they save and stop, or end at once.

    The launcher is in a session of its own. A terminal's Ctrl-C would else reach it too, which then
    shows a traceback and kills, after half a minute, ranks that still save.

    Yields:
        The signals that came.
    """
    asked: list[int] = []

    def relay(number: int, frame: FrameType | None) -> None:
        del frame
        ranks = [each for each in _below(launcher.pid) if _is_rank(each)]
        if not ranks or signal.SIGINT in asked:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
        elif not asked:
            with contextlib.suppress(OSError):
                os.write(2, b"saving and stopping; Ctrl-C again ends at once\n")
            for rank in ranks:
                with contextlib.suppress(psutil.Error):
                    rank.terminate()
        asked.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    heard = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, relay) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _is_rank(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("--local_rank=") for word in process.cmdline())
    except psutil.Error:
        return False


def show(console: Console, summary: dict[str, Any], run: RunDirectory) -> None:
    """Print what was learnt, and where things are."""
    first, last = summary["validation_loss_first"], summary["validation_loss_last"]
    unigram = summary["unigram_entropy"]
    table = Table("what", "value")
    for what, value in {
        "validation loss before any step": f"{first:.3f} nats",
        "validation loss at the end": f"{last:.3f} nats",
        "unigram entropy, same tokens": f"{unigram:.3f} nats",
        f"{'below' if last <= unigram else 'above'} the unigram entropy by": (
            f"{abs(unigram - last):.3f} nats"
        ),
        "tokens per second": f"{summary['tokens_per_second']:,.0f}",
        "waiting for data": f"{summary['data_wait_fraction']:.2%} of the time",
        "seconds training, all starts": f"{summary['seconds_training']:.0f}",
        "seconds of this command in all": f"{summary['seconds_total']:.0f}",
        "checkpoint": str(summary["checkpoint"]),
        "report (open in a browser)": str(summary["report"]),
    }.items():
        table.add_row(what, value)
    console.print(table)
    for sample in read_metrics(run.metrics).samples[-2:]:
        console.print(f"{sample.prompt} ▸{sample.text}", markup=False)
    go_on = f"python -m tools.generate {shlex.quote(str(run))} --prompt '...'"
    console.print(f"\nGo on: {go_on}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
