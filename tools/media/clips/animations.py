"""Animated emoji: WebP of Fluent's, which FFmpeg does not read."""

import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from PIL import Image

from tools.media.names import code_of
from tools.packages import npm
from tools.packages.used import Packages
from train.errors import DataError

PACKAGE: Final = "@lobehub/fluent-emoji-anim-1"
VERSION: Final = "1.0.0"
SHA256: Final = "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea"
_FILE: Final = re.compile(r"([0-9A-Fa-f_-]+)\.webp")


@dataclass(frozen=True, kw_only=True)
class Animation:
    """An animated emoji.

    Attributes:
        code: its code points, as `code_of` writes them.
        frames: RGB on white.
        milliseconds: that each is seen.
    """

    code: str
    frames: list[Image.Image]
    milliseconds: list[int]


def read_animations(
    packages: Packages, *, wanted: Collection[str], side: int
) -> Iterator[Animation]:
    """Those that move, in the order of the package; stills are left out.

    Args:
        packages: gives the package.
        wanted: codes of the emoji; others are not decoded.
        side: pixels that height and width get.

    Raises:
        DataError: the package cannot be had, is not what it was, or a file of it cannot be read.
    """
    package = packages.npm(
        PACKAGE, VERSION, licence="MIT", told_in=("package.json", "README.md"), sha256=SHA256
    )
    for name, content in npm.files(package, below="assets"):
        parts = _FILE.fullmatch(name)
        if parts is None or (code := code_of(parts[1])) not in wanted:
            continue
        try:
            found = _decoded(content, code, side)
        except Exception as error:  # Pillow has many kinds
            raise DataError(f"{package}: assets/{name} cannot be read ({error})") from error
        if len(found.frames) > 1:
            yield found


def _decoded(content: bytes, code: str, side: int) -> Animation:
    frames: list[Image.Image] = []
    milliseconds: list[int] = []
    with Image.open(io.BytesIO(content), formats=("WEBP",)) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
            milliseconds.append(int(image.info.get("duration") or 0))
            drawn = image.convert("RGBA")
            ground = Image.new("RGBA", drawn.size, "white")
            frame = Image.alpha_composite(ground, drawn).convert("RGB")
            frames.append(frame.resize((side, side), Image.Resampling.BICUBIC))
    return Animation(code=code, frames=frames, milliseconds=milliseconds)
