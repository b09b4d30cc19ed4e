"""What is wrong with a source is told with its file and line, or counted and left out."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import clips
from tests.tools.corpus.making import (
    build,
    documents,
    passages,
    picture,
    refusal,
    video,
    write_lines,
)

GOOD = [json.dumps({"text": text}) for text in passages(40)]
GOOD_ROWS = [{"text": text} for text in passages(30)]


def put(directory: Path, name: str, content: bytes | str) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


BAD_LINES = {
    "not JSON": ("{", "not JSON (Expecting property name"),
    "not UTF-8": ('{"text": "\xff"}', "not JSON ('utf-8' codec can't decode"),
    "a list": ("[1]", "a JSON list, not an object"),
    "no text": ('{"txt": "a"}', "there is no `text` (it has txt; --text-field names another)"),
    "null text": ('{"text": null, "a": 1}', "there is no `text` (it is null)"),
    "a number": ('{"text": 3}', "`text` is int, not text"),
    "empty": ('{"text": " \\n\\n "}', "the document is empty"),
    "surrogate": ('{"text": "\\ud800"}', "`text` holds half a character"),
    "segments no list": ('{"segments": 1}', "`segments` is no list"),
    "no segments": ('{"segments": []}', "the document is empty"),
    "odd segment": ('{"segments": ["a"]}', "segments[0] is no object"),
    "unknown key": ('{"segments": [{"txt": "a"}]}', "segments[0] has `txt`; known are"),
    "two contents": ('{"segments": [{"text": "a", "image": "b"}]}', "segments[0] must have one of"),
    "odd flag": ('{"segments": [{"text": "a", "span": 1}]}', "`span` is neither true nor false"),
    "scored image": (
        '{"segments": [{"image": "a.png", "scored": true}]}',
        "image is always a span, never scored",
    ),
    "image that ends": (
        '{"segments": [{"image": "a.png", "ends_paragraph": true}]}',
        "image is always a span, never scored, and ends no paragraph",
    ),
    "leaves": ('{"image": "../a.png", "text": "a"}', "the path '../a.png' does not lie beside"),
    "missing image": ('{"image": "none.png", "text": "a"}', "There is no file"),
    "image is text": ('{"image": "a.jsonl", "text": "a"}', "the image cannot be read"),
    "no caption": ('{"image": "a.jsonl"}', "there is no `text` or `caption`"),
    "odd image": ('{"image": 3, "text": "a"}', "`image` is neither a path nor bytes"),
    "no path": ('{"image": "a\\u0000.png", "text": "a"}', "cannot be that of a file"),
    "half a path": ('{"image": "\\ud800.png", "text": "a"}', "cannot be that of a file"),
    "a key twice": ('{"text": "a", "text": "b"}', "`text` stands in it twice"),
    "spelled otherwise": ('{"text": "a", "te\\u0078t": "b"}', "`text` stands in it twice"),
    "twice inside": ('{"segments": [{"text": "a", "text": "b"}]}', "`text` stands in it twice"),
    "half a key": (
        '{"\\udce9": "a"}',
        "there is no `text` (it has \\udce9; --text-field names another)",
    ),
    "UTF-16": ('{"text": "a"}'.encode("utf-16").decode("latin-1"), "not JSON ("),
    "too deep": ('{"text": ' + "[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line(
    kind: str, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, reason = BAD_LINES[kind]
    lines = [*(text.encode() for text in GOOD[:7]), line.encode("latin-1"), GOOD[8].encode()]
    source = put(tmp_path, "in/a.jsonl", b"\n".join(lines) + b"\n")

    told = refusal(capsys, source, out=tmp_path / "out", tokenizer=tokenizer)

    assert told.startswith(f"{source}:8: ")
    assert reason in told
    assert "--skip-bad" in told
    assert told.count("\n") == 1


def test_bad_lines_are_left_out_and_listed_up_to_a_number(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = put(tmp_path, "a.jsonl", "\n".join([*GOOD[:20], "{", *GOOD[20:], '{"text": ""}']))
    cut = "--part-mebibytes=0.002"

    told = refusal(capsys, source, cut, "--skip-bad=1", out=tmp_path / "out", tokenizer=tokenizer)
    assert "More than 1 documents are bad" in told
    assert f"{source}:21: not JSON" in told
    assert f"{source}:42: the document is empty" in told

    # The same place: how much may be skipped is no other corpus.
    out = build(source, cut, "--skip-bad=2", out=tmp_path / "out", tokenizer=tokenizer)
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(documents(out)) == 40
    assert [text.split(": ")[0] for text in manifest["skipped"]] == [f"{source}:21", f"{source}:42"]
    assert manifest["sources"][0]["skipped"] == 2
    assert f"skipped {source}:21: not JSON" in capsys.readouterr().err


def test_files_that_cannot_be_read(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "\n".join(GOOD * 50).encode()
    parquet = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pylist(GOOD_ROWS), parquet)
    zst = pa.compress(lines, codec="zstd", asbytes=True)
    null = tmp_path / "null"
    pq.write_table(pa.table({"text": pa.array([None], pa.string())}), null)
    cases = {
        "cut.jsonl.zst": (zst[:-20], "Compressed file ended before"),
        "cut.jsonl.gz": (gzip.compress(lines)[:-20], "Compressed file ended before"),
        "no.jsonl.zst": (b"hello", "decompress"),
        "nothing.jsonl.zst": (b"", "it has 0 bytes, which no sound .zst has"),
        "nothing.json.gz": (b"", "it has 0 bytes, which no sound .gz has"),
        "twice.csv": ("text,text\na,b\n", "`text` names 2 columns"),
        "null.parquet": (null.read_bytes(), "there is no `text` (it is null)"),
        "cut.parquet": (parquet.read_bytes()[:-50], "Parquet magic bytes not found"),
        "empty.parquet": (b"", "Parquet file size is 0 bytes"),
        "short.csv": ("text,b\nx,y\nz\n", "not 2 columns"),
        "open.csv": ('text\n"x', "unexpected end of data"),
    }
    for number, (name, (content, reason)) in enumerate(cases.items()):
        source = put(tmp_path, f"{number}/{name}", content)
        told = refusal(capsys, source, out=tmp_path / f"out{number}", tokenizer=tokenizer)
        assert reason in told
        assert told.startswith(f"{source}:")
        assert told.count("\n") == 1


def test_what_a_truncated_file_held_before_is_kept_if_asked(
    tmp_path: Path, tokenizer: Path
) -> None:
    lines = "\n".join(GOOD * 100).encode()
    source = put(tmp_path, "a.jsonl.gz", gzip.compress(lines)[:-20])

    out = build(
        source, "--skip-bad=1", "--shard-mebibytes=1", out=tmp_path / "out", tokenizer=tokenizer
    )

    [skipped] = json.loads((out / "manifest.json").read_text())["skipped"]
    assert len(documents(out)) > 1000
    assert "cannot be read from here on" in skipped


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a page".encode("utf-16"), "is UTF-16, not UTF-8; convert it"),
        ("a\npage".encode("utf-16-le"), "holds a byte of zero in line 1"),
        (b"a\nna\xefve", "is not UTF-8 in line 2"),
        (b"\xed\xa0\x80", "is not UTF-8 in line 1"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "caption", "prose"])
def test_text_that_is_none(
    content: bytes, reason: str, kind: str, tmp_path: Path, tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    put(tmp_path, "in/a.txt", content)
    if kind == "caption":
        put(tmp_path, "in/a.png", picture())
    source = f"prose:{tmp_path}/in" if kind == "prose" else tmp_path / "in"

    told = refusal(capsys, source, out=tmp_path / "out", tokenizer=tokenizer)

    assert f"a.txt {reason}" in told
    assert told.count("\n") == 1


def test_a_parquet_without_the_column(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"body": ["a", "b"]}), tmp_path / "a.parquet")

    told = refusal(capsys, tmp_path / "a.parquet", out=tmp_path / "out", tokenizer=tokenizer)

    assert "there is no column `text` (it has body)" in told
    build(
        tmp_path / "a.parquet",
        "--text-field=body",
        "--validation=0.9",
        out=tmp_path / "two",
        tokenizer=tokenizer,
    )


def test_media_folders_with_something_missing(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "alone": ({"x.png": picture()}, "x.png: there is no text for it"),
        "empty caption": ({"x.png": picture(), "x.txt": " "}, "x.txt is empty"),
        "no picture": ({"x.png": b"GIF87", "x.txt": "a"}, "x.png: the image cannot be read"),
        "cut picture": ({"x.png": picture()[:-20], "x.txt": "a"}, "the image cannot be read"),
        "no sound": ({"x.wav": b"RIFFxxxxAVI ", "x.txt": "a"}, "the audio cannot be read"),
        "no video": ({"x.mp4": b"hello you", "x.txt": "a"}, "the video cannot be read (no format"),
        "cut video": ({"x.mp4": video()[:-9], "x.txt": "a"}, "x.mp4: the video is cut off"),
        "no frames": (
            {"x.webm": clips.with_sound(format="webm"), "x.txt": "a"},
            "the video has sound alone, and no video stream",
        ),
        "nothing": ({"x.webm": b"", "x.txt": "a"}, "the video is empty"),
    }
    for name, (files, reason) in cases.items():
        for file, content in files.items():
            put(tmp_path / name, file, content)
        told = refusal(capsys, tmp_path / name, out=tmp_path / f"{name}.out", tokenizer=tokenizer)
        assert reason in told, name


def test_drawings_beside_texts_are_left_out_and_told(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where none has a text of its name; where one has, the others lack theirs."""
    for number in range(30):
        put(tmp_path / "docs", f"{number}.md", f"page {number}: the bus drives on")
    put(tmp_path / "docs", "drawn/Map.PNG", picture())
    out = build(tmp_path / "docs", out=tmp_path / "out", tokenizer=tokenizer)
    assert ".png without a text of its name" in (out / "left_out.json").read_text()
    assert len(documents(out)) == 30
    put(tmp_path / "docs", "a.png", picture())
    put(tmp_path / "docs", "a.txt", "a page")
    told = refusal(capsys, tmp_path / "docs", out=tmp_path / "two", tokenizer=tokenizer)
    assert "Map.PNG: there is no text for it" in told


