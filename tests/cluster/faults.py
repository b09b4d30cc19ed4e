"""What becomes of jobs on a real cluster to which something happens.

`python -m tests.cluster.faults` (or `make faults-cluster`) writes out/faults-cluster.json: case,
outcome, expected, verdict, expected_verdict, seconds_to_next_new_step, steps_lost, loss_equal.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model import torchvision_free

torchvision_free.install()

from tests.cluster import plays  # noqa: E402  # after install()
from tests.cluster.lab import Lab, losses_of  # noqa: E402
from tests.cluster.plays import Played  # noqa: E402
from tools.arguments import Parser, output_file  # noqa: E402
from tools.command import command_line  # noqa: E402
from tools.ledger import check_run  # noqa: E402

GOES_ON = "ends with the losses of an undisturbed run"
ENDS = "ends, and says why"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault, and what must come of it.

    Attributes:
        name: of the case.
        play: makes the fault and runs.
        expected: `GOES_ON` or `ENDS`.
        verdict: kind and rank of the first attempt's; None where nobody lives to give one.
        says: what the job's output holds.
    """

    name: str
    play: Callable[[Lab, str], Played]
    expected: str = GOES_ON
    verdict: tuple[str, int | None] | None
    says: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table."""

    case: str
    outcome: str
    expected: str
    verdict: str | None
    expected_verdict: str | None
    seconds_to_next_new_step: float | None
    steps_lost: int
    loss_equal: bool | None


CASES: Sequence[Case] = (
    Case(name="rank killed", play=plays.rank_killed, verdict=("dead", 1)),
    Case(name="rank stopped", play=plays.rank_stopped, verdict=("stopped", 1)),
    Case(name="keeper killed", play=plays.keeper_killed, verdict=None),
    Case(name="warned", play=plays.warned, verdict=("stopped by a signal", None)),
    Case(name="time limit", play=plays.time_limit, verdict=("stopped by a signal", None)),
    Case(name="preempted", play=plays.preempted, verdict=("stopped by a signal", None)),
    Case(name="requeued", play=plays.requeued, verdict=None),
    Case(name="cancelled", play=plays.cancelled, verdict=None),
    Case(name="killed while saving", play=plays.killed_while_saving, verdict=("dead", 0)),
    Case(name="killed while restoring", play=plays.killed_while_restoring, verdict=("dead", None)),
    Case(
        name="not finite by hardware",
        play=plays.struck,
        expected=ENDS,
        verdict=("hardware", 1),
        says="step 30",
    ),
    Case(name="not finite by data", play=plays.broken, verdict=("complete", None)),
    Case(name="spike", play=plays.spiking, verdict=("complete", None)),
    Case(name="store frozen", play=plays.store_frozen, verdict=("complete", None)),
    Case(
        name="disk full",
        play=plays.disk_full,
        expected=ENDS,
        verdict=("user error", None),
        says="No space left on device",
    ),
    Case(name="submitted twice", play=plays.twice, verdict=("complete", None)),
)


def play(case: Case, lab: Lab) -> Result:
    """Play a case to its end, and judge it."""
    played = case.play(lab, case.name.replace(" ", "-"))
    attempts = played.job.attempts
    first = attempts[0].verdict if attempts else None
    equal: bool | None = None
    outcome = f"{played.state}: {played.job.output[-1500:]}"
    if played.state == "COMPLETED":
        os.environ.update(played.environment)
        equal = losses_of(played.job.directory) == lab.told(*played.told)
        faults = check_run(played.job.directory, corpus=str(lab.corpus)).faults
        outcome = "; ".join([GOES_ON if equal else "ends with other losses", *map(str, faults)])
    elif played.state == "FAILED" and case.says and case.says in played.job.output:
        outcome = ENDS
    return Result(
        case=case.name,
        outcome=outcome,
        expected=case.expected,
        verdict=None if first is None else _told(first.kind, first.rank),
        expected_verdict=None if case.verdict is None else _told(*case.verdict),
        seconds_to_next_new_step=None if played.seconds is None else round(played.seconds, 1),
        steps_lost=played.steps_lost,
        loss_equal=equal,
    )


def _told(kind: str, rank: int | None) -> str:
    return kind if rank is None else f"{kind}, rank {rank}"


def fault_of(result: Result) -> str | None:
    """What is wrong with a result; None if nothing is."""
    if result.outcome != result.expected:
        return f"{result.case}: {result.outcome}"
    expected = result.expected_verdict
    if expected is not None and not (result.verdict or "").startswith(expected):
        return f"{result.case}: the verdict was {result.verdict}, not {expected}"
    return None


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Play the cases; 1 if one ends otherwise than expected."""
    parser = Parser(prog="python -m tests.cluster.faults", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE")
    parser.add_argument("--out", type=output_file, default="out/faults-cluster.json")
    options = parser.parse_args(arguments)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as directory, Lab(Path(directory)) as lab:
        for case in CASES:
            if case.name in options.only:
                results.append(result := play(case, lab))
                sys.stdout.write(
                    f"{result.case:24} {result.seconds_to_next_new_step or 0:6.1f} s  "
                    f"{result.verdict}: {result.outcome[:200]}\n"
                )
                sys.stdout.flush()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    faults = [fault for result in results if (fault := fault_of(result)) is not None]
    sys.stdout.write("\n".join(faults) + "\n" if faults else f"{len(results)} cases as expected\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
