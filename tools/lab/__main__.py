"""Bring a real Slurm cluster or S3 server up or down on this machine.

    eval "$(python -m tools.lab slurm up)"      # then sbatch, srun, squeue as usual
    eval "$(python -m tools.lab s3 up --bucket corpus)"
    python -m tools.lab slurm down

`up` and `env` write nothing but shell `export` lines to standard output.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from tools.lab import s3, slurm
from tools.lab.daemons import LabError, Record, export_lines
from train.errors import UserError


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    services = parser.add_subparsers(dest="service", required=True, metavar="slurm|s3")
    for name, default in (("slurm", slurm.DEFAULT_DIRECTORY), ("s3", s3.DEFAULT_DIRECTORY)):
        service = services.add_parser(name)
        actions = service.add_subparsers(dest="action", required=True, metavar="up|down|status|env")
        for action in ("up", "down", "status", "env"):
            command = actions.add_parser(action)
            command.add_argument(
                "--directory", type=Path, default=default, help="default: %(default)s"
            )
            if action == "up" and name == "slurm":
                command.add_argument("--nodes", type=int, default=2)
                command.add_argument("--cpus", type=int, default=2, help="CPUs a node claims")
            if action == "up" and name == "s3":
                command.add_argument("--port", type=int, default=0, help="default: any free port")
                command.add_argument("--bucket", help="create this bucket")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Do what the command line asks and return what to write to standard output."""
    service = slurm if options.service == "slurm" else s3
    match options.action:
        case "up" if options.service == "slurm":
            record = slurm.up(options.directory, num_nodes=options.nodes, num_cpus=options.cpus)
        case "up":
            record = s3.up(options.directory, port=options.port, bucket=options.bucket)
        case "down":
            service.down(options.directory)
            return ""
        case "status":
            return service.status(options.directory) + "\n"
        case _:
            loaded = Record.load(options.directory.resolve())
            if loaded is None or not loaded.is_running:
                raise LabError(
                    f"no {options.service} runs in {options.directory}: "
                    f"start it with python -m tools.lab {options.service} up"
                )
            record = loaded
    return export_lines(record.environment)


def main() -> int:
    """Run the command; return the exit status, 2 for what the user can mend."""
    try:
        sys.stdout.write(run(parse_arguments()))
    except UserError as error:
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
