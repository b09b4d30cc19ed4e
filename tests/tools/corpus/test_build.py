"""From sources to documents: what is stored is what the files say."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools.corpus.making import (
    QUIET,
    build,
    documents,
    files_of,
    passages,
    picture,
    sound,
    token_ids,
    video,
    write_lines,
)
from tools.corpus import verify
from tools.corpus.__main__ import main
from tools.corpus.encoding import Encoder
from tools.corpus.entries import Entry
from tools.corpus.tokenizer import CorpusTokenizer
from train.data.document import Document, Kind
from train.data.segments import MediaSegment, TextSegment, paragraphs

ROWS = [{"text": text, "name": f"n{number}"} for number, text in enumerate(passages(40))]


def expected(text: str, tokenizer: CorpusTokenizer) -> list[int]:
    """The stream of a document: each paragraph and `</s>`, after the last one `</d>`."""
    special = tokenizer.special
    encoded = token_ids(tokenizer, text.split("\n\n"))
    return [
        *(token for ids in encoded for token in [*ids, special.paragraph]),
        special.document,
    ]


def write_as(form: str, directory: Path) -> Path:
    """The rows as a file, or files, of a kind."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = directory / f"rows{form}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == ".jsonl":
        path.write_bytes(lines)
    elif form == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif form == ".jsonl.zst":
        path.write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    elif form == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    else:
        path.write_text("text,name\n" + "".join(f'"{r["text"]}",{r["name"]}\n' for r in ROWS))
    return path


