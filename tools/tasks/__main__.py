"""`python -m tools.tasks build [NAME…]`: real tasks, made of packages that are downloaded once."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from rich.console import Console

from tools.arguments import Parser, local_path, whole
from tools.command import command_line
from tools.packages.kept import package_cache
from tools.tasks.build import SPLITS, build
from tools.tasks.packages import Packages
from tools.tasks.recipes import RECIPES
from train.errors import DataError

DEFAULT_OUT: Final = "data/tasks"


@command_line
def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    return options.action(options)


def _build(options: argparse.Namespace) -> None:
    names = options.names or [*RECIPES]
    for name in names:
        if name not in RECIPES:
            near = get_close_matches(name, RECIPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
            raise DataError(f"there is no task {name} to build: {hint}")
    console = Console(stderr=True)

    def report(told: str) -> None:
        console.print(told, markup=False, highlight=False, soft_wrap=True)

    most = dict(zip(SPLITS, (options.records, options.held_out, options.held_out), strict=True))
    for name in names:
        packages = Packages(cache=options.cache or package_cache(), report=report)
        manifest = build(name, RECIPES[name], options.out, packages, most=most)
        counts = ", ".join(f"{n['records']:,} {split}" for split, n in manifest["splits"].items())
        licences = sorted({each for source in manifest["sources"] for each in source["licences"]})
        sys.stdout.write(
            f"{options.out / name}: {counts} ({', '.join(licences) or 'see licences'})\n"
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tools.tasks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("build", help="records of tasks, from packages")
    command.set_defaults(action=_build)
    command.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    command.add_argument("--out", type=local_path, default=Path(DEFAULT_OUT), metavar="DIRECTORY")
    command.add_argument("--cache", type=local_path, metavar="DIRECTORY", help="keeps downloads")
    for flag, default, about in (
        ("--records", 30_000, "of training at most"),
        ("--held-out", 1_000, "records of validation and of test at most"),
    ):
        command.add_argument(
            flag, type=whole(least=1), default=default, metavar="N", help=f"{about} ({default})"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
