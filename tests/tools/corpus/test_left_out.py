"""Nothing that was given is left out of a corpus without being counted and named."""

import json
import os
import socket
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.lab_fixtures import S3Lab
from tests.tools.corpus.making import (
    QUIET,
    build,
    documents,
    passages,
    picture,
    refusal,
    write_lines,
)
from tools.corpus import verify
from tools.corpus.__main__ import main
from tools.corpus.inputs import listing
from tools.lab import s3
from train.errors import DataError

ROWS = [{"text": text} for text in passages(40)]


def left_out(corpus: Path) -> dict[str, set[str]]:
    """What the file beside a corpus names, by reason; its manifest must count the same."""
    path = corpus / "left_out.json"
    found: dict[str, set[str]] = defaultdict(set)
    for row in json.loads(path.read_text()) if path.exists() else ():
        found[row["reason"]].add(row["name"])
    counts = {reason: len(names) for reason, names in found.items()}
    stated: dict[str, int] = {}
    for source in json.loads((corpus / "manifest.json").read_text())["sources"]:
        stated |= source["left_out_files"]
    assert counts == stated
    assert verify.verify(str(corpus), workers=1, console=QUIET) == []
    return dict(found)


def make_tree(root: Path) -> Path:
    """A directory with one of everything."""
    inside, outside = root / "in", root / "elsewhere"
    write_lines(inside / "a.jsonl", ROWS[:10])
    write_lines(outside / "b.jsonl", ROWS[10:20])
    write_lines(outside / "shelf/c.jsonl", ROWS[20:30])
    write_lines(inside / "deep/d.jsonl", ROWS[30:])
    (inside / "b.jsonl").symlink_to("../elsewhere/b.jsonl")
    (inside / "shelf").symlink_to("../elsewhere/shelf")
    (inside / "again.jsonl").symlink_to("deep/d.jsonl")
    os.link(inside / "a.jsonl", inside / "hard.jsonl")
    (inside / "broken.jsonl").symlink_to("nowhere")
    (inside / "self.jsonl").symlink_to("self.jsonl")
    (inside / "deep/loop").symlink_to("..")
    (inside / "shelf2").symlink_to("shelf")
    os.mkfifo(inside / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(inside / "socket.jsonl"))
    (inside / ".git").mkdir()
    (inside / ".git/x.jsonl").write_text("{}")
    (inside / ".hidden.jsonl").write_text("{}")
    (inside / "empty.jsonl").write_text("\n")
    (inside / "empty.csv").write_text("text\n")
    (inside / "paper.pdf").write_text("x")
    (inside / "Makefile").write_text("x")
    Path(os.fsdecode(os.fsencode(inside) + b"/caf\xe9.doc")).write_text("x")
    for name in ("README.md", "README_en.md", "LICENSE_1.txt", "notice-2024.md"):
        (inside / name).write_text("about the tables")
    (inside / "p").mkdir()
    (inside / "p/1.png").write_bytes(picture(1))
    (inside / "p/2.png").write_bytes(picture(2))
    write_lines(inside / "pictures.jsonl", [{"image": "p/1.png", "caption": "a page"}])
    return inside


