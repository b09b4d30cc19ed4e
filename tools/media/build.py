"""Builds all that there is of one kind: `images`."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import PIL
import pyarrow as pa

from tools.media import questions
from tools.media.clipart import read_clipart
from tools.media.drawings import VENDORS, Vendor, read_drawings
from tools.media.folder import Folder, Row
from tools.media.names import Emoji, read_names
from tools.media.rendering import renderer
from tools.media.scenes import Composer, Scene, things
from tools.packages.used import Packages

FORMAT_VERSION: Final = 4
TASKS: Final = ("picture_name", "scene_count", "scene_place")
"""Of which `configs/task/pictures` has a file for each vendor that is held out."""
_HELD_OUT_OF: Final = 10
"""One scene is made for validation, and for each vendor that is held out, for so many to train."""


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What a vendor has drawn.

    Attributes:
        vendor: who.
        drawings: picture files by code.
        composer: composes scenes of them.
    """

    vendor: Vendor
    drawings: Mapping[str, bytes]
    composer: Composer


@dataclass(frozen=True, kw_only=True)
class _Output:
    """A file to write: its path in the folder, its columns, and what gives its records."""

    name: str
    schema: pa.Schema
    make: Callable[[], Iterable[Row]]


def build_images(
    out: Path, packages: Packages, *, seed: int, scenes: int, has_clipart: bool
) -> dict[str, Any]:
    """Build pictures with names, scenes, and tasks of both, unless they are there.

    Args:
        out: directory; what was begun in it goes on.
        packages: what they are made of.
        seed: of what is drawn.
        scenes: of training, of counting and of places each.
        has_clipart: whether Debian's clip art is among them.

    Returns:
        The manifest.

    Raises:
        DataError: a package cannot be had or is not what it was; or the directory holds something
            else.
        InUseError: another process builds there.
        StorageError: it cannot be written.
    """
    asked = {"kind": "images", "seed": seed, "scenes": scenes, "clip_art": has_clipart}
    folder = Folder(out, {"format_version": FORMAT_VERSION, **asked})
    if folder.manifest is not None:
        return folder.manifest
    made_by = {"rendered_by": renderer(), "composed_by": f"Pillow {PIL.__version__}"}
    with folder.writing():
        emoji = read_names(packages)
        drawn = _drawn(emoji, packages, seed)
        left_out = Counter(
            {
                f"not drawn by {each.vendor.name}": sum(
                    one.code == one.base and one.code not in each.drawings for one in emoji
                )
                for each in drawn
            }
        )
        for output in _documents(emoji, drawn, scenes):
            folder.add(output.name, output.schema, output.make, packages)
        for output in chain(_names(emoji, drawn, seed), _scenes(drawn, scenes)):
            make = partial(_mixed, output.make)
            folder.add(output.name, output.schema, make, packages)
        if has_clipart:
            folder.add(
                "train/openclipart.parquet",
                questions.DOCUMENT,
                lambda: questions.clips(read_clipart(packages, left_out)),
                packages,
                left_out,
            )
        return folder.finish(left_out, tasks=[f"tasks/{name}" for name in TASKS], **made_by)


def _drawn(emoji: Sequence[Emoji], packages: Packages, seed: int) -> list[_Drawn]:
    """What each vendor has drawn; of those held out without skin tones, which nothing asks for."""
    found: list[tuple[Vendor, Mapping[str, bytes]]] = []
    for vendor in VENDORS:
        wanted = {each.code for each in emoji if not vendor.is_held_out or each.code == each.base}
        found.append((vendor, read_drawings(vendor, packages, wanted=wanted)))
    shown = things(emoji, [drawings for _, drawings in found])
    return [
        _Drawn(
            vendor=vendor,
            drawings=drawings,
            composer=Composer(vendor.name, shown, drawings, seed=seed),
        )
        for vendor, drawings in found
    ]


