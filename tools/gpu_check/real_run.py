"""A real run: `python -m train` is killed after a save, goes on, is stopped; then a sample."""

import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Final, cast

from tools.bench.gpu import METALM
from tools.corpus.tokenizer import CorpusTokenizer
from tools.gpu_check.parity import TINY
from tools.ranks import run_module
from train.checkpoint.directory import complete
from train.config import RunConfig
from train.config_files import load
from train.errors import UserError
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.watch.metrics import TrainRecord, read_metrics

TEXTS: Final = ("README.md", "docs")
"""What a corpus is made of where none is named: it is always at hand, and need not be good."""
LEARNT_ENTRIES: Final = 500
"""Of a tokenizer made of so little text; the others of its vocabulary are never used."""

ENDLESS: Final = 1_000_000
"""Steps of the run, which never ends by itself, however fast they are."""
USUAL_SEQUENCES: Final = 16
WARM: Final = 3
"""Steps before those whose speed counts."""
EQUAL: Final = 1e-3
"""How far a loss that is computed again may be off, as a share: some kernels add in any order."""
PROMPT: Final = "The model reads"
POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a run is.

    Attributes:
        saved: steps between saves.
        repeated: steps after one that are computed again, fewer than lie between saves.
        sequences: of a step, one microbatch; None: the run finds what fits.
        disk_bytes: that two checkpoints may take.
    """

    saved: int
    repeated: int
    sequences: int | None
    disk_bytes: int = 0


class RealRunError(Exception):
    """A command of the run did not end as it should; its first line says which, and how."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the run showed.

    Attributes:
        tokens_per_second: median over the steps before the first save.
        resumed_equal: whether losses computed again after the kill are those of before.
        launch_seconds: to the first step, with an empty compile cache and with a filled one.
        remarks: what was seen, in sentences.
    """

    tokens_per_second: float
    resumed_equal: bool
    launch_seconds: list[float]
    remarks: list[str]


def real_run(
    scale: Scale,
    *,
    directory: Path,
    corpus: str | None,
    is_tiny: bool,
    timeout_seconds: float,
    context: BaseContext | None = None,
) -> Found:
    """Trains, kills, goes on, stops with a signal and lets the model speak.

    Args:
        scale: how large it is.
        directory: for the run, and for a corpus if one is made.
        corpus: of the model's vocabulary; None to make one.
        is_tiny: the tiny model instead of the 1.3B.
        timeout_seconds: after which it is given up.
        context: makes the processes.

    Raises:
        RealRunError: a command fails, or the time is over; with the end of what it said.
    """
    started = time.monotonic()
    context = context or multiprocessing.get_context("spawn")
    command = partial(Command, context, directory, started + timeout_seconds)
    files = [str(TINY)] if is_tiny else list(METALM)
    corpus = corpus or made_corpus(files, directory, command)
    run = RunDirectory(directory / "run")
    arguments = [
        *files,
        f"data.corpus={corpus}",
        f"run_directory={run}",
        f"compile_cache={directory / 'compiled'}",
        *(f"steps={ENDLESS}", "optim.warmup_steps=10", "samples.prompts=[]"),
        f"batch.sequences={scale.sequences or USUAL_SEQUENCES}",
        f"batch.micro_sequences={scale.sequences or 'auto'}",
        # With room for the largest spans it might not fit, as the bench has it.
        *(["batch.try_first=false"] if scale.sequences else []),
        *(f"checkpoint.every_steps={scale.saved}", "checkpoint.keep=1", "watch.wandb=disabled"),
        *(f"validation.every_steps={ENDLESS}", "validation.sequences=4"),
    ]
    before: dict[int, TrainRecord] = {}
    launches: list[float] = []

    def launch(name: str) -> Command:
        since = time.monotonic()
        launched = command("train", arguments, name)
        launched.wait_for("its first step", lambda: bool(records(run)))
        launches.append(time.monotonic() - since)
        return launched

    def saved() -> int:
        """The step of the newest checkpoint."""
        names = complete(Place.of(run.checkpoints))
        return int(names[-1].removeprefix("step_").split(".")[0]) if names else 0

    while not before or saved() >= max(before):  # it has saved again before it could be killed
        killed = launch("killed")
        killed.wait_for(
            f"a checkpoint and {scale.repeated} steps after it",
            lambda: 0 < saved() <= max(records(run), default=0) - scale.repeated,
        )
        killed.kill()
        before |= records(run)
        # So that what the next one writes is told from it.
        run.metrics.rename(directory / "before.jsonl")
    start = saved()
    last = min(start + scale.repeated, max(before))
    resumed = launch("resumed")
    resumed.wait_for(f"step {last}", lambda: max(records(run), default=0) >= last)
    resumed.send(signal.SIGUSR1)
    resumed.finish(ExitStatus.SAVED, f"SIGUSR1, sent after step {max(records(run))}")
    after = records(run)
    again = range(start + 1, last + 1)
    off = max(abs(before[step].loss - after[step].loss) / before[step].loss for step in again)
    spoken = [str(run), "--prompt", PROMPT, "--max-new-tokens", "16"]
    speaker = command("tools.generate", spoken, "spoken")
    speaker.finish(ExitStatus.COMPLETE)
    # While a save goes on behind, steps are slower.
    timed = [record.tokens_per_second for step, record in before.items() if step <= scale.saved]
    return Found(
        tokens_per_second=statistics.median(timed[WARM:]),
        resumed_equal=off <= EQUAL,
        launch_seconds=[launches[0], launches[-1]],
        remarks=[
            f"a run was killed after step {max(before)} and gone on with from step {start}; its "
            f"losses up to step {last} came again, {off:.1e} off at most",
            f"SIGUSR1 saved step {max(after)} and ended it with status {int(ExitStatus.SAVED)}",
            f"tools.generate went on: {speaker.said().strip().splitlines()[-1][:200]}",
            f"all of it took {time.monotonic() - started:.0f} s",
        ],
    )


def records(run: RunDirectory) -> dict[int, TrainRecord]:
    """The records of all steps, by step; none while there is no whole one."""
    try:
        return {record.step: record for record in read_metrics(run.metrics).train}
    except (UserError, OSError):
        return {}


def made_corpus(files: Sequence[str], directory: Path, command: "Callable[..., Command]") -> str:
    """A corpus of this project's own text, for a model of any vocabulary."""
    vocabulary = load(RunConfig, list(files)).model.decoder.vocabulary
    texts = [path for text in TEXTS for path in sorted([*Path(text).glob("*.md"), Path(text)])]
    texts = [path for path in texts if path.is_file()]
    learnt = CorpusTokenizer.train(
        (path.read_text() for path in texts), vocabulary=min(vocabulary, LEARNT_ENTRIES)
    )
    tokenizer: dict[str, Any] = json.loads(learnt.content)
    entries = tokenizer["model"]["vocab"]
    entries |= {f"<unused {number}>": number for number in range(len(entries), vocabulary)}
    path = directory / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tokenizer))
    corpus = directory / "corpus"
    arguments = ["build", *map(str, texts), str(corpus), "--tokenizer", str(path), "--workers=1"]
    command("tools.corpus", [*arguments, "--validation=0.1"], "corpus").finish(0)
    return str(corpus)