@pytest.mark.parametrize("form", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv"])
def test_rows_become_documents(
    form: str, tmp_path: Path, tokenizer: Path, loaded: CorpusTokenizer
) -> None:
    source = write_as(form, tmp_path / "in")

    flags = ("--id-field=name", "--part-mebibytes=0.002")
    out = build(source, *flags, out=tmp_path / "out", tokenizer=tokenizer)

    found = documents(out)
    assert {name: document.tokens.tolist() for name, document in found.items()} == {
        f"rows/n{number}": expected(row["text"], loaded) for number, row in enumerate(ROWS)
    }
    assert all(document.scored.all() for document in found.values())


def test_files_become_documents(tmp_path: Path, tokenizer: Path, loaded: CorpusTokenizer) -> None:
    source = tmp_path / "books"
    for number, text in enumerate(passages(30)):
        path = source / f"shelf{number % 3}" / (f"{number}.md" if number % 2 else f"{number}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("\n\n", "\r\n \t\r\n\r\n"), newline="")
    (source / ".hidden.txt").write_text("not me")
    (source / "notes.pdf").write_text("nor me")

    out = build(source, out=tmp_path / "out", tokenizer=tokenizer)

    found = documents(out)
    assert len(found) == 30
    assert found["books/shelf1/7.md"].tokens.tolist() == expected(passages(30)[7], loaded)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sources"][0]["left_out_files"] == {".pdf": 1, "hidden": 1}


def test_row_numbers_are_lines_whatever_the_parts(tmp_path: Path, tokenizer: Path) -> None:
    lines = [json.dumps({"text": f"number {number}"}) for number in range(60)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines))  # no newline at the end

    whole = build(tmp_path / "a.jsonl", out=tmp_path / "whole", tokenizer=tokenizer)
    cut = build(
        tmp_path / "a.jsonl", "--part-mebibytes=0.0002", out=tmp_path / "cut", tokenizer=tokenizer
    )

    assert len(list(cut.rglob("part-00003*.mds"))) > 0, "it was cut"
    assert set(documents(whole)) == {f"a/a.jsonl:{2 * number + 1}" for number in range(60)}
    assert set(documents(cut)) == set(documents(whole))


def test_instructions_and_interleaved_documents(
    tmp_path: Path, tokenizer: Path, loaded: CorpusTokenizer
) -> None:
    special = loaded.special
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(picture())
    (tmp_path / "in/a.wav").write_bytes(sound())
    row = {
        "segments": [
            {"text": "the kernel\n\nmaps", "span": True},
            {"image": "a.png"},
            {"text": "a page", "scored": False},
            {"text": "of memory\n\nfor the bus"},
            {"audio": "a.wav"},
        ]
    }
    write_lines(tmp_path / "in/rows.jsonl", [row, *ROWS])

    out = build(tmp_path / "in", out=tmp_path / "out", tokenizer=tokenizer)

    document = documents(out)["in/rows.jsonl:1"]
    span, unscored, first, second = token_ids(
        loaded, ["the kernel\n\nmaps", "a page", "of memory", "for the bus"]
    )
    assert document.segments.tolist() == [
        [Kind.TEXT_SPAN, len(span), 0],
        [Kind.IMAGE, len(picture()), 0],
        [Kind.TEXT, len(unscored) + 1, 0],
        [Kind.TEXT, len(first) + len(second) + 2, 1],
        [Kind.AUDIO, len(sound()), 0],
        [Kind.TEXT, 1, 1],
    ]
    end = special.paragraph
    scored = [*first, end, *second, end, special.document]
    assert document.tokens.tolist() == [*span, *unscored, end, *scored]
    assert document.tokens[document.scored].tolist() == scored
    assert document.payload == picture() + sound()
    assert document.lengths()[1:] == (1, len(span), 1, 1, 0)


def test_a_prompt_and_its_answer_are_one_paragraph(
    tmp_path: Path, tokenizer: Path, loaded: CorpusTokenizer
) -> None:
    row = {
        "segments": [
            {"text": "the kernel", "span": True, "ends_paragraph": True},
            {"text": "a page\n\nof", "scored": False, "ends_paragraph": False},
            {"text": " memory"},
        ]
    }
    write_lines(tmp_path / "rows.jsonl", [row, *ROWS])

    out = build(tmp_path / "rows.jsonl", out=tmp_path / "out", tokenizer=tokenizer)

    document = documents(out)["rows/rows.jsonl:1"]
    texts = ["the kernel", "a page", "of", " memory"]
    span, first, second, answer = token_ids(loaded, texts)
    end, last = loaded.special.paragraph, loaded.special.document
    assert document.tokens.tolist() == [
        *(*span, end),
        *(*first, end, *second),
        *(*answer, end, last),
    ]
    assert document.segments.tolist() == [
        [Kind.TEXT_SPAN, len(span), 0],
        [Kind.TEXT, 1, 0],
        [Kind.TEXT, len(first) + 1 + len(second), 0],
        [Kind.TEXT, len(answer) + 2, 1],
    ]


def test_pictures_sound_and_video_with_captions(
    tmp_path: Path, tokenizer: Path, loaded: CorpusTokenizer
) -> None:
    source = tmp_path / "seen"
    source.mkdir()
    payloads = {"a.png": picture(1), "b.jpg": picture(2, kind="JPEG"), "c.wav": sound(),
                "d.mp4": video()}  # fmt: skip
    for name, data in payloads.items():
        (source / name).write_bytes(data)
        (source / name).with_suffix(".txt").write_text(f"the driver of {name}\n")
    write_lines(tmp_path / "text.jsonl", ROWS)

    out = build(source, tmp_path / "text.jsonl", out=tmp_path / "out", tokenizer=tokenizer)

    found = documents(out)
    assert len(found) == len(payloads) + len(ROWS)
    for (name, data), kind in zip(
        payloads.items(), (Kind.IMAGE, Kind.IMAGE, Kind.AUDIO, Kind.VIDEO), strict=True
    ):
        document = found[f"seen/{name}"]
        assert document.payload == data
        assert document.segments[0].tolist() == [kind, len(data), 0]
        assert document.tokens.tolist() == expected(f"the driver of {name}", loaded)
    assert found["text/text.jsonl:1"].payload == b""
    manifest = json.loads((out / "manifest.json").read_text())
    counted = {
        name: sum(split[name] for split in manifest["splits"].values())
        for name in ("image", "audio", "video")
    }
    assert counted == {"image": 2, "audio": 1, "video": 1}


@pytest.mark.parametrize("form", ["paths in csv", "bytes in parquet", "structs in parquet"])
def test_tables_of_pictures(form: str, tmp_path: Path, tokenizer: Path) -> None:
    source = tmp_path / "table"
    (source / "images").mkdir(parents=True)
    pictures = {f"images/{number}.png": picture(number) for number in range(20)}
    if form == "paths in csv":
        for path, data in pictures.items():
            (source / path).write_bytes(data)
        lines = "".join(f"{path},a page of {path}\n" for path in pictures)
        (source / "list.csv").write_text("image,caption\n" + lines)
    else:
        rows = [
            {"image": {"bytes": data, "path": None} if "structs" in form else data, "text": path}
            for path, data in pictures.items()
        ]
        pq.write_table(pa.Table.from_pylist(rows), source / "rows.parquet")

    out = build(source, out=tmp_path / "out", tokenizer=tokenizer)

    stored = sorted(document.payload for document in documents(out).values())
    assert stored == sorted(pictures.values())


def test_the_manifest_says_where_everything_comes_from(tmp_path: Path, tokenizer: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ROWS)
    write_lines(tmp_path / "b.jsonl", [{"text": text} for text in passages(50, seed=1)])

    out = build(
        f"wiki={tmp_path}/a.jsonl",
        tmp_path / "b.jsonl",
        "--licence=wiki=CC-BY-SA-4.0",
        out=tmp_path / "out",
        tokenizer=tokenizer,
    )

    found = documents(out)
    manifest = json.loads((out / "manifest.json").read_text())
    wiki, other = manifest["sources"]
    assert (wiki["name"], wiki["licences"], wiki["kind"]) == ("wiki", ["CC-BY-SA-4.0"], "jsonl")
    assert (other["name"], other["licences"]) == ("b", [])
    assert wiki["bytes"] == (tmp_path / "a.jsonl").stat().st_size
    for source, count in ((wiki, 40), (other, 50)):
        own = [found[name] for name in found if name.startswith(f"{source['name']}/")]
        assert len(own) == source["documents"] == count
        assert source["tokens"] == sum(len(document.tokens) for document in own)
        assert source["tokens"] == sum(split["tokens"] for split in source["splits"].values())
    counts = np.load(out / "token_counts.npy")
    assert counts.sum() == manifest["splits"]["train"]["tokens"]
    assert manifest["kind"] == "documents"
    assert not (out / ".building").exists()
    for split in ("train", "validation"):
        for name in ("manifest.json", "tokenizer.json", "token_counts.npy"):
            assert (out / split / name).read_bytes() == (out / name).read_bytes()


def test_a_document_larger_than_a_shard_is_one_of_its_own(tmp_path: Path, tokenizer: Path) -> None:
    texts = ["the bus " * 1500, *passages(20), "the page " * 1500, "the bus"]
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    flags = ("--shard-mebibytes=0.002", "--validation=0")

    out = build(source, *flags, out=tmp_path / "out", tokenizer=tokenizer)

    assert len(documents(out)) == 23
    index = json.loads((out / "train/index.json").read_text())
    samples = [shard["samples"] for shard in index["shards"]]
    assert samples[0] == 1
    assert min(samples) > 0
    assert verify.verify(str(out), workers=1, console=QUIET) == []


def test_another_source_leaves_the_split_as_it_was(tmp_path: Path, tokenizer: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ROWS)
    write_lines(tmp_path / "b.jsonl", [{"text": text} for text in passages(50, seed=1)])

    alone = build(tmp_path / "a.jsonl", out=tmp_path / "alone", tokenizer=tokenizer)
    both = build(
        tmp_path / "b.jsonl", tmp_path / "a.jsonl", out=tmp_path / "both", tokenizer=tokenizer
    )

    before = {name for name in documents(alone) if name in ids_of(alone / "validation")}
    after = {name for name in ids_of(both / "validation") if name.startswith("a/")}
    assert before == after
    assert 0 < len(before) < 20


def ids_of(split: Path) -> set[str]:
    store = verify.ShardStore(str(split))
    return {store.columns(number)["id"] for number in range(len(store))}


def test_any_number_of_workers_builds_the_same_bytes(
    tmp_path: Path, tokenizer: Path, processes: None
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in passages(300)])
    arguments = (source, "--part-mebibytes=0.005", "--dedup=exact")

    one = build(*arguments, out=tmp_path / "one", tokenizer=tokenizer)
    two = build(*arguments, "--workers=2", out=tmp_path / "two", tokenizer=tokenizer)

    assert len({name.split(".")[0] for name in files_of(one / "train") if "part-" in name}) > 5
    assert files_of(one) == files_of(two)


