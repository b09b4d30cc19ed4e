"""`python -m tools.media build images`: pictures with names, scenes with exact answers, and tasks.

They are made of packages that are downloaded once. What is trained on lies in `train`, drawings of
vendors that are held out in `held_out`, for `tools.corpus build`; tasks lie in `tasks`, for
`configs/task/pictures`. `manifest.json` tells all sources with their licences.
"""

from train.preemption import quiet_until_asked

if __name__ == "__main__":
    quiet_until_asked()  # what is imported next takes seconds

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from tools.arguments import Parser, local_path, whole
from tools.command import command_line
from tools.media.build import build_images
from tools.packages.kept import package_cache
from tools.packages.used import Packages

DEFAULT_OUT: Final = "data/media/images"
_SCENES: Final = 3_000
_MOST_SCENES: Final = 1_000_000


@command_line
def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    return options.action(options)


def _build(options: argparse.Namespace) -> None:
    console = Console(stderr=True)

    def report(told: str) -> None:
        console.print(told, markup=False, highlight=False, soft_wrap=True)

    manifest = build_images(
        options.out,
        Packages(cache=options.cache or package_cache(), report=report),
        seed=options.seed,
        scenes=options.scenes,
        has_clipart=not options.no_clip_art,
    )
    num_records = sum(file["records"] for file in manifest["files"].values())
    licences = sorted({each for source in manifest["sources"] for each in source["licences"]})
    sys.stdout.write(
        f"{options.out}: {num_records:,} records in {len(manifest['files'])} files "
        f"({', '.join(licences)})\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tools.media", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("build", help="records of pictures, from packages")
    command.set_defaults(action=_build)
    command.add_argument("kind", choices=["images"], help="what to build")
    command.add_argument(
        "--out",
        type=local_path,
        default=Path(DEFAULT_OUT),
        metavar="DIRECTORY",
        help=f"default {DEFAULT_OUT}, where the tasks' files look",
    )
    command.add_argument("--cache", type=local_path, metavar="DIRECTORY", help="keeps downloads")
    command.add_argument(
        "--scenes",
        type=whole(least=2, most=_MOST_SCENES),
        default=_SCENES,
        metavar="N",
        help=f"to train on, of counting and of places each ({_SCENES})",
    )
    command.add_argument(
        "--seed", type=whole(), default=0, metavar="N", help="of what is drawn (0)"
    )
    command.add_argument(
        "--no-clip-art", action="store_true", help="emoji alone: no package of Debian is needed"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
