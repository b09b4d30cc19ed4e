"""What becomes of jobs on a real cluster to which something happens.

`python -m tests.cluster.faults` (or `make faults-cluster`) writes out/faults-cluster.json: case,
outcome, expected, verdict, expected_verdict, seconds_to_next_new_step, steps_lost, loss_equal.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model import torchvision_free

torchvision_free.install()

from tests.cluster.lab import Lab  # noqa: E402  # after install()
from tests.cluster.plays import jobs, nodes, processes, stores, wrong_numbers  # noqa: E402
from tests.cluster.plays.played import Played  # noqa: E402
from tests.train.fault_lab import losses_of  # noqa: E402
from tools.arguments import Parser, output_file  # noqa: E402
from tools.command import command_line, write_json  # noqa: E402
from tools.ledger import check_run  # noqa: E402
from tools.ranks import changed_environment  # noqa: E402
from train.errors import UserError  # noqa: E402

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
        says: what the output of its last job holds.
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
    Case(name="rank killed", play=processes.rank_killed, verdict=("dead", 1)),
    Case(name="killed while importing", play=processes.killed_while_importing, verdict=("dead", 1)),
    Case(name="rank stopped", play=processes.rank_stopped, verdict=("stopped", 1)),
    Case(name="keeper killed", play=processes.keeper_killed, verdict=None),
    Case(
        name="out of memory",
        play=processes.without_memory,
        verdict=("out of memory", 1),
        says="a rank lacks memory",
    ),
    Case(name="warned", play=jobs.warned, verdict=("stopped by a signal", None)),
    Case(name="time limit", play=jobs.time_limit, verdict=("stopped by a signal", None)),
    Case(name="preempted", play=jobs.preempted, verdict=("stopped by a signal", None)),
    Case(name="requeued", play=jobs.requeued, verdict=None),
    Case(name="cancelled", play=jobs.cancelled, verdict=None),
    Case(name="Ctrl-C", play=jobs.interrupted, verdict=("stopped by a signal", None)),
    Case(name="submitted twice", play=jobs.twice, verdict=("complete", None)),
    Case(name="killed while saving", play=processes.killed_while_saving, verdict=("dead", 0)),
    Case(
        name="killed while restoring",
        play=processes.killed_while_restoring,
        verdict=("dead", None),
    ),
    Case(name="store frozen", play=stores.store_frozen, verdict=("complete", None)),
    Case(
        name="disk full",
        play=stores.disk_full,
        expected=ENDS,
        verdict=("user error", None),
        says="No space left on device",
    ),
    Case(name="lease lost", play=stores.lease_lost, verdict=("user error", None)),
    Case(
        name="not finite by hardware",
        play=wrong_numbers.struck,
        expected=ENDS,
        verdict=("hardware", 1),
        says="step 30",
    ),
    Case(
        name="not finite by data",
        play=wrong_numbers.broken,
        verdict=("complete", None),
        says="step 30: the loss is not finite, nor is it when it is computed again",
    ),
    Case(name="spike", play=wrong_numbers.spiking, verdict=("complete", None)),
    Case(name="poisoned sample", play=wrong_numbers.poisoned, verdict=("complete", None)),
    Case(name="unlike precision", play=wrong_numbers.unlike_precision, verdict=None),
    Case(
        name="slow node at the try-out",
        play=nodes.slow_at_the_try_out,
        verdict=("complete", None),
        says="node2 has 0.",
    ),
    Case(name="slow rank", play=nodes.slow_rank, verdict=("slow", 1)),
    Case(name="node killed, a spare one", play=nodes.killed_with_a_spare, verdict=("dead", 1)),
    Case(name="node killed, none spare", play=nodes.killed_without_a_spare, verdict=("dead", 1)),
)


def _play(case: Case, lab: Lab) -> Result:
    played = case.play(lab, case.name.replace(" ", "-"))
    attempts = played.job.attempts
    first = attempts[0].verdict if attempts else None
    equal: bool | None = None
    outcome = f"{played.state}: {played.job.output[-1500:]}"
    is_said = case.says in played.job.output
    if played.state == "COMPLETED":
        found, told = losses_of(played.job.directory), lab.told(*played.told)
        equal = are_equal(found, told, relative=played.relative)
        with changed_environment(played.environment):
            faults = check_run(played.job.directory, corpus=str(lab.corpus)).faults
        faults = [*map(str, faults), *([] if is_said else [f"nowhere says {case.says}"])]
        outcome = "; ".join([GOES_ON if equal else "ends with other losses", *faults])
    elif played.state == "FAILED" and case.says and is_said:
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


def play(case: Case, lab: Lab) -> Result:
    """Play a case to its end, and judge it; one that goes wrong leaves the lab to the next."""
    try:
        return _play(case, lab)
    except (AssertionError, UserError) as error:
        lab.clear()
        told = f"{type(error).__name__}: {error}"
        return Result(
            case=case.name,
            # What was waited for stands first, and what the job said last.
            outcome=told if len(told) <= 3000 else f"{told[:500]}\n…\n{told[-2500:]}",
            expected=case.expected,
            verdict=None,
            expected_verdict=None if case.verdict is None else _told(*case.verdict),
            seconds_to_next_new_step=None,
            steps_lost=0,
            loss_equal=None,
        )


def are_equal(
    found: Sequence[tuple[int, float]], told: Sequence[tuple[int, float]], *, relative: float
) -> bool:
    """Whether losses are of the same steps, and differ by no more than that."""
    return [step for step, _ in found] == [step for step, _ in told] and all(
        math.isclose(one, other, rel_tol=relative)
        for (_, one), (_, other) in zip(found, told, strict=True)
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
    write_json(options.out, [asdict(result) for result in results])
    faults = [fault for result in results if (fault := fault_of(result)) is not None]
    sys.stdout.write("\n".join(faults) + "\n" if faults else f"{len(results)} cases as expected\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
