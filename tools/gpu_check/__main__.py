"""`python -m tools.gpu_check`: minutes on one GPU that show whether all is right, and how fast.

Rates of the device; parity with losses computed on a CPU; the 1.3B with all levers on and off; a
real run that is killed, gone on with and stopped; each lever off against all on. What is found goes
to out/gpu.json and out/gpu.html as it comes. What is measured runs in another process: a part that
fails, or hangs, is a row, and the others stand. Without CUDA a tiny model tries the plumbing.
"""

from train.preemption import quiet_until_asked

if __name__ == "__main__":
    quiet_until_asked()  # what is imported next takes seconds

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from tools.arguments import Parser, output_file, real
from tools.command import command_line
from tools.gpu_check import levers, parity, speed
from tools.gpu_check.real_run import RealRunError, Scale, real_run
from tools.gpu_check.report import Report
from tools.gpu_check.speed import Row, Shape
from tools.ranks import START_SECONDS, RankPool, RanksFailed, changed_environment
from train.storage.place import Place
from train.watch.metrics import GIB_BYTES

PARTS: Final = ("rates", "parity", "speed", "run", "ablation", "compiled", "modes")
USUAL_CORPUS: Final = "data/pretrain"

SEQUENCES: Final = ((120, 16), (70, 12), (40, 4))
"""Sequences of the 1.3B that fit, by GiB of the device's memory; on smaller ones, one."""
ABLATED_SEQUENCES: Final = 8
HANGS: Final = "did not answer"
"""In the first line of what `tools.ranks` says of such."""
SEVERAL: Final = 4
"""Microbatches of a step in which its fixed part is shared."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to look.

    Attributes:
        minutes: that all may take.
        saves: whether the real run is of the 1.3B, whose checkpoint has 20 GB, or a tiny one.
        is_tiny: whether all is of the tiny model.
        steps: that are timed.
        patience: times the expected seconds after which a part hangs.
    """

    minutes: float
    saves: bool
    is_tiny: bool = False
    steps: int = 10
    patience: float = 3


FULL: Final = Effort(minutes=8, saves=True)
QUICK: Final = Effort(minutes=3, saves=False)
PLUMBING: Final = Effort(minutes=30, saves=False, is_tiny=True, steps=2, patience=10)

REAL: Final = Scale(saved=12, repeated=8, sequences=16, disk_bytes=45 * 10**9)
TINY_REAL: Final = Scale(saved=30, repeated=4, sequences=4)