def test_one_of_everything(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_tree(tmp_path)

    out = build(source, out=tmp_path / "out", tokenizer=tokenizer)
    shown = capsys.readouterr()

    assert len(documents(out)) == 41, "each file once, links too"
    assert left_out(out) == {
        "broken link": {"broken.jsonl", "self.jsonl"},
        "link to a directory that is read already": {"deep/loop/", "shelf2/"},
        "link to a file that is read already": {"deep/d.jsonl", "hard.jsonl"},
        "no regular file": {"pipe.jsonl", "socket.jsonl"},
        "hidden": {".git/", ".hidden.jsonl"},
        "empty": {"empty.csv", "empty.jsonl"},
        ".pdf": {"paper.pdf"},
        ".doc": {"caf\\xe9.doc"},
        "no suffix": {"Makefile"},
        "description of a table": {"README.md", "README_en.md", "LICENSE_1.txt", "notice-2024.md"},
        "named by no row": {"p/2.png"},
    }
    assert ".pdf: 1 file, paper.pdf" in shown.err, "told before the work begins"
    line = "left out of in: 1 file (.doc), 1 file (.pdf), 2 files (broken link)"
    assert line in shown.out
    assert main(["verify", str(out), "--workers", "1"]) == 0
    assert line in capsys.readouterr().out
    assert main(["inspect", str(out)]) == 0
    assert line in capsys.readouterr().err


def test_prose_takes_and_leaves_the_same(tmp_path: Path, tokenizer: Path) -> None:
    inside = tmp_path / "in"
    (tmp_path / "elsewhere").mkdir()
    inside.mkdir()
    text = "A driver asks the bus for its device, and the kernel maps a page of memory."
    (inside / "a.rst").write_text(text)
    (tmp_path / "elsewhere/b.txt").write_text(text + " So it is.")
    (inside / "there").symlink_to("../elsewhere")
    (inside / "again.rst").symlink_to("a.rst")
    (inside / "broken.md").symlink_to("nowhere")
    (inside / "loop").symlink_to(".")
    (inside / ".hidden.md").write_text(text)
    (inside / "table.md").write_text("| 1 |")
    (inside / "paper.pdf").write_text("x")

    out = build(f"prose:{inside}", "--validation=0", out=tmp_path / "out", tokenizer=tokenizer)

    assert set(documents(out)) == {"in/a.rst", "in/there/b.txt"}
    assert left_out(out) == {
        "broken link": {"in/broken.md"},
        "link to a directory that is read already": {"in/loop/"},
        "link to a file that is read already": {"in/again.rst"},
        "hidden": {"in/.hidden.md"},
        "no prose": {"in/table.md"},
        ".pdf": {"in/paper.pdf"},
    }


def test_a_snapshot_of_links(tmp_path: Path, tokenizer: Path) -> None:
    """As the cache of Hugging Face keeps data sets."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/0a1b"
    files = {"data/train.jsonl": ROWS[:20], "data/test.jsonl": ROWS[20:]}
    for number, (name, rows) in enumerate(files.items()):
        write_lines(blobs / str(number), rows)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blobs / str(number))
    (blobs / "readme").write_text("about it")
    (snapshot / "README.md").symlink_to(blobs / "readme")

    out = build(snapshot, out=tmp_path / "out", tokenizer=tokenizer)

    assert {name.split(":")[0] for name in documents(out)} == {
        "0a1b/data/test.jsonl",
        "0a1b/data/train.jsonl",
    }
    assert left_out(out) == {"description of a table": {"README.md"}}


def test_a_text_of_two_pictures_is_read_with_both(tmp_path: Path, tokenizer: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    for number in (1, 2):
        (inside / f"{number}.png").write_bytes(picture(number))
        (inside / f"again{number}.png").symlink_to(f"{number}.png")
    (inside / "1.txt").write_text("a page")
    (inside / "2.txt").symlink_to("1.txt")
    (inside / "again1.txt").symlink_to("1.txt")
    (inside / "again2.txt").write_text("of memory")

    out = build(inside, "--validation=0", out=tmp_path / "out", tokenizer=tokenizer)

    assert set(documents(out)) == {"in/1.png", "in/2.png", "in/again2.png"}
    assert left_out(out) == {"link to a file that is read already": {"again1.png"}}


@pytest.mark.parametrize(
    ("pattern", "kept", "reasons"),
    [
        ("*.jsonl", 31, {"broken link", "no regular file", "empty",
                         "link to a file that is read already"}),
        ("**/*.jsonl", 41, {"broken link", "no regular file", "empty",
                            "link to a file that is read already"}),
        ("deep/**", 41, {"link to a directory that is read already"}),
        ("*", 31, {"directory, whose files end the pattern with **", ".pdf"}),
        (".g*/*.jsonl", 1, set()),
    ],
)  # fmt: skip
def test_patterns(
    pattern: str, kept: int, reasons: set[str], tmp_path: Path, tokenizer: Path
) -> None:
    inside = make_tree(tmp_path)
    (inside / ".git/x.jsonl").write_text('{"text": "a hidden row"}\n')

    out = build(
        f"{inside}/{pattern}", "--validation=0", out=tmp_path / "out",
        tokenizer=tokenizer,
    )  # fmt: skip

    assert len(documents(out)) == kept
    assert reasons <= set(left_out(out))


PATTERNS = [
    *("[^b]", "[!b]", "[z-a]", "[!z-a]", "[\\]", "[]", "[]]", "[]a]", "[!]", "[!]a]", "["),
    *("[[:alpha:]]", "[[-\\]", "[a-]", "[--a]", "[a&&b]", "[a~~b]", "[+-9]*", "a[!c]b", "a[+-9]b"),
    *("[a", "[*]", "?[a/b]", "[!a/b]", "?", "*]", "[^]", "[!^]", "z[!a]", "[a-b-z]*"),
]  # fmt: skip


def test_brackets_mean_the_same_with_and_without_asterisks(tmp_path: Path) -> None:
    for name in ("b", "c", *"^![]-\\&~:", "[]", "[a", "a/b", "x[a/b]", "a]", ":]", "z\n", "[!"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        try:
            names = [file.name for file in listing(f"{tmp_path}/{pattern}").files]
        except DataError:
            return []
        depth = pattern.removeprefix("**/").count("/")
        return [name for name in names if name.count("/") == depth]

    for pattern in PATTERNS:
        assert found(f"**/{pattern}") == found(pattern), pattern
    assert found("[^b]") == ["^", "b"], "as in glob"


@pytest.mark.parametrize("kind", ["", "prose:"])
def test_a_name_that_is_not_utf_8(
    kind: str, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in"))
    directory.mkdir()
    Path(os.fsdecode(os.fsencode(directory) + b"/caf\xe9.txt")).write_text("a page of memory")

    told = refusal(capsys, f"{kind}{directory}", out=tmp_path / "out", tokenizer=tokenizer)
    assert "caf\\xe9.txt is not UTF-8; rename it" in told

    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    Path(odd).mkdir()
    fine = tmp_path / "fine"
    fine.mkdir()
    (fine / "a.txt").write_text("a page of memory")
    for arguments in ((odd, tmp_path / "out"), (fine, odd)):
        told = refusal(capsys, f"{kind}{arguments[0]}", out=arguments[1], tokenizer=tokenizer)
        assert "\\xff is not UTF-8; rename it" in told


def test_sources_of_one_name(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("A page of memory that the kernel maps for the device.")
    sources = (f"prose:{tmp_path}/notes", tmp_path / "notes")

    told = refusal(capsys, *sources, out=tmp_path / "out", tokenizer=tokenizer)
    assert "Two sources are called notes" in told

    sources = (sources[0], f"other={tmp_path}/notes")
    out = build(*sources, "--validation=0", out=tmp_path / "out", tokenizer=tokenizer)
    assert set(documents(out)) == {"notes/a.txt", "other/a.txt"}


def test_sources_of_which_nothing_is_read(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (name, reason) in enumerate({
        ".hidden.txt": "holds no files that can be read (hidden: 1 file, .hidden.txt)",
        "a.pdf": "nothing that documents can be made of (.pdf: 1 file, a.pdf)",
        "a.jsonl": "No document is left",
    }.items()):  # fmt: skip
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/{name}").touch()
        source = tmp_path / f"{number}"
        assert reason in refusal(capsys, source, out=tmp_path / "out", tokenizer=tokenizer)
    os.mkfifo(tmp_path / "pipe.txt")
    told = refusal(capsys, tmp_path / "pipe.txt", out=tmp_path / "out", tokenizer=tokenizer)
    assert "is neither a file nor a directory" in told


def test_a_corpus_inside_its_source(tmp_path: Path, tokenizer: Path) -> None:
    source = make_tree(tmp_path)
    first = build(source, out=source / "out", tokenizer=tokenizer)
    manifest = (first / "manifest.json").read_bytes()
    build(source, out=source / "out", tokenizer=tokenizer)  # it is built already
    second = build(source, out=tmp_path / "out", tokenizer=tokenizer)
    assert (first / "manifest.json").read_bytes() == manifest
    assert len(documents(first)) == len(documents(second)) == 41


def test_hidden_files_that_are_asked_for(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / ".a.jsonl", ROWS)
    out = build(source, out=tmp_path / "out", tokenizer=tokenizer)
    assert len(documents(out)) == len(ROWS)


DAMAGES: dict[str, tuple[str, Any, str]] = {
    "a name is gone": ("left_out.json", lambda text: "[\n" + text.split("\n", 2)[2],
                       "names 0 files of"),
    "another name": ("left_out.json", lambda text: text.replace(".pdf", ".pdx"),
                     "is not the file that was built"),
    "the file is gone": ("left_out.json", None, "names 0 files of"),
    "no JSON": ("left_out.json", lambda text: "{" + text, "is damaged: it is not JSON"),
    "records": ("manifest.json", lambda text: text.replace('"records": 4', '"records": 5'),
                "records were read, but"),
    "counts": ("manifest.json", lambda text: text.replace('".pdf": 1', '".pdf": 2'),
               "names 1 files of in (.pdf), and the manifest counts 2"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_knows_what_was_given(damage: str, tmp_path: Path, tokenizer: Path) -> None:
    out = build(make_tree(tmp_path), out=tmp_path / "out", tokenizer=tokenizer)
    name, change, reason = DAMAGES[damage]
    for path in [place for place in out.rglob(name) if place.is_file()]:
        if change is None:
            path.unlink()
        else:
            before = path.read_text()
            path.write_text(change(before))
            assert path.read_text() != before

    faults = verify.verify(str(out), workers=1, console=QUIET)

    assert any(reason in fault for fault in faults), faults


def test_object_storage(
    s3_lab: S3Lab, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_lab.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = write_lines(tmp_path / "a.jsonl", ROWS).read_bytes()
    for key, content in {
        "given/": b"", "given/sub/": b"", "given/a.jsonl": rows, "given/empty.jsonl": b"",
        "given/.git/1.jsonl": b"x", "given/.git/2.jsonl": b"x", "given/.x": b"x",
        "given/sub/a.pdf": b"x", "given/sub_$folder$": b"",
    }.items():  # fmt: skip
        s3.client(s3_lab.environment).put_object(Bucket=s3_lab.bucket, Key=key, Body=content)

    source = f"s3://{s3_lab.bucket}/given"
    out = build(source, out=tmp_path / "out", tokenizer=tokenizer)

    assert len(documents(out)) == len(ROWS)
    assert left_out(out) == {
        "hidden": {".git/", ".x"},
        ".pdf": {"sub/a.pdf"},
        "no suffix": {"sub_$folder$"},
        "empty": {"empty.jsonl"},
    }

    for key in ("docs/a.rst", "docs/sub/b.md", "docs/.c.md", "docs/d.pdf"):
        text = f"The kernel maps {key} and a page of memory for the device."
        s3.client(s3_lab.environment).put_object(Bucket=s3_lab.bucket, Key=key, Body=text.encode())
    source = f"prose:s3://{s3_lab.bucket}/docs"
    out = build(source, "--validation=0", out=tmp_path / "prose", tokenizer=tokenizer)
    assert set(documents(out)) == {"docs/a.rst", "docs/sub/b.md"}
    assert left_out(out) == {"hidden": {"docs/.c.md"}, ".pdf": {"docs/d.pdf"}}
