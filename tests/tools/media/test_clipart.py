"""Clip art that tells what it shows, of a real Debian package made by hand."""

import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.tools.packages.test_debian import build_package
from tools.media.clipart import read_clipart
from tools.media.rendering import SIDE_PIXELS, UnrenderedError, render
from tools.packages.used import Packages

PUBLIC = "http://web.resource.org/cc/PublicDomain"


def svg(title: str, *tags: str, licence: str = PUBLIC, size: str = '"15pt"') -> bytes:
    listed = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="r" xmlns:cc="c" xmlns:dc="d" '
        f'width={size} height="7.5pt"><metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title>'
        f'{listed}<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>'
        f'<rect width="20" height="10" fill="red"/><!-- {title} {tags} --></svg>'
    ).encode()


def test_what_tells_nothing_is_left_out_by_reason(tmp_path: Path) -> None:
    found = {
        "food/pear_01": svg("A pear &amp; more", "fruit", "hash(0x8a09834)", "", "sweet_pear"),
        "food/pear_02": svg("A pear &amp; more", "fruit", "hash(0x8a09834)", "", "sweet_pear"),
        "icons/gpl": svg("Icon", licence="http://creativecommons.org/licenses/GPL/2.0/"),
        "icons/none": svg("---"),
        "icons/broken": svg("Broken")[:-20],
        **{f"icons/set_{number}": svg("A set", f"tag{number}") for number in range(4)},
    }
    contents = {f"usr/share/openclipart/svg/{name}.svg": svg for name, svg in found.items()}
    contents["usr/share/openclipart/svg/readme.txt"] = b"no drawing"
    contents["usr/share/doc/openclipart-svg/copyright"] = b"Public domain, all of it."
    cache = build_package(tmp_path, "openclipart-svg", contents)
    told: list[str] = []
    given = Packages(cache=cache, report=told.append)
    left_out = Counter[str]()
    [pear] = read_clipart(given, left_out)
    assert (pear.name, pear.title, pear.tags) == (
        "food/pear_01", "A pear & more", ("fruit", "sweet pear"),
    )  # fmt: skip
    assert left_out == {
        "clip art that is there already": 1,
        "clip art of another licence": 1,
        "clip art without a title that names it": 1,
        "clip art that cannot be rendered": 1,
        "clip art with the title of its collection": 4,
    }
    assert given.used[0]["licences"] == ["public domain"]
    assert given.licence_texts == {"openclipart-svg": "Public domain, all of it."}
    assert told == [
        "warning: openclipart-svg is version 1:2.0-1, not the one that this repository was "
        "measured with; its pictures may differ a little"
    ]  # fmt: skip


def test_a_drawing_fills_its_side() -> None:
    with Image.open(io.BytesIO(render(svg("x")))) as image:
        assert image.size == (SIDE_PIXELS, SIDE_PIXELS // 2)


@pytest.mark.parametrize("content", [b"", b"<html/>", b"\xff\xfe", svg("x", size='"0"')])
def test_what_is_no_drawing(content: bytes) -> None:
    with pytest.raises(UnrenderedError, match=r"the drawing cannot be rendered \("):
        render(content)
