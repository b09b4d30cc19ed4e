"""Builds episodes of MiniGrid, and tasks of them."""

from pathlib import Path
from typing import Any, Final

from tools.media.clips.composing import ENCODED_BY
from tools.media.folder import Folder
from tools.packages.used import Packages

FORMAT_VERSION: Final = 1
VERSION: Final = "3.2.0"
"""Of minigrid: another one may draw other worlds."""
LICENCE: Final = "Apache-2.0 as its LICENSE says, MIT as its metadata do"
_ROOMS: Final = ((1, 2), (2, 1))
"""Rows and columns of rooms that are trained on."""
_HELD_OUT_ROOMS: Final = ((2, 2),)
_FEW: Final = 8
"""One episode is made for each further split for so many to train."""


def build_episodes(out: Path, packages: Packages, *, seed: int, episodes: int) -> dict[str, Any]:
    """Build episodes, and tasks of what came first, what came before, and how often, unless there.

    Worlds of validation and test are of other seeds; `rooms` are of more rooms than training has
    seen; `one_frame` asks the test about one frame.

    Args:
        out: directory; what was begun in it goes on.
        packages: what they are made of.
        seed: of what is drawn.
        episodes: of each task, to train on.

    Returns:
        The manifest.

    Raises:
        DataError: minigrid is not installed; or the directory holds something else.
        InUseError: another process builds there.
        StorageError: it cannot be written.
    """
    asked = {"kind": "episodes", "seed": seed, "episodes": episodes}
    folder = Folder(out, {"format_version": FORMAT_VERSION, **asked})
    if folder.manifest is not None:
        return folder.manifest
    packages.installed("minigrid", VERSION, licence=LICENCE, extra="media")
    from tools.media.episodes import questions  # what it imports is an extra

    few = max(2, episodes // _FEW)
    with folder.writing():
        for task, (play, schema) in questions.PLAYS.items():

            def worlds(
                split: str, count: int, *, task: str = task, play: questions.Play = play
            ) -> Any:
                rooms = _HELD_OUT_ROOMS if split == "rooms" else _ROOMS
                name = f"{task}/{split}"
                return questions.played(play, rooms, count, name=name, seed=seed)

            for split in ("train", "validation", "test", "rooms"):
                count = episodes if split == "train" else few
                folder.add(
                    f"tasks/{task}/{split}.parquet",
                    schema,
                    lambda split=split, count=count, worlds=worlds: questions.asked(
                        worlds(split, count)
                    ),
                    packages,
                )
            folder.add(
                f"tasks/{task}/one_frame.parquet",
                schema,
                lambda worlds=worlds: questions.asked_of_one_frame(worlds("test", few), seed=seed),
                packages,
            )
            folder.add(
                f"train/{task}.parquet",
                questions.DOCUMENT,
                lambda task=task: questions.documents(out / f"tasks/{task}/train.parquet"),
                packages,
            )
        tasks = [f"tasks/{task}" for task in questions.PLAYS]
        return folder.finish({}, tasks=tasks, encoded_by=ENCODED_BY)
