"""Disturb a run on the lab for some minutes; tell what becomes of it, and of its time.

    python -m tools.chaos --minutes 15 --every 60 --seed 1     # writes out/chaos.json
    python -m tools.chaos --cold --out out/chaos-cold.json     # no ranks stand by

A cluster of three nodes and an S3 store are started for it on this machine, and taken down in the
end. Ranks and nodes that it kills are those of this cluster; there is no way to name another.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from tools.arguments import Parser, local_path, output_file, real, whole
from tools.chaos.disturbing import disturb
from tools.chaos.drawing import drawn
from tools.chaos.experiment import (
    BUCKET,
    LEAST_SECONDS,
    NUM_NODES,
    Experiment,
    first_difference,
    last_checkpoint,
)
from tools.chaos.faults import Faults
from tools.chaos.job import Job
from tools.chaos.report import Equal, document, faults_of, show
from tools.command import command_line, write_json
from tools.endings import told_to_stop
from tools.lab import s3, slurm
from tools.lab.daemons import Record
from tools.lab.jobs import SlurmLab
from tools.ledger import check_run
from tools.ranks import changed_environment
from train.errors import UserError
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Disturb, compare, tell; 1 where `faults_of` finds something wrong."""
    options = _parsed(arguments)
    if "SLURM_JOB_ID" in os.environ:
        raise UserError(
            "SLURM_JOB_ID is set: chaos kills nodes, and starts a cluster of the lab for that on "
            "a machine of your own: run it outside a job"
        )
    with contextlib.ExitStack() as exits:
        # A signal takes the lab down, too.
        exits.enter_context(told_to_stop("stopped; the lab is taken down"))
        directory = options.directory
        if directory is None:
            directory = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        elif directory.exists():
            raise UserError(f"{directory} exists: name a directory that is to be made")
        experiment = Experiment(
            directory=directory, pace_seconds=options.pace, is_warm=options.is_warm
        )
        experiment.prepare()
        cluster, store = exits.enter_context(_lab(directory))
        found = _chaos(experiment, cluster, store, options)
    write_json(options.out, found)
    show(found, say=_say)
    faults = faults_of(found)
    for fault in faults:
        sys.stderr.write(f"✗ {fault}\n")
    return int(bool(faults))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=real(above=0, most=10_000), default=15.0, help="%(default)s"
    )
    parser.add_argument(
        "--every",
        type=real(above=0, most=1e6),
        default=60.0,
        metavar="SECONDS",
        help="between faults; later where a run is not over the last one (%(default)s)",
    )
    parser.add_argument("--seed", type=whole(), default=0, help="draws the faults (%(default)s)")
    standby = parser.add_mutually_exclusive_group()
    standby.add_argument(
        "--warm", dest="is_warm", action="store_true", default=True, help="ranks stand by (default)"
    )
    standby.add_argument("--cold", dest="is_warm", action="store_false", help="none do")
    parser.add_argument(
        "--pace",
        type=real(least=0, most=60),
        default=0.1,
        metavar="SECONDS",
        help="that a step sleeps, as where a device computes (%(default)s)",
    )
    parser.add_argument(
        "--directory", type=local_path, help="to be made, and kept; default: one thrown away"
    )
    parser.add_argument("--out", type=output_file, default="out/chaos.json")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _lab(directory: Path) -> Generator[tuple[Record, Record]]:
    """A cluster and a store of one's own."""
    with contextlib.ExitStack() as exits:
        exits.callback(slurm.down, directory / "slurm")
        cluster = slurm.up(directory / "slurm", num_nodes=NUM_NODES, num_cpus=2)
        exits.callback(s3.down, directory / "s3")
        yield cluster, s3.up(directory / "s3", bucket=BUCKET)


def _chaos(
    experiment: Experiment, cluster: Record, store: Record, options: argparse.Namespace
) -> dict[str, object]:
    """The run under faults, its end, and the one that it is held against."""
    lab = SlurmLab(cluster.directory, cluster.environment)
    load = os.getloadavg()[0]
    submitted = time.time()
    job = experiment.submit(lab, store)
    with Faults(job, cluster=cluster, store=store, striking=experiment.striking) as faults:
        done = disturb(
            job,
            faults,
            drawn(options.seed),
            submitted=submitted,
            minutes=options.minutes,
            every_seconds=options.every,
            say=_say,
        )
    _stop(job, lab)
    attempts = job.attempts
    with changed_environment(store.environment):
        steps, weights = last_checkpoint(experiment.run)
        undisturbed = experiment.undisturbed(steps=steps)
        equal = Equal(
            losses=first_difference(
                read_metrics(RunDirectory(experiment.run).metrics).losses[:steps],
                read_metrics(RunDirectory(undisturbed).metrics).losses,
            ),
            weights=first_difference(weights, last_checkpoint(undisturbed)[1]),
            ledger=[*map(str, check_run(experiment.run).faults)],
        )
    return document(
        done,
        attempts,
        equal,
        seed=options.seed,
        minutes=options.minutes,
        every_seconds=options.every,
        pace_seconds=options.pace,
        is_warm=options.is_warm,
        hang_limit_seconds=LEAST_SECONDS,
        load_before=load,
    )


def _stop(job: Job, lab: SlurmLab) -> None:
    """Have the run save, and the job not be started again."""
    lab.call("scancel", "--batch", "--signal=USR1", str(job.number))
    job.wait(lambda: job.state != "RUNNING", "the run to save and stop")
    lab.call("scancel", str(job.number))
    job.end()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