class Command:
    """`python -m …`, started, which nobody waits for beyond a deadline.

    Args:
        context: makes the process.
        directory: for what it says.
        deadline: by `time.monotonic()`.
        module: that is run.
        arguments: of it.
        name: of the file for what it says, and in errors.
    """

    def __init__(
        self,
        context: BaseContext,
        directory: Path,
        deadline: float,
        module: str,
        arguments: Sequence[str],
        name: str,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._output = directory / f"{name}.log"
        self._output.unlink(missing_ok=True)
        self._name = f"python -m {module} ({name})"
        self._deadline = deadline
        process = partial(cast(Any, context).Process, target=run_module, daemon=True)
        self._process = process(args=(module, list(arguments), self._output, dict(os.environ)))
        self._process.start()

    def said(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def wait_for(self, what: str, happened: Callable[[], bool]) -> None:
        """Until something has happened while the command runs."""
        while not happened():
            if self._process.exitcode is not None:
                raise self._failure(f"ended with status {self._process.exitcode} before {what}")
            self._require_time(f"did not come to {what} in time")
            time.sleep(POLL_SECONDS)

    def finish(self, status: int, asked: str = "its start") -> None:
        """Until it ends, with this status, after what has asked for that."""
        self._process.join(max(0.0, self._deadline - time.monotonic()))
        if self._process.exitcode is None:
            self._require_time(f"did not end in time after {asked}")
        if self._process.exitcode != status:
            raise self._failure(f"ended with status {self._process.exitcode}, not {int(status)}")

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.join()

    def _require_time(self, what: str) -> None:
        if time.monotonic() > self._deadline:
            self.kill()
            raise self._failure(what)

    def _failure(self, what: str) -> RealRunError:
        said = self.said()[-3000:]
        return RealRunError(f"{self._name} {what}; it said:\n{said}")