def _documents(emoji: Sequence[Emoji], drawn: Sequence[_Drawn], scenes: int) -> Iterator[_Output]:
    """For corpora: what is trained on, and the pictures of those held out."""
    for each in drawn:
        name, drawings = each.vendor.name, each.drawings
        there = [one for one in emoji if one.code in drawings]
        if not each.vendor.is_held_out:
            there = [one for one in there if not questions.is_validation(name, one)]
        for suffix, some in (
            ("", [one for one in there if one.code == one.base]),
            ("_tones", [one for one in there if one.code != one.base]),
        ):
            if some:
                directory = "held_out" if each.vendor.is_held_out else "train"
                yield _documents_of(f"{directory}/emoji_{name}{suffix}", name, some, drawings)
    trained = [each for each in drawn if not each.vendor.is_held_out]
    yield _Output(
        name="train/scenes.parquet",
        schema=questions.DOCUMENT,
        make=lambda: chain.from_iterable(
            questions.told(some, purpose)
            for each, count in _shared(trained, scenes)
            for purpose, some in (
                ("count", each.composer.counted("told", count)),
                ("place", each.composer.placed("told", count)),
            )
        ),
    )


def _documents_of(
    name: str, vendor: str, emoji: Sequence[Emoji], drawings: Mapping[str, bytes]
) -> _Output:
    return _Output(
        name=f"{name}.parquet",
        schema=questions.DOCUMENT,
        make=lambda: questions.captioned(vendor, emoji, drawings),
    )


def _names(emoji: Sequence[Emoji], drawn: Sequence[_Drawn], seed: int) -> Iterator[_Output]:
    """What is to be named among twenty: all vendors' drawings without skin tones."""
    bases = [each for each in emoji if each.code == each.base]

    def asked(some: Sequence[_Drawn], wanted: Callable[[str, Emoji], bool]) -> Iterator[Row]:
        for each in some:
            name = each.vendor.name
            those = {
                one.code: each.drawings[one.code]
                for one in bases
                if one.code in each.drawings and wanted(name, one)
            }
            yield from questions.named(name, bases, those, seed=seed)

    trained = [each for each in drawn if not each.vendor.is_held_out]
    splits: dict[str, Callable[[], Iterable[Row]]] = {
        "train": lambda: asked(trained, lambda name, one: not questions.is_validation(name, one)),
        "validation": lambda: asked(trained, questions.is_validation),
    }
    for each in drawn:
        if each.vendor.is_held_out:
            splits[each.vendor.name] = lambda each=each: asked([each], lambda *_: True)
    for split, make in splits.items():
        yield _Output(name=f"tasks/picture_name/{split}.parquet", schema=questions.NAME, make=make)


def _scenes(drawn: Sequence[_Drawn], scenes: int) -> Iterator[_Output]:
    """What is to be counted, and where things are."""
    trained = [each for each in drawn if not each.vendor.is_held_out]
    few = max(1, scenes // _HELD_OUT_OF)
    splits = {"train": _shared(trained, scenes), "validation": _shared(trained, few)}
    splits |= {each.vendor.name: [(each, few)] for each in drawn if each.vendor.is_held_out}
    for task, schema, compose, ask in (
        ("scene_count", questions.COUNT, Composer.counted, questions.counted),
        ("scene_place", questions.PLACE, Composer.placed, questions.placed),
    ):
        for split, composers in splits.items():

            def make(
                composers: Sequence[tuple[_Drawn, int]] = composers,
                split: str = split,
                compose: Callable[[Composer, str, int], Iterator[Scene]] = compose,
                ask: Callable[[Iterable[Scene]], Iterator[Row]] = ask,
            ) -> Iterator[Row]:
                for each, count in composers:
                    yield from ask(compose(each.composer, split, count))

            yield _Output(name=f"tasks/{task}/{split}.parquet", schema=schema, make=make)


def _mixed(make: Callable[[], Iterable[Row]]) -> list[Row]:
    return questions.mixed(make())


def _shared(drawn: Sequence[_Drawn], count: int) -> list[tuple[_Drawn, int]]:
    """A number spread over vendors, to each nearly the same; each gets one at least."""
    return [(each, max(1, (count + at) // len(drawn))) for at, each in enumerate(drawn)]
