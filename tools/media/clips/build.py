"""Builds videos with names, clips of an order, and tasks of both."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tools.media.clips import questions
from tools.media.clips.animations import Animation, read_animations
from tools.media.clips.composing import ENCODED_BY
from tools.media.clips.questions import SPLITS, Row, Split
from tools.media.folder import Folder
from tools.media.names import Emoji, read_names
from tools.packages.used import Packages

FORMAT_VERSION: Final = 1
SIDE: Final = 96
"""Pixels of height and width."""
TASKS: Final = ("clip_name", "clip_order")
"""Of which `configs/task/clips` has files."""
_FEW: Final = 4
"""One clip of an order is made for validation and for test for so many to train."""


def build_clips(out: Path, packages: Packages, *, seed: int, clips: int) -> dict[str, Any]:
    """Build videos with names, clips of an order, and tasks of both, unless they are there.

    What is asked in validation and test is of emoji that nothing else shows.

    Args:
        out: directory; what was begun in it goes on.
        packages: what they are made of.
        seed: of what is drawn.
        clips: of an order, to train on.

    Returns:
        The manifest.

    Raises:
        DataError: a package cannot be had or is not what it was; or the directory holds something
            else.
        InUseError: another process builds there.
        StorageError: it cannot be written.
    """
    asked = {"kind": "clips", "seed": seed, "clips": clips}
    folder = Folder(out, {"format_version": FORMAT_VERSION, **asked})
    if folder.manifest is not None:
        return folder.manifest
    with folder.writing():
        # Animations have no skin tones but the emoji's own.
        emoji = [each for each in read_names(packages) if each.code == each.base]
        wanted = {each.code for each in emoji}
        animations = {
            found.code: found for found in read_animations(packages, wanted=wanted, side=SIDE)
        }
        there = [each for each in emoji if each.code in animations]
        left_out = Counter({"not animated": len(emoji) - len(there)})
        by_split: dict[Split, list[Emoji]] = {
            split: [each for each in there if questions.split_of(each) == split] for split in SPLITS
        }

        def add(name: str, schema: pa.Schema, make: Callable[[], Iterable[Row]]) -> None:
            folder.add(f"{name}.parquet", schema, make, packages)

        mine = by_split["train"]
        add("train/animated", questions.DOCUMENT, lambda: questions.captioned(mine, animations))
        add(
            "train/order",
            questions.DOCUMENT,
            lambda: questions.told(_orders(mine, animations, clips, split="told", seed=seed)),
        )
        for split, some in by_split.items():
            count = clips if split == "train" else max(2, clips // _FEW)
            add(
                f"tasks/clip_name/{split}",
                questions.NAME,
                lambda some=some: questions.named(some, animations, seed=seed),
            )
            add(
                f"tasks/clip_order/{split}",
                questions.ORDER,
                lambda some=some, count=count, split=split: _orders(
                    some, animations, count, split=split, seed=seed
                ),
            )
        some, few = by_split["test"], max(2, clips // _FEW)
        add(
            "tasks/clip_order/one_frame",
            questions.ORDER,
            lambda: questions.ordered_by_one_frame(
                questions.pairs(some, few, split="test", seed=seed), animations, seed=seed
            ),
        )
        tasks = [f"tasks/{name}" for name in TASKS]
        return folder.finish(left_out, tasks=tasks, encoded_by=ENCODED_BY)


def _orders(
    emoji: list[Emoji], animations: Mapping[str, Animation], count: int, *, split: str, seed: int
) -> Iterator[Row]:
    drawn = questions.pairs(emoji, count, split=split, seed=seed)
    return questions.ordered(drawn, animations)
