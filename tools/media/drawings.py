"""Emoji as four vendors draw them, one of them in two ways; two vendors are held out."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from tools.media.names import code_of
from tools.media.rendering import UnrenderedError, render
from tools.packages import npm
from tools.packages.used import Packages
from train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """Who has drawn emoji, and in which way.

    Attributes:
        name: as files and records call it.
        package: of npm.
        version: of the package.
        sha256: of its archive.
        licence: of the drawings.
        told_in: files of the package that tell their terms.
        below: directory of the drawings in the package.
        is_held_out: whether nothing of it is trained on.
    """

    name: str
    package: str
    version: str
    sha256: str
    licence: str
    told_in: tuple[str, ...]
    below: str
    is_held_out: bool


VENDORS: Final = (
    Vendor(
        name="google",
        package="emoji-datasource-google",
        version="16.0.0",
        sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        licence="Apache-2.0",
        told_in=("LICENSE", "README.md"),
        below="img/google/64",
        is_held_out=False,
    ),
    Vendor(
        name="fluent",
        package="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        licence="MIT",
        told_in=("package.json", "README.md"),
        below="assets",
        is_held_out=False,
    ),
    Vendor(
        name="fluent_flat",
        package="@lobehub/fluent-emoji-flat",
        version="1.1.0",
        sha256="8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147",
        licence="MIT",
        told_in=("package.json", "README.md"),
        below="assets",
        is_held_out=False,
    ),
    Vendor(
        name="twitter",
        package="emoji-datasource-twitter",
        version="16.0.0",
        sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        licence="CC-BY-4.0",
        told_in=("LICENSE", "README.md"),
        below="img/twitter/64",
        is_held_out=True,
    ),
    Vendor(
        name="openmoji",
        package="openmoji",
        version="17.0.0",
        sha256="55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        licence="CC-BY-SA-4.0",
        told_in=("LICENSE.txt",),
        below="color/svg",
        is_held_out=True,
    ),
)

_FILE: Final = re.compile(r"([0-9A-Fa-f_-]+)\.(png|webp|svg)")


def read_drawings(
    vendor: Vendor, packages: Packages, *, wanted: Collection[str]
) -> Mapping[str, bytes]:
    """A vendor's drawings as picture files: as they come, or PNG where they are SVG.

    Args:
        vendor: who has drawn them.
        packages: gives its package.
        wanted: codes of the emoji, as `code_of` writes them; others are not rendered.

    Returns:
        By code, in the order of codes. Not every vendor has all.

    Raises:
        DataError: the package cannot be had, is damaged or not what it was, or a drawing of it
            cannot be rendered.
    """
    package = packages.npm(
        vendor.package,
        vendor.version,
        licence=vendor.licence,
        told_in=vendor.told_in,
        sha256=vendor.sha256,
    )
    found: dict[str, bytes] = {}
    for name, content in npm.files(package, below=vendor.below):
        parts = _FILE.fullmatch(name)
        if parts is None or (code := code_of(parts[1])) not in wanted:
            continue
        try:
            found[code] = render(content) if parts[2] == "svg" else content
        except UnrenderedError as error:
            raise DataError(f"{package}: {vendor.below}/{name}: {error}") from error
    if not found:
        raise DataError(
            f"{package} has no drawing of an emoji in {vendor.below}; delete it, and build again"
        )
    return dict(sorted(found.items()))