def test_a_late_picture_asks_for_media(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "x.png", picture())
    source = write_lines(
        tmp_path / "a.jsonl", [*GOOD_ROWS * 4, {"image": "x.png", "text": "a page"}]
    )

    told = refusal(capsys, source, out=tmp_path / "out", tokenizer=tokenizer)
    assert "a/a.jsonl:121: it has an image, audio or video" in told
    assert "--media" in told

    out = build(source, "--media", out=tmp_path / "two", tokenizer=tokenizer)
    assert documents(out)["a/a.jsonl:121"].payload == picture()


def test_orders_that_make_no_sense(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "a.jsonl", GOOD_ROWS)
    other = write_lines(tmp_path / "b/a.jsonl", GOOD_ROWS)
    put(tmp_path, "pdf/x.pdf", "a")
    put(tmp_path, "no.json", "{}")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "none",), "There is no file or directory"),
        ((tmp_path / "*.nothing",), "holds no files"),
        ((tmp_path / "pdf",), "holds nothing that documents can be made of"),
        ((source, other), "Two sources are called a; give one another name, as in `other="),
        ((source, "--licence=b=MIT"), "--licence names b, but the sources are a"),
        ((source, "--licence=MIT"), "is not of the form name=SPDX"),
        ((source, "--validation=1"), "--validation 1.0 is not a share"),
        ((source, "--validation=0.000001"), "Of 30 documents none falls into validation"),
        ((source, "--workers=0"), "--workers: '0': give a whole number from 1 on"),
        ((source, "--shard-mebibytes=4096"), "--shard-mebibytes"),
        ((source, "--id-field=nr"), "there is no `nr` to call the document by"),
        (
            (source, "--dedup-threshold=2"),
            "--dedup-threshold: '2': give a number above 0 and at most 1",
        ),
        ((source, "--vocabulary=999"), "leave out --vocabulary"),
    ]
    for number, (arguments, reason) in enumerate(cases):
        out = tmp_path / f"out{number}"
        assert reason in refusal(capsys, *arguments, out=out, tokenizer=tokenizer)
    told = refusal(capsys, source, out=tmp_path / "o", tokenizer=tmp_path / "no.json")
    assert "is not a tokenizer.json" in told
    told = refusal(capsys, source, out=tmp_path / "pdf", tokenizer=tokenizer)
    assert "exists and is no corpus" in told
    told = refusal(capsys, source, out=tmp_path / "no.json", tokenizer=tokenizer)
    assert "Cannot use" in told
    told = refusal(capsys, source, out="nowhere://a/b", tokenizer=tokenizer)
    assert "nowhere://a/b is not a place" in told


@pytest.mark.parametrize("size", ["inf", "nan", "-1", "0", "1e-9", "x"])
@pytest.mark.parametrize("flag", ["--shard-mebibytes", "--part-mebibytes"])
def test_sizes_that_make_no_sense(
    flag: str, size: str, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(capsys, tmp_path, f"{flag}={size}", out=tmp_path / "out", tokenizer=tokenizer)
    assert flag in told


def test_ids_that_come_twice(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": text, "nr": number % 35} for number, text in enumerate(passages(40))]
    source = write_lines(tmp_path / "a.jsonl", rows)

    told = refusal(
        capsys, source, "--id-field=nr", "--part-mebibytes=0.002", out=tmp_path / "o",
        tokenizer=tokenizer,
    )  # fmt: skip

    assert "5 documents have the id of another, such as a/0:" in told
    assert not (tmp_path / "o/manifest.json").exists()
