"""`python -m tools.media build images|clips|speech|episodes`: media, what they are, and tasks.

They are made of packages that are downloaded once. What is trained on lies in `train`, for
`tools.corpus build`; tasks lie in `tasks`, for `configs/task/pictures`, `clips`, `speech` and
`episodes`, with emoji, drawings of vendors, voices, an engine, people and rooms that are held out.
`manifest.json` tells all sources with their licences.
"""

from train.preemption import quiet_until_asked

if __name__ == "__main__":
    quiet_until_asked()  # what is imported next takes seconds

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tools.arguments import Parser, local_path, whole
from tools.command import command_line
from tools.media.build import build_images
from tools.media.clips.build import build_clips
from tools.media.episodes.build import build_episodes
from tools.media.public.convert import DATASETS, convert
from tools.media.speech.build import build_speech
from tools.packages.kept import package_cache
from tools.packages.used import Packages

DEFAULT_OUT: Final = "data/media"
_SCENES: Final = 3_000
_CLIPS: Final = 3_000
_EPISODES: Final = 600
_UTTERANCES: Final = 3_000
_MOST: Final = 1_000_000


@command_line
def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    return options.action(options)


def _images(options: argparse.Namespace, packages: Packages) -> dict[str, Any]:
    return build_images(
        options.out,
        packages,
        seed=options.seed,
        scenes=options.scenes,
        has_clipart=not options.no_clip_art,
    )


def _clips(options: argparse.Namespace, packages: Packages) -> dict[str, Any]:
    return build_clips(options.out, packages, seed=options.seed, clips=options.clips)


def _episodes(options: argparse.Namespace, packages: Packages) -> dict[str, Any]:
    return build_episodes(options.out, packages, seed=options.seed, episodes=options.episodes)


def _speech(options: argparse.Namespace, packages: Packages) -> dict[str, Any]:
    return build_speech(
        options.out,
        packages,
        seed=options.seed,
        num_utterances=options.utterances,
        has_synopses=not options.no_synopses,
    )


def _build(options: argparse.Namespace) -> None:
    console = Console(stderr=True)

    def report(told: str) -> None:
        console.print(told, markup=False, highlight=False, soft_wrap=True)

    packages = Packages(cache=options.cache or package_cache(), report=report)
    _tell(options.out, options.kind(options, packages))


def _convert(options: argparse.Namespace) -> None:
    console = Console(stderr=True)
    manifest = convert(
        options.name,
        options.path,
        options.out,
        splits=options.split,
        media=options.media,
        missing=options.missing,
        report=lambda told: console.print(told, markup=False, highlight=False, soft_wrap=True),
    )
    for reason, count in manifest["left_out"].items():
        console.print(f"left out: {count:,} {reason}", markup=False, highlight=False)
    _tell(options.out, manifest)


def _tell(out: Path, manifest: dict[str, Any]) -> None:
    num_records = sum(file["records"] for file in manifest["files"].values())
    licences = sorted({each for source in manifest["sources"] for each in source["licences"]})
    sys.stdout.write(
        f"{out}: {num_records:,} records in {len(manifest['files'])} files "
        f"({', '.join(licences)})\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tools.media", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("build", help="records of one kind, from packages")
    command.set_defaults(action=_build)
    kinds = command.add_subparsers(required=True, metavar="KIND")
    images = _kind(kinds, "images", _images, "pictures with names, and scenes")
    images.add_argument(
        "--scenes",
        type=whole(least=2, most=_MOST),
        default=_SCENES,
        metavar="N",
        help=f"to train on, of counting and of places each ({_SCENES})",
    )
    images.add_argument(
        "--no-clip-art", action="store_true", help="emoji alone: no package of Debian is needed"
    )
    clips = _kind(kinds, "clips", _clips, "animations with names, and clips of two in an order")
    clips.add_argument(
        "--clips",
        type=whole(least=2, most=_MOST),
        default=_CLIPS,
        metavar="N",
        help=f"of an order, to train on ({_CLIPS})",
    )
    episodes = _kind(kinds, "episodes", _episodes, "episodes of MiniGrid, told in words")
    episodes.add_argument(
        "--episodes",
        type=whole(least=4, most=_MOST),
        default=_EPISODES,
        metavar="N",
        help=f"of each of three tasks, to train on ({_EPISODES})",
    )
    speech = _kind(kinds, "speech", _speech, "speech with its texts")
    speech.add_argument(
        "--utterances",
        type=whole(least=2, most=_MOST),
        default=_UTTERANCES,
        metavar="N",
        help=f"to train on, of words, of numbers and of texts each ({_UTTERANCES})",
    )
    speech.add_argument(
        "--no-synopses",
        action="store_true",
        help="no lines on what packages are for among the texts",
    )
    _convert_options(commands)
    return parser


def _convert_options(commands: Any) -> None:
    about = ", ".join(f"{name} ({', '.join(each.splits)})" for name, each in DATASETS.items())
    command = commands.add_parser(
        "convert",
        help="records of a public data set that lies on disk",
        description=f"Data sets, and the splits of each: {about}.",
    )
    command.set_defaults(action=_convert)
    command.add_argument("name", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    command.add_argument("path", type=local_path, metavar="PATH", help="directory that holds it")
    command.add_argument("out", type=local_path, metavar="OUT", help="directory, mostly new")
    command.add_argument(
        "--split", nargs="+", required=True, metavar="SPLIT", help="of the data set"
    )
    command.add_argument(
        "--media", type=local_path, metavar="DIRECTORY", help="where its media lie (PATH)"
    )
    command.add_argument(
        "--missing",
        type=whole(),
        default=0,
        metavar="N",
        help="records of a split whose media may be missing; they are left out and counted (0)",
    )


def _kind(
    kinds: Any,
    name: str,
    build: Callable[[argparse.Namespace, Packages], dict[str, Any]],
    help: str,
) -> argparse.ArgumentParser:
    command = kinds.add_parser(name, help=help)
    command.set_defaults(kind=build)
    out = f"{DEFAULT_OUT}/{name}"
    command.add_argument(
        "--out",
        type=local_path,
        default=Path(out),
        metavar="DIRECTORY",
        help=f"default {out}, where the tasks' files look",
    )
    command.add_argument("--cache", type=local_path, metavar="DIRECTORY", help="keeps downloads")
    command.add_argument(
        "--seed", type=whole(), default=0, metavar="N", help="of what is drawn (0)"
    )
    return command


if __name__ == "__main__":
    sys.exit(main())
