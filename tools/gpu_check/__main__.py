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
from tools.gpu_check.report import TABLES, Report, cells
from tools.gpu_check.speed import Case, Row
from tools.ranks import START_SECONDS, RankPool, RanksFailed, changed_environment
from train.storage.place import Place

PARTS: Final = ("rates", "parity", "speed", "run", "ablation", "modes", "compiled")
USUAL_CORPUS: Final = "data/pretrain"

TINY_SEQUENCES: Final = 2
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

REAL: Final = Scale(saved=12, repeated=8, sequences=None, disk_bytes=45 * 10**9)
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
    report = Report(options.out, is_tiny=effort.is_tiny)
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
    for row in [] if effort.is_tiny else report.found["targets"]:
        told = zip(TABLES["targets"][1], cells(row, TABLES["targets"][1]), strict=True)
        console.print(", ".join(f"{name} {said}" for name, said in told), markup=False)
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
        self._pool = RankPool(1, threads=torch.get_num_threads(), cuda=True, context=context)

    def close(self) -> None:
        """Ends the process that measures."""
        self._pool.close()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    def _rates(self) -> None:
        self._report.found |= self._alone("rates", 30, speed.machine, self._effort.is_tiny) or {}
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
        is_long = self._effort.saves or self._effort.is_tiny
        microbatches = (1, SEVERAL) if is_long else (1,)
        for name, off, seconds in (("all on", [], 60), ("all off", self._levers, 40)):
            case = Case(name=name, off=off, microbatches=microbatches, with_parts=not off)
            self._measure(case, expected_seconds=seconds)

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
                self._failed("run", str(error), told=str(error).splitlines()[0])
                return
        if not is_tiny:  # else it is another model's
            self._report.launch_seconds = found.launch_seconds
        self._report.found["train_tokens_per_second"] = found.tokens_per_second
        self._report.found["resumed_equal"] = found.resumed_equal
        self._report.remarks += found.remarks
        self._report.write()

    def _ablation(self) -> None:
        self._measure(
            Case(name="ablation: all on", sequences=ABLATED_SEQUENCES), expected_seconds=25
        )
        for name in self._levers:
            case = Case(name="ablation", off=[name], sequences=ABLATED_SEQUENCES)
            self._measure(case, expected_seconds=20)

    def _modes(self) -> None:
        for mode in list(speed.MODES)[1:]:
            case = Case(name=f"all on, {mode}", mode=mode, sequences=self._sequences)
            if mode == "causal":
                case = replace(case, microbatches=(1, SEVERAL))
            self._measure(case, expected_seconds=speed.MODE_SECONDS.get(mode, 40))

    @property
    def _sequences(self) -> int | None:
        """Of a microbatch with all levers on, if that was measured."""
        rows = self._report.found["rows"]
        return next((r["sequences"] for r in rows if r["case"] == "all on" and r["ms"]), None)

    def _measure(self, case: Case, *, expected_seconds: float) -> None:
        """Rows of speed, or one that says why there are none."""
        case = replace(case, steps=self._effort.steps)
        if self._effort.is_tiny:
            case = replace(case, sequences=TINY_SEQUENCES)
        tflops = self._report.found["matmul_tflops"]
        found = self._alone(
            case.name + (f" ({', '.join(case.off)} off)" if case.off else ""),
            expected_seconds,
            speed.rows,
            case,
            self._effort.is_tiny,
            None if tflops is None else tflops * 1e12,
            row=case.row,
            environment=levers.environment(case.off),
        )
        if found is not None:
            self._report.found["rows"] += found[0]
            self._report.remarks += found[1]
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
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # Of a traceback the last line tells; of one that hangs, the first.
            told = lines[0] if HANGS in lines[0] else lines[-1]
            self._failed(name, str(error), row, told=told)
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

    def _failed(self, name: str, why: str, row: Row | None = None, *, told: str) -> None:
        self._report.failures.append((name, why))
        sys.stderr.write(f"{name}: {why}\n")
        self._note(name, row, f"failed: {told[:200]}")

    def _note(self, name: str, row: Row | None, what: str) -> None:
        row = row or Row(case=name)
        self._console.print(f"{name}: {what}", markup=False)
        self._report.found["rows"].append(asdict(replace(row, case=f"{row.case}, {what}")))
        self._report.write()


if __name__ == "__main__":
    sys.exit(main())
