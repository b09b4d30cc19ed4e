"""Keep a run going: start its ranks, watch them, start them again where that helps.

    python -m tools.keep --ranks 2 train configs/experiment/first_light.yaml
    python -m tools.keep --launcher srun train CONFIG.yaml    # in a job: slurm/pretrain.sh does it

Each start is an attempt; `attempts.jsonl` in the run's directory says how each ended and why. It
ends with the exit status of the run, or with 70 where starting again would not help
(docs/exit-status.md).
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence

from tools.arguments import Parser, real, whole
from tools.command import command_line
from tools.keep.agents import AGENTS
from tools.keep.asked import Asked
from tools.keep.attempt import Attempt, Attempts, Verdict
from tools.keep.deadline import Deadlines
from tools.keep.deciding import decide
from tools.keep.judging import judge
from tools.keep.launching import SPEAKS, requeue, require_allocation
from tools.keep.looking import out_of_memory_kills
from tools.keep.starting import Starter
from tools.keep.watching import Watch
from train.exit_status import ExitStatus

KEEPER = f"{socket.gethostname()} {os.getpid()} {time.time():.0f}"


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Attempt after attempt, until all is done or there is no sense in another."""
    options = parsed(arguments)
    in_job = options.launcher != "plain"
    if in_job:
        require_allocation(options.launcher)
    job = os.environ["SLURM_JOB_ID"] if in_job else None
    host = os.environ["MASTER_ADDR"] if in_job else None
    requeued = None if options.no_requeue else job
    attempts, asked = Attempts(say), Asked()
    with asked.listening(), Starter(options, host=host) as starter:
        while True:
            attempt = attempted(options, starter, attempts, asked, job=job)
            attempts.add(attempt)
            decision = decide(attempts.all, can_requeue=requeued is not None)
            if attempt.verdict.kind not in ("complete", "stopped by a signal"):
                ends = asked.to_stop and decision.action == "again"
                action = "to be started again" if ends else said(decision.action)
                say(f"{attempt.verdict.sentence}: {action}, for {decision.reason}")
            if decision.action == "end" or asked.at_once:
                return decision.status
            if decision.action == "requeue" and requeued is not None:
                return requeue(requeued)
            if options.module != SPEAKS and attempt.status < 128:
                # It has said itself what is wrong, and is not known to go on where it was.
                return attempt.status
            if asked.to_stop:
                return ExitStatus.FAULT if requeued is None else requeue(requeued)
            pause(decision.pause_seconds, asked)
            if asked.to_stop:
                return ExitStatus.SAVED if requeued is None else requeue(requeued)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(
        prog="python -m tools.keep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--launcher", choices=["plain", "srun", *AGENTS], default="plain")
    parser.add_argument(
        "--inside", default="", metavar="WORDS", help="that enter a container, in a job"
    )
    parser.add_argument(
        "--no-requeue", action="store_true", help="end a job that has saved: another goes on"
    )
    parser.add_argument(
        "--ranks", type=whole(least=1, most=4096), default=1, help="processes (plain)"
    )
    parser.add_argument("--threads", type=whole(least=1, most=4096), help="of each rank")
    parser.add_argument(
        "--limit-seconds",
        type=real(above=0),
        default=600.0,
        help="a section of a rank may take so long while its usual time is not known (%(default)s)",
    )
    parser.add_argument(
        "--least-seconds",
        type=real(above=0),
        default=30.0,
        help="and always so long (%(default)s)",
    )
    parser.add_argument(
        "--warm", action="store_true", help="have the next ranks stand by, their imports done"
    )
    parser.add_argument("module", metavar="MODULE", help="such as train")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    return parser.parse_args(arguments)


def attempted(
    options: argparse.Namespace,
    starter: Starter,
    attempts: Attempts,
    asked: Asked,
    *,
    job: str | None,
) -> Attempt:
    """One start of all ranks, to its end."""
    started, kills = time.time(), out_of_memory_kills()
    deadlines = Deadlines(
        unknown_seconds=options.limit_seconds,
        least_seconds=min(options.least_seconds, options.limit_seconds),
    )
    with starter.start() as attempt:
        listener = attempt.listener
        watch = Watch(attempt.ranks, listener, deadlines, asked, speaks=options.module == SPEAKS)
        while not watch.is_over():
            if listener.run_directory is not None:
                attempts.found_in(listener.run_directory)
            starter.prepare(listener)
        # What was on its way when the last process ended.
        listener.listen(0.0)
        found = watch.found()
    if asked.at_once:
        verdict = Verdict(kind="interrupted", sentence="ended at once by a second signal")
    else:
        verdict = judge(
            found,
            was_asked=asked.to_stop,
            memory_kills=out_of_memory_kills() - kills,
            limit_seconds=watch.limit_seconds,
        )
    return Attempt(
        started=started,
        ended=time.time(),
        keeper=KEEPER,
        job=job,
        nodes=sorted({each.node for each in found if each.node is not None}),
        num_ranks=len(found),
        first_step=listener.first_step,
        last_step=listener.last_step,
        status=max((as_status(each.ended) for each in found), default=0),
        verdict=verdict,
        seconds=dict(listener.seconds),
        longest_seconds=dict(listener.longest_seconds),
    )


def as_status(ended: int | None) -> int:
    """An exit status as shells tell it; of a rank that had to be killed, 137."""
    if ended is None:
        return 137
    return 128 - ended if ended < 0 else ended


def pause(seconds: float, asked: Asked) -> None:
    """Wait, unless a signal comes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not asked.to_stop:
        time.sleep(0.1)


def said(action: str) -> str:
    """What is done, in words."""
    return {"again": "starting again", "requeue": "requeued", "end": "not started again"}[action]


def say(text: str) -> None:
    """Tell whoever watches."""
    sys.stderr.write(f"keeper: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
