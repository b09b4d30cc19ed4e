"""Submit a run to Slurm: `python -m tools.submit EXPERIMENT.yaml CLUSTER.yaml [key=value…]`.

    python -m tools.submit configs/experiment/tiny.yaml configs/cluster/lab.yaml --dry-run
    python -m tools.submit A.yaml configs/cluster/h100x8.yaml cluster.nodes=8 --chain 4
    python -m tools.submit A.yaml CLUSTER.yaml --sweep optim.lr=1e-3,2e-3 --seeds 1 2 3

The section `cluster:` says what the job asks for (train/cluster.py). Before anything is submitted
the configuration is checked, the planner is asked whether the layout fits, and no other job may be
there for the run. Seeds and sweeps become an array, with a run directory each beside the run's own.
With --chain each job goes on where the one before was stopped, and none does once the run is
complete, or a keeper has given it up.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.arguments import Parser, whole
from tools.command import command_line
from tools.submit import calling
from tools.submit.calling import Job
from tools.submit.flags import SCRIPT, comment_of, flags_of, job_arguments
from tools.submit.job import FIRST_JOB, LINK, lines
from tools.submit.points import Point, points
from tools.submit.refusing import faults_of, queue_fault, unplanned
from train.config import RunConfig
from train.config_files import load
from train.errors import ConfigError, UserError

REPOSITORY: Final = "SEMICAUSAL_REPOSITORY"
"""Variable by which a job finds the repository, wherever it was submitted from."""


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Submit, or show what would be.

    Raises:
        UserError: the configuration, the layout or the run's state forbid it, or Slurm does.
    """
    options = parsed(arguments)
    repository = Path(__file__).absolute().parents[2]
    if not (repository / SCRIPT).is_file():
        raise UserError(f"{repository / SCRIPT}: is not there: use a checkout of the repository")
    try:
        queue = calling.jobs()
    except UserError as error:
        if not options.dry_run:
            raise
        queue = []
        say(f"{error}; jobs that are there already are not known")
    found = points(seeds=options.seeds, sweeps=options.sweep)
    common, runs = checked(options.arguments, found, queue)
    cluster = common.cluster
    assert cluster is not None, "refused"
    if (why := unplanned(common, cluster)) is not None:
        say(f"{why}: whether the layout fits is not known")
    # A run that is named is a task of an array, and be it the only one.
    tasks = [point.placed(common) for point in found if point.name]
    flags = flags_of(
        cluster,
        name=common.name,
        comment=comment_of([run.directory.path for run in runs]),
        tasks=len(tasks),
        is_chained=options.chain > 1,
    )
    command = ["sbatch", "--parsable", *flags]
    asked = [str(repository / SCRIPT), *job_arguments(options.arguments, tasks)]
    links = [environment_of(repository, link=n, of=options.chain) for n in range(options.chain)]
    if options.dry_run:
        sys.stdout.write(described(command, asked, links))
        sys.stdout.write("\n# what is set up in the job, before its ranks start:\n")
        for line in lines(cluster, [*options.arguments, *(tasks[0] if tasks else ())]):
            sys.stdout.write(f"{line}\n")
        return
    numbers = submitted(command, asked, links, runs=[run.directory.path for run in runs])
    for number in numbers:
        say(f"job {number}: {cluster.ranks} ranks on {cluster.nodes} node(s)")
    for run in runs:
        sys.stdout.write(f"{run.run_directory}\n")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(
        prog="python -m tools.submit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arguments", nargs="+", metavar="FILE.yaml|key=value")
    parser.add_argument("--dry-run", action="store_true", help="show what would be submitted")
    parser.add_argument(
        "--chain",
        type=whole(least=1, most=1000),
        default=1,
        metavar="N",
        help="so many jobs, each of which goes on where the one before was stopped",
    )
    parser.add_argument(
        "--seeds", type=whole(), nargs="+", default=[], help="a run for each", metavar="SEED"
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="a run for each value; given again, for all combinations",
    )
    return parser.parse_intermixed_args(arguments)


def checked(
    arguments: Sequence[str], found: Sequence[Point], queue: Sequence[Job]
) -> tuple[RunConfig, list[RunConfig]]:
    """What all runs have in common, and each of them.

    Raises:
        UserError: a sentence for each reason why they are not submitted.
    """
    for each in arguments:
        if each.startswith(("/dev/", "/proc/")):
            raise UserError(f"{each}: jobs cannot read what a shell makes here: name a file")
    common = load(RunConfig, arguments)
    if common.cluster is None:
        raise ConfigError("cluster: is missing: name a cluster's file, or write one like "
                          "configs/cluster/lab.yaml")  # fmt: skip
    runs: list[RunConfig] = []
    faults: dict[str, None] = {}
    for point in found:
        try:
            run = load(RunConfig, [*arguments, *point.placed(common)])
        except ConfigError as error:
            faults |= dict.fromkeys(str(error).split("\n"))
            continue
        assert run.cluster is not None, "as in common"
        runs.append(run)
        faults |= dict.fromkeys(faults_of(run, run.cluster, queue=queue))
    if faults:
        raise UserError("\n".join(faults))
    return common, runs


def environment_of(repository: Path, *, link: int, of: int) -> dict[str, str]:
    """Variables of a job, besides those of whoever submits.

    Args:
        repository: whose code runs.
        link: of the chain, from 0.
        of: jobs of the chain.
    """
    variables = {REPOSITORY: str(repository), LINK: str(link + 1)}
    if of > 1:
        # What is stopped is the next one's to go on with.
        options = os.environ.get("KEEP_OPTIONS", "").split()
        variables["KEEP_OPTIONS"] = " ".join([*options, "--no-requeue"])
    return variables


def described(
    command: Sequence[str], asked: Sequence[str], links: Sequence[Mapping[str, str]]
) -> str:
    """Commands as a shell would be given them."""
    text = ""
    for number, link in enumerate(links):
        flags, variables = after([f"JOB_{before + 1}" for before in range(number)])
        words = " ".join(f"{k}={shlex.quote(value)}" for k, value in {**link, **variables}.items())
        text += f"{words} \\\n    {shlex.join([*command, *flags, *asked])}\n"
    return text


def after(jobs: Sequence[object]) -> tuple[list[str], dict[str, str]]:
    """Flags and variables of a job that begins once others have ended, however.

    Args:
        jobs: the earlier links of its chain; none for the first.
    """
    if not jobs:
        return [], {}
    return [f"--dependency=afterany:{jobs[-1]}"], {FIRST_JOB: str(jobs[0])}


def submitted(
    command: Sequence[str],
    asked: Sequence[str],
    links: Sequence[Mapping[str, str]],
    *,
    runs: Sequence[Path],
) -> list[int]:
    """Numbers of the jobs, one for each link of the chain; all of them are submitted, or none is.

    Raises:
        UserError: Slurm takes one of them not, or another job for a run came first.
    """
    numbers: list[int] = []
    try:
        for link in links:
            flags, variables = after(numbers)
            numbers.append(calling.submit([*command, *flags, *asked], {**link, **variables}))
        # Whoever has looked at the queue at the same time has seen no job either.
        first = [job for job in calling.jobs() if job.array < numbers[0]]
        for run in runs:
            if (fault := queue_fault(run, first)) is not None:
                raise UserError(fault)
    except BaseException:  # Ctrl-C between two of them, too
        if numbers:
            calling.cancel(numbers)
        raise
    return numbers


def say(text: str) -> None:
    """Tell whoever submits, beside what programs read."""
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
