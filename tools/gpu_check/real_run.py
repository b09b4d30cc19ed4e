"""A real run: `python -m train` is killed after a save, goes on, is stopped; then a sample."""

import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Final

from tools.bench.gpu import METALM
from tools.corpus.tokenizer import CorpusTokenizer
from tools.gpu_check.parity import TINY
from tools.ranks import run_module
from train.checkpoint.directory import complete
from train.config import RunConfig
from train.config_files import load
from train.data.store.index import INDEX_NAME
from train.errors import UserError
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.watch.metrics import TrainRecord, read_metrics

TEXTS: Final = ("README.md", "docs")
"""What a corpus is made of where none is named: it is always at hand, and need not be good."""
LEARNT_ENTRIES: Final = 500
"""Of a tokenizer made of so little text; the others of its vocabulary are never used."""

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
        sequences: of a step, one microbatch.
        disk_bytes: that two checkpoints may take.
    """

    saved: int
    repeated: int
    sequences: int
    disk_bytes: int = 0


class RealRunError(Exception):
    """A command of the run did not end as it should."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the run showed.

    Attributes:
        tokens_per_second: median over the steps before the first save.
        resumed_equal: whether losses computed again after the kill are those of before.
        remarks: what was seen, in sentences.
    """

    tokens_per_second: float
    resumed_equal: bool
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
    commands = Commands(
        context or multiprocessing.get_context("spawn"),
        directory,
        deadline=started + timeout_seconds,
    )
    files = [str(TINY)] if is_tiny else list(METALM)
    corpus = corpus or made_corpus(files, commands)
    run = RunDirectory(directory / "run")
    arguments = [
        *files,
        f"data.corpus={corpus}",
        f"run_directory={run}",
        *("steps=1000", "optim.warmup_steps=10", "samples.prompts=[]", "watch.wandb=disabled"),
        *(f"batch.sequences={scale.sequences}", f"batch.micro_sequences={scale.sequences}"),
        *(f"checkpoint.every_steps={scale.saved}", "checkpoint.keep=1"),
        # With room for the largest spans it might not fit, as the bench has it.
        "batch.try_first=false",
        *("validation.every_steps=1000", f"validation.sequences={scale.sequences}"),
    ]

    def saved() -> int:
        """The step of the newest checkpoint."""
        names = complete(Place.of(run.checkpoints))
        return int(names[-1].removeprefix("step_").split(".")[0]) if names else 0

    while True:
        first = commands.start("train", arguments, "first")
        first.wait_for(lambda: 0 < saved() <= done(run) - scale.repeated)
        first.kill()
        before, start = records(run), saved()
        # So that what the next one writes is told from it.
        run.metrics.rename(directory / "first.jsonl")
        if start < max(before):
            break
        # It has saved again before it could be killed: it goes on, to be killed in time.
    last = min(start + scale.repeated, max(before))
    second = commands.start("train", arguments, "second")
    second.wait_for(lambda: done(run) >= last)
    second.send(signal.SIGUSR1)
    second.finish(ExitStatus.SAVED)
    after = records(run)
    again = range(start + 1, last + 1)
    off = max(abs(before[step].loss - after[step].loss) / before[step].loss for step in again)
    spoken = [str(run), "--prompt", PROMPT, "--max-new-tokens", "16"]
    speaker = commands.start("tools.generate", spoken, "generate")
    speaker.finish(ExitStatus.COMPLETE)
    # While a save goes on behind, steps are slower.
    timed = [record.tokens_per_second for step, record in before.items() if step <= start]
    return Found(
        tokens_per_second=statistics.median(timed[WARM:]),
        resumed_equal=off <= EQUAL,
        remarks=[
            f"a run was killed after step {max(before)} and gone on with from step {start}; its "
            f"losses up to step {last} came again, {off:.1e} off at most",
            f"SIGUSR1 saved step {max(after)} and ended it with status {int(ExitStatus.SAVED)}",
            f"tools.generate went on: {speaker.said().strip().splitlines()[-1][:200]}",
            f"all of it took {time.monotonic() - started:.0f} s",
        ],
    )


def done(run: RunDirectory) -> int:
    """Steps that are recorded."""
    return max(records(run), default=0)


def records(run: RunDirectory) -> dict[int, TrainRecord]:
    """The records of all steps, by step; none while there is no whole one."""
    try:
        return {record.step: record for record in read_metrics(run.metrics).train}
    except (UserError, OSError):
        return {}


def made_corpus(files: Sequence[str], commands: "Commands") -> str:
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
    path = commands.directory / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tokenizer))
    corpus = commands.directory / "corpus"
    arguments = ["build", *map(str, texts), str(corpus), "--tokenizer", str(path), "--workers=1"]
    commands.start("tools.corpus", [*arguments, "--validation=0.1"], "corpus").finish(0)
    assert (corpus / "train" / INDEX_NAME).exists()
    return str(corpus)


class Commands:
    """Starts `python -m …`, and waits no longer than until the deadline.

    Args:
        context: makes the processes.
        directory: for what they say.
        deadline: by `time.monotonic()`.
    """

    def __init__(self, context: BaseContext, directory: Path, *, deadline: float) -> None:
        self.directory = directory
        self.deadline = deadline
        self._context: Any = context

    def start(self, module: str, arguments: Sequence[str], name: str) -> "Command":
        """Starts a module with arguments; what it says goes to a file of this name."""
        self.directory.mkdir(parents=True, exist_ok=True)
        output = self.directory / f"{name}.log"
        output.unlink(missing_ok=True)
        process = self._context.Process(
            target=run_module, args=(module, list(arguments), output, dict(os.environ)), daemon=True
        )
        process.start()
        return Command(process, output, f"python -m {module}", self.deadline)


class Command:
    """A command that was started."""

    def __init__(self, process: Any, output: Path, name: str, deadline: float) -> None:
        self._process = process
        self._output = output
        self._name = name
        self._deadline = deadline

    def said(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Until something has happened while the command runs."""
        while not happened():
            if self._process.exitcode is not None:
                raise self._failure(f"ended with status {self._process.exitcode} too early")
            if time.monotonic() > self._deadline:
                self.kill()
                raise self._failure("took too long")
            time.sleep(POLL_SECONDS)

    def finish(self, status: int) -> None:
        """Until it ends, with this status."""
        self._process.join(max(0.0, self._deadline - time.monotonic()))
        if self._process.exitcode is None:
            self.kill()
            raise self._failure("took too long")
        if self._process.exitcode != status:
            raise self._failure(f"ended with status {self._process.exitcode}, not {int(status)}")

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.join()

    def _failure(self, what: str) -> RealRunError:
        return RealRunError(f"{self._name} {what}:\n{self.said()[-3000:]}")