@command_line
def main(arguments: Sequence[str] | None = None, *, context: BaseContext | None = None) -> int:
    """Run the parts that fit the time; 1 if one failed, or a number is not what it should be.

    Args:
        arguments: of the command line.
        context: makes the processes; by default each starts from nothing.
    """
    parser = Parser(prog="python -m tools.gpu_check", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="3 minutes: the real run is of a tiny model"
    )
    parser.add_argument("--minutes", type=real(above=0), help="that it may take (default 8, or 3)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help=", ".join(PARTS))  # fmt: skip
    parser.add_argument("--corpus", help="that the 1.3B reads, of its vocabulary (default "
                        f"{USUAL_CORPUS}, or else one made of this project's texts)")  # fmt: skip
    parser.add_argument("--out", type=output_file, default="out/gpu.json")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    effort = QUICK if options.quick else FULL
    if not torch.cuda.is_available():
        effort = PLUMBING
        lacking = ", ".join(
            f"{each.name} ({why})" for each in levers.LEVERS if (why := each.lacks())
        )
        console.print(
            "no CUDA device: a tiny model tries the plumbing, and its speed means nothing; left "
            f"out are the 1.3B and levers that cannot be had here: {lacking or 'none'}"
        )
    if options.minutes is not None:
        effort = replace(effort, minutes=options.minutes)
    corpus = options.corpus
    if corpus is None and Place.parse(USUAL_CORPUS).find() is not None and not effort.is_tiny:
        corpus = USUAL_CORPUS
    report = Report(options.out)
    return check(effort, report, console, parts=options.only, corpus=corpus, context=context)


def check(
    effort: Effort,
    report: Report,
    console: Console,
    *,
    parts: Iterable[str] = PARTS,
    corpus: str | None = None,
    context: BaseContext | None = None,
) -> int:
    """Run parts, write what they find as it comes; the exit status.

    Args:
        effort: how long to look.
        report: what is found.
        console: where is said what is done.
        parts: which of `PARTS`.
        corpus: of the real run; None to make one.
        context: makes the processes; by default each starts from nothing.
    """
    with closing(Check(effort, report, console, corpus=corpus, context=context)) as running:
        for part in PARTS:
            if part in parts:
                getattr(running, f"_{part}")()
    console.print(
        f"{running.seconds / 60:.1f} minutes; {report.out} holds the numbers, {report.page} shows "
        "them"
    )
    is_right = report.found["resumed_equal"] is not False
    is_right = is_right and all(row["is_equal"] for row in report.found["parity"])
    return 0 if is_right and not report.failures else 1


class Check:
    """The parts, which share one budget of time."""

    def __init__(
        self,
        effort: Effort,
        report: Report,
        console: Console,
        *,
        corpus: str | None,
        context: BaseContext | None,
    ) -> None:
        self._effort, self._report, self._console = effort, report, console
        self._corpus, self._context = corpus, context
        self._started = time.monotonic()
        self._levers = [lever.name for lever in levers.usable()]
        self._memory_bytes = 0
        self._sequences = 2 if effort.is_tiny else 1
        self._pool = RankPool(1, threads=torch.get_num_threads(), cuda=True, context=context)

    def close(self) -> None:
        """Ends the process that measures."""
        self._pool.close()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    def _rates(self) -> None:
        found = self._alone("rates", 30, speed.machine, self._effort.is_tiny)
        if found is not None:
            self._report.found |= found[0]
            self._memory_bytes = found[1]
        gib = self._memory_bytes / GIB_BYTES
        if not self._effort.is_tiny:
            self._sequences = next((count for least, count in SEQUENCES if gib >= least), 1)
        self._report.write()

    def _parity(self) -> None:
        compiled = [] if "compiled blocks" not in self._levers else list(parity.compiled_ways())
        ways = [*parity.ways(is_brief=self._effort.is_tiny), *compiled[:1]]
        self._compare("parity", 50, ways)

    def _compiled(self) -> None:
        if "compiled blocks" in self._levers:
            self._compare("parity of compiled blocks", 80, list(parity.compiled_ways())[1:])

    def _compare(self, name: str, expected_seconds: float, ways: list[parity.Way]) -> None:
        rows = self._alone(name, expected_seconds, parity.rows, ways)
        self._report.found["parity"] += rows or []
        self._report.write()

    def _speed(self) -> None:
        once = Shape(sequences=self._sequences, steps=self._effort.steps)
        several = replace(once, microbatches=SEVERAL, steps=min(4, once.steps))
        everything = self._levers
        shapes = [once, several] if self._effort.saves or self._effort.is_tiny else [once]
        self._measure("all on", shapes, expected_seconds=60, with_parts=True)
        self._measure("all off", shapes, expected_seconds=40, off=everything)

    def _run(self) -> None:
        is_tiny = not self._effort.saves
        scale = TINY_REAL if is_tiny else replace(REAL, sequences=self._sequences)
        expected = 75 if is_tiny else 200
        if not self._fits("run", expected):
            return
        self._report.write()  # which makes the directory
        if (free := shutil.disk_usage(self._report.out.parent).free) < scale.disk_bytes:
            lacking = f"{scale.disk_bytes / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} free"
            self._note("run", None, f"not run: {lacking}")
            return
        self._pool.close()  # the run needs all of the device's memory
        with tempfile.TemporaryDirectory(prefix="gpu-check-", dir=self._report.out.parent) as made:
            try:
                found = real_run(
                    scale,
                    directory=Path(made),
                    corpus=None if is_tiny else self._corpus,
                    is_tiny=is_tiny,
                    timeout_seconds=min(self._effort.patience / 2 * expected, self._left),
                    context=self._context,
                )
            except RealRunError as error:
                self._failed("run", str(error))
                return
        self._report.found["train_tokens_per_second"] = found.tokens_per_second
        self._report.found["resumed_equal"] = found.resumed_equal
        self._report.remarks += found.remarks
        self._report.write()

    def _ablation(self) -> None:
        shapes = [
            Shape(sequences=min(ABLATED_SEQUENCES, self._sequences), steps=self._effort.steps)
        ]
        self._measure("ablation: all on", shapes, expected_seconds=25)
        for name in self._levers:
            self._measure("ablation", shapes, expected_seconds=20, off=[name])

    def _modes(self) -> None:
        once = Shape(sequences=self._sequences, steps=self._effort.steps)
        for mode in list(speed.MODES)[1:]:
            self._measure(f"all on, {mode}", [once], expected_seconds=40, mode=mode)

    def _measure(
        self,
        case: str,
        shapes: Sequence[Shape],
        *,
        expected_seconds: float,
        mode: str = next(iter(speed.MODES)),
        off: Sequence[str] = (),
        with_parts: bool = False,
    ) -> None:
        """Rows of speed, or one that says why there are none."""
        tflops = self._report.found["matmul_tflops"]
        named = f"{case} ({', '.join(off)} off)" if off else case
        rows = self._alone(
            named,
            expected_seconds,
            speed.rows,
            case,
            list(shapes),
            mode,
            list(off),
            self._effort.is_tiny,
            None if tflops is None else tflops * 1e12,
            with_parts,
            row=Row(case=case, levers_off=list(off), sequences=shapes[0].sequences,
                    microbatches=shapes[0].microbatches),
            environment=levers.environment(off),
        )  # fmt: skip
        if rows is not None:
            self._report.found["rows"] += rows[0]
            self._report.remarks += rows[1]
        self._report.write()

    def _alone(
        self,
        name: str,
        expected_seconds: float,
        work: Callable[..., Any],
        *arguments: Any,
        row: Row | None = None,
        environment: dict[str, str | None] | None = None,
    ) -> Any:
        """What work returns in another process; None if it did not.

        The process is kept for the next one, unless it failed or its variables are its own.
        """
        row = row or Row(case=name)
        if not self._fits(name, expected_seconds, row):
            return None
        limit = max(5.0, min(self._effort.patience * expected_seconds, self._left - START_SECONDS))
        started = time.monotonic()
        try:
            if environment:
                self._pool.close()  # two of them would need the device's memory twice
            with changed_environment(environment or {}):
                [found] = self._pool.run(work, *arguments, timeout_seconds=limit)
        except RanksFailed as error:
            self._failed(name, str(error), row)
            return None
        finally:
            if environment:
                self._pool.close()
        self._console.print(f"{name}: {time.monotonic() - started:.0f} s")
        return found

    @property
    def _left(self) -> float:
        return 60 * self._effort.minutes - self.seconds

    def _fits(self, name: str, expected_seconds: float, row: Row | None = None) -> bool:
        """Whether a part fits the time that is left; one that does not is listed as not run."""
        if expected_seconds > self._left and not self._effort.is_tiny:
            self._note(name, row, f"not run: {max(0.0, self._left):.0f} s are left")
            return False
        self._console.print(f"{name} ...")
        return True

    def _failed(self, name: str, why: str, row: Row | None = None) -> None:
        self._report.failures.append((name, why))
        sys.stderr.write(f"{name}: {why}\n")
        first, *_, last = [line.strip() for line in f"{why}\n{why}".splitlines() if line.strip()]
        # Of a traceback the last line tells; of one that hangs, the first.
        self._note(name, row, f"failed: {(first if HANGS in first else last)[:200]}")

    def _note(self, name: str, row: Row | None, what: str) -> None:
        row = row or Row(case=name)
        self._console.print(f"{name}: {what}", markup=False)
        self._report.found["rows"].append(asdict(replace(row, case=f"{row.case}, {what}")))
        self._report.write()


if __name__ == "__main__":
    sys.exit(main())
