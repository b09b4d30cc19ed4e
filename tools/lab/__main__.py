"""Bring a real Slurm cluster or S3 server up or down on this machine.

    eval "$(python -m tools.lab slurm up)"      # then sbatch, srun, squeue as usual
    eval "$(python -m tools.lab s3 up --bucket corpus)"
    python -m tools.lab slurm down

`up` and `env` write nothing but shell `export` lines to standard output.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.arguments import Parser, local_path, utf8, whole
from tools.command import command_line
from tools.lab import s3, slurm
from tools.lab.daemons import LabError, Record

SERVICES = {"slurm": slurm, "s3": s3}


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks."""
    parser = Parser(
        prog="python -m tools.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    services = parser.add_subparsers(dest="service", required=True, metavar="slurm|s3")
    for name in SERVICES:
        service = services.add_parser(name)
        actions = service.add_subparsers(dest="action", required=True, metavar="up|down|status|env")
        for action in ("up", "down", "status", "env"):
            command = actions.add_parser(action)
            command.add_argument(
                "--directory",
                type=lambda text: local_path(utf8(text)),
                default=f"out/lab/{name}",
                help="default: %(default)s",
            )
            if action == "up" and name == "slurm":
                command.add_argument(
                    "--nodes", dest="num_nodes", type=whole(least=1, most=1000), default=2
                )
                command.add_argument(
                    "--cpus",
                    dest="num_cpus",
                    type=whole(least=1, most=1024),
                    default=2,
                    help="CPUs a node claims",
                )
            if action == "up" and name == "s3":
                command.add_argument(
                    "--port", type=whole(most=65_535), default=0, help="default: any free port"
                )
                command.add_argument("--bucket", help="create this bucket")
    options = vars(parser.parse_args(arguments))
    name, action = options.pop("service"), options.pop("action")
    directory = Path(os.path.realpath(options.pop("directory")))
    service = SERVICES[name]
    if action == "down":
        service.down(directory)
        return
    record = service.up(directory, **options) if action == "up" else Record.running(directory)
    if action == "status":
        told = f"{name}: down ({directory})\n"
        if record is not None:
            daemons = ", ".join(f"{each.name} {each.process_id}" for each in record.daemons)
            told = f"{name}: up ({directory})\n{daemons}\n{service.status(record)}\n"
    elif record is None:
        raise LabError(
            f"no {name} runs in {directory}: start it with python -m tools.lab {name} up"
        )
    else:
        told = "".join(
            f"export {key}={shlex.quote(value)}\n" for key, value in record.environment.items()
        )
    sys.stdout.write(told)


if __name__ == "__main__":
    sys.exit(main())