def test_a_tokenizer_is_trained_where_none_is_given(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", ROWS)
    common = ["--validation", "0.2", "--workers", "1"]

    assert main(["build", str(source), str(tmp_path / "out"), "--vocabulary", "280", *common]) == 0
    assert (
        main(["build", str(source), str(tmp_path / "two"), "--tokenizer-of", str(tmp_path / "out"),
              *common]) == 0
    )  # fmt: skip

    places = (tmp_path / "out", tmp_path / "two")
    first, second = (json.loads((place / "manifest.json").read_text()) for place in places)
    assert first["vocabulary"] == 280
    assert first["tokenizer_sha256"] == second["tokenizer_sha256"]
    assert documents(tmp_path / "out").keys() == documents(tmp_path / "two").keys()
    assert verify.verify(str(tmp_path / "out"), workers=1, console=QUIET) == []


def test_a_tokenizer_that_cuts_does_not_cut_here(
    tmp_path: Path, tokenizer: Path, loaded: CorpusTokenizer
) -> None:
    settings_ = json.loads(tokenizer.read_text())
    settings_["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    (tmp_path / "cutting.json").write_text(json.dumps(settings_))
    source = write_lines(tmp_path / "a.jsonl", ROWS)

    out = build(source, out=tmp_path / "out", tokenizer=tmp_path / "cutting.json")

    assert documents(out)["a/a.jsonl:1"].tokens.tolist() == expected(ROWS[0]["text"], loaded)


PIECES = st.one_of(
    st.builds(
        TextSegment,
        text=st.text(max_size=16),
        is_span=st.booleans(),
        is_scored=st.booleans(),
        ends_paragraph=st.booleans(),
    ),
    st.builds(
        MediaSegment,
        kind=st.sampled_from([Kind.IMAGE, Kind.AUDIO, Kind.VIDEO]),
        data=st.binary(min_size=1, max_size=9),
    ),
)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES, min_size=1, max_size=5))
def test_every_document_says_what_its_pieces_said(
    loaded: CorpusTokenizer, pieces: list[TextSegment | MediaSegment]
) -> None:
    has_text = any(isinstance(p, MediaSegment) or p.text.strip() for p in pieces)
    if not has_text:
        return
    [encoded] = Encoder(loaded, has_media=True)([Entry(id="x", pieces=tuple(pieces))])

    assert hasattr(encoded, "columns"), encoded
    document = Document.from_columns(dict(encoded.columns))  # type: ignore[union-attr]  # asserted above
    assert document.lengths() == encoded.lengths  # type: ignore[union-attr]  # asserted above
    assert document.tokens[-1] == loaded.special.document
    decoded: list[str | bytes] = []
    token = byte = 0
    for kind, size, _ in document.segments.tolist():
        if kind <= Kind.TEXT_SPAN:
            ids = [i for i in document.tokens[token : token + size].tolist() if i > 3]
            token += size
            if ids:
                decoded.append(loaded.tokenizer.decode(ids))
        else:
            decoded.append(document.payload[byte : byte + size])
            byte += size
    wanted = [
        p.data
        if isinstance(p, MediaSegment)
        else p.text
        if p.is_span
        else "".join(paragraphs(p.text))
        for p in pieces
    ]
    assert decoded == [piece for piece in wanted if piece]
