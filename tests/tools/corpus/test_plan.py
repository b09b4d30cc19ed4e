"""How sources are named, found and cut."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.corpus.making import passages, write_lines
from tools.corpus import inputs
from tools.corpus.entries import Entry, Fields
from tools.corpus.plan import BuildPlan, Part, Source, cut, part_size, survey
from tools.corpus.reading import PartReader

FIELDS = Fields()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=40),
    part_bytes=st.integers(1, 900),
    block_bytes=st.integers(2, 500),
    ends_with_newline=st.booleans(),
)
def test_lines_are_cut_whole_and_numbered(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    part_bytes: int,
    block_bytes: int,
    ends_with_newline: bool,
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [b"x" * length for length in lengths]
    content = b"\n".join(lines) + b"\n" * ends_with_newline
    path.write_bytes(content)
    if not content:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "BLOCK_BYTES", block_bytes)
        plan = cut(survey([str(path)], []), part_bytes=part_bytes, has_media=False)

    pieces = [piece for part in plan.parts for piece in part.slices]
    if pieces[0].end is None:
        assert len(pieces) == 1
        return
    bounds = [0, *(piece.end or 0 for piece in pieces)]
    assert bounds[-1] == len(content)
    for piece, begin, end in zip(pieces, bounds[:-1], bounds[1:], strict=True):
        assert piece.begin == begin < end
        assert end == len(content) or content[end - 1 : end] == b"\n"
        assert piece.first_row == content[:begin].count(b"\n") + 1
        # No longer than the size but for the line that reaches it.
        assert content.rfind(b"\n", begin, end - 1) + 1 - begin < part_bytes


def test_row_groups_are_cut_and_numbered(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"text": text} for text in passages(60)])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)

    plan = cut(survey([str(tmp_path / "a.parquet")], []), part_bytes=1500, has_media=False)

    assert len(plan.parts) > 2
    ids = [item.id for part in plan.parts for item in read(plan, part)]
    assert ids == [f"a/a.parquet:{number + 1}" for number in range(60)]


def read(plan: BuildPlan, part: Part) -> Iterator[Entry]:
    bad: list[str] = []
    yield from PartReader(plan=plan, part=part, fields=FIELDS, note_bad=bad.append)
    assert bad == []


def test_what_was_read_is_counted_to_the_end(tmp_path: Path) -> None:
    write_lines(tmp_path / "s/a.jsonl", [{"text": text} for text in passages(50)])
    (tmp_path / "s/b.txt").write_text("the bus")
    plan = cut(survey([str(tmp_path / "s")], []), part_bytes=1 << 20, has_media=False)
    [part] = plan.parts
    told = np.zeros(3, int)

    def report(*numbers: int) -> None:
        nonlocal told
        told += numbers

    reader = PartReader(plan=plan, part=part, fields=FIELDS, report=report)
    counted = [reader.done_bytes for _ in reader]
    assert counted == sorted(counted)
    assert 0 < counted[0] < part.num_bytes / 10
    assert told.tolist() == [part.num_bytes, 51, 0]


def test_names_of_sources(tmp_path: Path) -> None:
    places = (
        "one/a.txt",
        "two/b.txt",
        "wiki.jsonl",
        "year=2020/c.txt",
        "Bücher/d.txt",
        "維基/e.txt",
    )
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text('{"text": "a"}\n')
    given_ = [
        f"{tmp_path}/one",
        f"books={tmp_path}/two/*.txt",
        f"{tmp_path}/wiki.jsonl",
        f"{tmp_path}/year=2020/",
        f"{tmp_path}/Bücher",
        f"{tmp_path}/維基",
        f"日本={tmp_path}/one",
    ]
    names = [source.name for source, _ in survey(given_, [])]
    assert names == ["one", "books", "wiki", "year_2020", "Bücher", "維基", "日本"]
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        # A path that is there is no name and a path.
        [(source, slices)] = survey(["year=2020/c.txt"], [])
    finally:
        os.chdir(before)
    assert (source.name, slices[0].name) == ("c", "c.txt")


def test_patterns_reach_into_directories(tmp_path: Path) -> None:
    for place in ("a/x.txt", "a/deep/y.txt", "b/z.txt", "b/w.md"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("a")
    [(_, slices)] = survey([f"{tmp_path}/**/*.txt"], [])
    assert [piece.name for piece in slices] == ["a/deep/y.txt", "a/x.txt", "b/z.txt"]


def test_parts_grow_with_the_sources() -> None:
    small, large = 1 << 20, 1 << 40
    assert part_size([sized(small)]) == 4 << 20
    assert part_size([sized(large)]) == large // 256


def sized(num_bytes: int) -> Source:
    return Source(
        name="a", path="a", licences=[], kind="text", files=1, bytes=num_bytes, identity="",
        left_out={},
    )  # fmt: skip
