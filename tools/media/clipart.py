"""Pictures beyond emoji: Debian's clip art, public domain, with titles inside."""

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tools.media.rendering import UnrenderedError, render
from tools.packages import debian
from tools.packages.used import Packages

PACKAGE: Final = "openclipart-svg"
LICENCE: Final = "public domain"
_ROOT: Final = "usr/share/openclipart/svg/"
_MEASURED_SHA256: Final = "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5"
"""Of 1:0.18+dfsg-19. Mirrors keep the newest version alone, so that another one is a warning."""
_PUBLIC_DOMAIN: Final = re.compile(rb"<cc:license\s+rdf:resource=\"[^\"]*public_?domain\"", re.I)
_TITLE: Final = re.compile(rb"<dc:title[^>]*>\s*([^<]*?)\s*</dc:title>")
_TAG: Final = re.compile(rb"<rdf:li[^>]*>\s*([^<]*?)\s*</rdf:li>")
_WORDS: Final = re.compile(r"[^\W\d_]{2,}")
_MOST_ALIKE: Final = 3
"""A title that more drawings share names their collection, and nothing that one sees."""
_LONGEST_TITLE: Final = 60
_LARGEST_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A picture with a title.

    Attributes:
        name: its path in the package, without suffix.
        title: as its drawer wrote it.
        tags: words that people seek it with; perhaps none.
        picture: PNG.
    """

    name: str
    title: str
    tags: tuple[str, ...]
    picture: bytes


def read_clipart(packages: Packages, left_out: Counter[str]) -> Iterator[Clip]:
    """The drawings that tell what they show, by path.

    Args:
        packages: gives the package.
        left_out: counts the others by reason.

    Raises:
        DataError: the package cannot be had, or is damaged.
    """
    package = packages.debian(PACKAGE, licences=[LICENCE])
    if packages.used[-1]["sha256"] != _MEASURED_SHA256:
        packages.report(
            f"warning: {PACKAGE} is version {debian.version(package)}, not the one that this "
            "repository was measured with; its pictures may differ a little"
        )
    drawings: dict[str, bytes] = {}
    for path, content in debian.files(package, wanted=lambda path: path.startswith(_ROOT)):
        if path.endswith(".svg"):
            drawings[path.removeprefix(_ROOT).removesuffix(".svg")] = content
    titles = {name: _first(_TITLE, content) for name, content in drawings.items()}
    alike = Counter(title.lower() for title in titles.values())
    seen: set[bytes] = set()
    for name, content in sorted(drawings.items()):
        title = titles[name]
        reason = None
        if not _PUBLIC_DOMAIN.search(content):
            reason = "clip art of another licence"
        elif not _WORDS.search(title) or len(title) > _LONGEST_TITLE:
            reason = "clip art without a title that names it"
        elif alike[title.lower()] > _MOST_ALIKE:
            reason = "clip art with the title of its collection"
        elif len(content) > _LARGEST_BYTES:
            reason = "clip art of more than 1 MiB"
        elif content in seen:
            reason = "clip art that is there already"
        if reason is None:
            seen.add(content)
            try:
                picture = render(content)
            except UnrenderedError:
                reason = "clip art that cannot be rendered"
            else:
                yield Clip(name=name, title=title, tags=_tags(content), picture=picture)
        if reason is not None:
            left_out[reason] += 1


def _first(pattern: re.Pattern[bytes], content: bytes) -> str:
    found = pattern.search(content)
    return "" if found is None else _text(found[1])


def _tags(content: bytes) -> tuple[str, ...]:
    """Each once, in order."""
    found = (_text(tag).replace("_", " ") for tag in _TAG.findall(content))
    return tuple(dict.fromkeys(tag for tag in found if _is_tag(tag)))


def _is_tag(tag: str) -> bool:
    """A word, and no slip of what once exported them, such as `hash(0x8a09834)`."""
    return _WORDS.search(tag) is not None and not tag.startswith("hash")


def _text(content: bytes) -> str:
    return " ".join(html.unescape(content.decode(errors="ignore")).split())
