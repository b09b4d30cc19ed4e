"""What a job of Slurm sets up before its ranks start: `slurm/launch.sh` runs the lines printed.

    eval "$(python -m tools.submit.job CONFIG.yaml … [-- TASK'S OVERRIDES …]…)"

Reads the section `cluster:` alone, quickly; all else of the configuration is the ranks' to judge.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from tools.arguments import Parser
from tools.command import command_line
from train.cluster import ClusterConfig, JobSections
from train.config_files import load
from train.errors import ConfigError, StorageError, UserError
from train.storage.path import SCHEME, local_path

LINK: Final = "SEMICAUSAL_CHAIN"
"""Variable with the number of a job in its chain, from 1; not set without one."""
FIRST_JOB: Final = "SEMICAUSAL_CHAIN_SINCE"
"""Variable with the number of the first job of the chain; the first job itself has none."""
BETWEEN_TASKS: Final = "--"
_VARIABLE: Final = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)


class _Sections(JobSections):
    """What is looked at here."""

    steps: int = 0


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the lines of bash.

    Raises:
        ConfigError: a file is not there, or its section is wrong.
        UserError: there is no file, or no such task.
    """
    parser = Parser(prog="python -m tools.submit.job", description=__doc__)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="FILE.yaml|key=value")
    given = parser.parse_args(arguments).arguments
    own = arguments_of_task(given, os.environ.get("SLURM_ARRAY_TASK_ID"))
    said = [each for each in own if not each.startswith("-")]  # the others are options
    if not any(each.endswith((".yaml", ".yml")) or "=" not in each for each in said):
        raise UserError(
            "no configuration given: name a .yaml file, such as configs/experiment/first_light.yaml"
        )
    found = load(_Sections, said)
    if faults := setup_faults(found.cluster):
        raise ConfigError("\n".join(faults))
    link, first = os.environ.get(LINK, "1"), os.environ.get(FIRST_JOB, "")
    if link != "1":
        from tools.submit.standing import over  # heavy, and seldom wanted

        first_job = int(first) if first.isdecimal() else 0
        if why := over(local_path(found.run_directory), steps=found.steps, first_job=first_job):
            sys.stderr.write(f"job {link} of the chain does nothing: {why}\n")
            sys.stdout.write("exit 0\n")
            return
    tasks = os.environ.get("SLURM_NTASKS", str(found.cluster.slots))
    if "cluster" in found.model_fields_set and tasks != str(found.cluster.slots):
        spare = f" and {found.cluster.spare_nodes} spare" if found.cluster.spare_nodes else ""
        sys.stderr.write(
            f"cluster: {found.cluster.nodes}{spare} node(s) of {found.cluster.ranks_per_node} "
            "rank(s), "
            f"but sbatch was told {tasks} rank(s), and that counts; python -m tools.submit asks "
            "for what the file says\n"
        )
    sys.stdout.write("".join(f"{line}\n" for line in lines(found.cluster, own)))


def arguments_of_task(arguments: Sequence[str], task: str | None) -> list[str]:
    """What one task of an array is to run: what all have in common, and what is its own.

    Args:
        arguments: of all; those of a task each stand behind a `--`.
        task: its number, from 0; None for a job that is no array.

    Raises:
        UserError: there is no such task.
    """
    groups: list[list[str]] = [[]]
    for each in arguments:
        if each == BETWEEN_TASKS:
            groups.append([])
        else:
            groups[-1].append(each)
    common, *own = groups
    if not own:
        return common
    if task is None or not task.isdecimal() or int(task) >= len(own):
        raise UserError(
            f"SLURM_ARRAY_TASK_ID: is {task}, and there are tasks 0 to {len(own) - 1}: submit with "
            f"sbatch --array=0-{len(own) - 1}"
        )
    return [*common, *own[int(task)]]


def setup_faults(cluster: ClusterConfig) -> list[str]:
    """What bash cannot read of the section, a sentence each; of setup none where it is not here."""
    found: list[str] = []
    try:
        scratch_lines(cluster.scratch)
    except StorageError as error:
        found.append(f"cluster.scratch: {error}")
    for number, line in enumerate(cluster.setup):
        with contextlib.suppress(FileNotFoundError):
            read = subprocess.run(
                [shutil.which("bash") or "/bin/bash", "-O", "extglob", "-n", "-c", line],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
            if read.returncode != 0:
                told = read.stderr.strip().splitlines() or ["bash does not read it"]
                reason = re.sub(r"^.*?: line [0-9]+: ", "", told[0])
                found.append(
                    f"cluster.setup.{number}: {reason}: each line stands alone: write all of it in "
                    "one, or in a file that it sources"
                )
    return found


def scratch_lines(text: str | None) -> list[str]:
    """Lines of bash that say where `cluster.scratch` lies: variables are those of the job.

    Raises:
        StorageError: it is no directory, wherever it is looked at.
    """
    if text is None:
        return ["scratch="]
    path = os.path.expanduser(text)
    if SCHEME.match(path) is not None or path.startswith("~"):
        raise StorageError(f"{text} is no directory of a node: name one as a path")
    found: list[str] = []
    word = ""
    for number, part in enumerate(_VARIABLE.split(path)):
        if number % 2 == 0:
            word += shlex.quote(part) if part else ""
            continue
        name = part.strip("{}")
        if not name.isidentifier():
            raise StorageError(f"{text}: {name!r} is no name of a variable: write the path out")
        told = f"cluster.scratch: {text}: the job has no variable {name}: write the path out"
        found.append(f'[[ -n "${{{name}:-}}" ]] || fail {shlex.quote(told)}')
        word += f'"${{{name}}}"'
    return [*found, f"scratch={word}"]


def lines(cluster: ClusterConfig, arguments: Sequence[str]) -> list[str]:
    """Lines of bash that set a job up.

    Args:
        cluster: the section.
        arguments: of each rank.
    """
    failed = [shlex.quote(f"cluster.setup: {line}: failed") for line in cluster.setup]
    there = ['"TMPDIR=$scratch"', '"XDG_CACHE_HOME=$scratch/cache"']
    variables = [shlex.quote(f"{name}={value}") for name, value in cluster.environment.items()]
    return [
        # As a text of its own, so that no line reaches beyond its end, by a comment or a backslash.
        *(
            f"eval {shlex.quote(line)} || fail {what}"
            for line, what in zip(cluster.setup, failed, strict=True)
        ),
        *scratch_lines(cluster.scratch),
        # For `env`: the ranks have them whatever the script that starts them uses the names for.
        f"environment=({' '.join([*(there if cluster.scratch else []), *variables])})",
        f"launcher={cluster.launcher}",
        f"inside={shlex.quote(shlex.join(cluster.container))}",
        f"arguments=({shlex.join(arguments)})",
        # Once more, since setup may have used these names.
        f"module=train python={shlex.quote(sys.executable)}",
    ]


if __name__ == "__main__":
    sys.exit(main())
