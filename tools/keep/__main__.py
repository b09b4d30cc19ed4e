"""Keep a run going: start its ranks, watch them, start them again where that helps.

    python -m tools.keep --ranks 2 train configs/experiment/first_light.yaml
    python -m tools.keep --launcher srun train CONFIG.yaml    # in a job: slurm/pretrain.sh does it
    python -m tools.keep --launcher deepspeed --hostfile HOSTS train CONFIG.yaml    # by ssh

Each start is an attempt; `attempts.jsonl` in the run's directory says how each ended and why. It
ends with the exit status of the run, or with 70 where starting again would not help
(docs/exit-status.md).
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

from tools.arguments import Parser, real, whole
from tools.command import command_line
from tools.keep.agents import AGENTS
from tools.keep.asked import Asked
from tools.keep.attempt import Attempts
from tools.keep.hosts import Hosts
from tools.keep.keeping import KEEPER, Keeping, say, try_out
from tools.keep.launching import SPEAKS, requeue, require_allocation
from tools.keep.settings import Settings
from tools.keep.starting import Starter
from train.exit_status import ExitStatus


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Attempt after attempt, until all is done or there is no sense in another."""
    options = parsed(arguments)
    speaks, hosts = options.module == SPEAKS, options.hosts
    in_job = options.launcher != "plain" and hosts is None
    settings = Settings.of(options.arguments) if speaks else Settings()
    options.warm = options.warm or settings.keep.warm
    if in_job:
        require_allocation(options.launcher)
    allocation = (
        settings.allocation(in_job=in_job, environment=os.environ, keeper=KEEPER)
        if speaks
        else None
    )
    job = os.environ["SLURM_JOB_ID"] if in_job else None
    host = os.environ["MASTER_ADDR"] if in_job else None if hosts is None else hosts.here
    requeued = None if options.no_requeue else job
    attempts, asked = Attempts(say), Asked()
    with asked.listening(), Starter(options, host=host) as starter:
        if allocation is not None and settings.tries_nodes:
            allocation = try_out(allocation, inside=shlex.split(options.inside))
        keeping = Keeping(options, settings, starter, attempts, asked, allocation, job=job)
        if not keeping.has_place:
            sys.stderr.write("too few of the job's nodes answer, before anything was started\n")
            return ExitStatus.FAULT if requeued is None else requeue(requeued)
        while True:
            attempt = keeping.attempted()
            attempts.add(attempt)
            decision = keeping.decided(can_requeue=requeued is not None)
            # It has said itself what is wrong, and is not known to go on where it was.
            is_its_own = decision.action == "again" and not speaks and attempt.status < 128
            if attempt.verdict.kind not in ("complete", "stopped by a signal"):
                ends = asked.to_stop and decision.action == "again"
                action = "to be started again" if ends else said(decision.action)
                why = f"{action}, for {decision.reason}"
                if is_its_own:
                    why = f"not started again, as {options.module} may not go on where it was"
                say(f"{attempt.verdict.sentence}: {why}")
            if decision.action == "end" or asked.at_once:
                return decision.status
            if decision.action == "requeue" and requeued is not None:
                return requeue(requeued)
            if is_its_own:
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
        "--hostfile",
        metavar="FILE",
        help="hosts that ssh reaches, in lines such as `host1 slots=8`, for torchrun or deepspeed",
    )
    parser.add_argument(
        "--ssh", default="ssh", metavar="WORDS", help='such as "ssh -p 2222" (%(default)s)'
    )
    parser.add_argument(
        "--inside", default="", metavar="WORDS", help="that enter a container; not with plain"
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
    options = parser.parse_args(arguments)
    if not _is_module(options.module):
        parser.error(
            f"MODULE: there is no module {options.module} here: name one before its arguments, "
            "such as train A.yaml"
        )
    options.hosts = None
    if options.hostfile is not None:
        if options.launcher not in AGENTS:
            parser.error(f"--hostfile: {options.launcher} starts no ranks on other hosts: add "
                         "--launcher deepspeed, or torchrun")  # fmt: skip
        options.hosts = Hosts(options.hostfile, ssh=shlex.split(options.ssh))
    return options


def _is_module(name: str) -> bool:
    """Whether Python finds a module; those above it are imported for that."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def pause(seconds: float, asked: Asked) -> None:
    """Wait, unless a signal comes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not asked.to_stop:
        time.sleep(0.1)


def said(action: str) -> str:
    """What is done, in words."""
    return {"again": "starting again", "requeue": "requeued", "end": "not started again"}[action]


if __name__ == "__main__":
    sys.exit(main())
