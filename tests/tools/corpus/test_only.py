"""Of tables with rows of many sources, those asked for are read, and the others counted."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from tests.tools.corpus.making import QUIET, build, documents, passages, refusal, write_lines
from tools.corpus import left_out, verify
from tools.corpus.__main__ import main
from train.config import RunConfig
from train.config_files import load
from train.data.store.shards import ShardStore

CONFIG = Path("configs/experiment/metalm_1p3b_pile.yaml")
DROPPED = ("Github", "ArXiv", "PubMed Central")
"""The paper, §3.2."""
NAME = "meta.pile_set_name"


def kept() -> dict[str, str]:
    """The names by which the Pile's rows call the sources, by those of the mixture."""
    lines = re.findall(r"^    (\w+): \{corpus: .*\} +# (.*)$", CONFIG.read_text(), re.M)
    return dict(lines)


def rows() -> list[dict[str, Any]]:
    """Rows as the Pile has them, of all its sources in turn."""
    names = [*kept().values(), *DROPPED]
    texts = passages(6 * len(names))
    return [
        {"text": text, "meta": {"pile_set_name": names[number % len(names)]}}
        for number, text in enumerate(texts)
    ]


def test_the_mixture_is_the_papers() -> None:
    assert len(kept()) == 19
    mixed = load(RunConfig, [str(CONFIG)]).data.mixed
    assert set(mixed) == set(kept())
    assert all(source.corpus == f"data/pile/{name}" for name, source in mixed.items())
    # All the Pile's weights, without the three's: 7.59, 8.96 and 14.40.
    assert sum(source.weights(1)[0] for source in mixed.values()) == pytest.approx(69.05)
    assert not set(DROPPED) & set(kept().values())


def written(path: Path, form: str) -> Path:
    """These rows as a table."""
    if form == "parquet":
        path.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows()), path / "00.parquet")
    elif form == "jsonl":
        write_lines(path / "00.jsonl", rows())
    else:
        path.mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows())
        (path / "00.jsonl.zst").write_bytes(zstd.compress(lines.encode()))
    return path


def contents(corpus: Path) -> set[bytes]:
    """The tokens of all documents."""
    return {document.tokens.tobytes() for document in documents(corpus).values()}


@pytest.mark.parametrize("form", ["parquet", "jsonl", "jsonl.zst"])
def test_rows_of_one_source(tmp_path: Path, tokenizer: Path, form: str) -> None:
    name = "Wikipedia (en)"
    source = written(tmp_path / "pile", form)
    corpus = build(source, f"--only={NAME}={name}", out=tmp_path / "out", tokenizer=tokenizer)
    alone = [row for row in rows() if row["meta"]["pile_set_name"] == name]
    wanted = build(
        write_lines(tmp_path / "alone.jsonl", alone), out=tmp_path / "wanted", tokenizer=tokenizer
    )
    assert len(contents(wanted)) == 6
    assert contents(corpus) == contents(wanted)
    manifest = ShardStore(str(corpus / "train")).manifest
    (record,) = manifest.sources
    assert (record.records, record.passed_over) == (len(rows()), len(rows()) - 6)
    assert left_out.told(manifest) == [
        f"left out of pile: {len(rows()) - 6} records that --only does not ask for"
    ]
    assert verify.verify(str(corpus), workers=1, console=QUIET) == []


def test_either_of_a_field_s_values_and_all_fields(tmp_path: Path, tokenizer: Path) -> None:
    texts = passages(8)
    table = [
        {"text": text, "language": ("en", "fr", "de", "it")[n % 4], "year": n // 4, "a.b": "x"}
        for n, text in enumerate(texts)
    ]
    only = ("--only=language=en", "--only=language=fr", "--only=year=1", "--only=a.b=x")
    source = write_lines(tmp_path / "in.jsonl", table)
    corpus = build(source, *only, "--validation=0", out=tmp_path / "out", tokenizer=tokenizer)
    assert sorted(documents(corpus)) == ["in/in.jsonl:5", "in/in.jsonl:6"]


def test_a_build_with_parts_and_duplicates(tmp_path: Path, tokenizer: Path) -> None:
    # An earlier one that is passed over takes nothing out, in whatever part.
    texts = passages(40)
    table = [{"text": text, "of": of} for text in texts for of in ("a", "b", "b")]
    source = write_lines(tmp_path / "in.jsonl", table)
    flags = ("--only=of=b", "--dedup=exact", "--part-mebibytes=0.002")
    corpus = build(source, *flags, out=tmp_path / "out", tokenizer=tokenizer)
    (record,) = ShardStore(str(corpus / "train")).manifest.sources
    assert (record.documents, record.duplicates_removed, record.passed_over) == (40, 40, 40)
    assert verify.verify(str(corpus), workers=1, console=QUIET) == []


@pytest.mark.parametrize(
    ("only", "row", "told"),
    [
        ("meta", {}, "--only meta is no FIELD=VALUE, such as meta.pile_set_name=FreeLaw"),
        ("=a", {}, "--only =a is no FIELD=VALUE"),
        (
            f"{NAME}=Freelaw",
            {"meta": {"pile_set_name": "FreeLaw"}},
            "for, but FreeLaw: correct",
        ),
        (f"{NAME}=a", {"meta": "a"}, f"there is no `{NAME}` to select it by (it has no object)"),
        (f"{NAME}=a", {"meta": {"b": 1}}, f"there is no `{NAME}` to select it by (it has b)"),
        (f"{NAME}=a", {"meta": {"pile_set_name": {}}}, f"`{NAME}` is a dict, by which --only"),
        (f"{NAME}=a", {"meta": {"pile_set_name": None}}, "for, but null: correct --only."),
        (f"{NAME}=a", {}, f"there is no `{NAME}` to select it by (it has text): correct --only"),
    ],
)
def test_what_cannot_be_asked_for(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tokenizer: Path,
    only: str,
    row: Mapping[str, Any],
    told: str,
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": "one two", **row}])
    error = refusal(capsys, source, f"--only={only}", out=tmp_path / "out", tokenizer=tokenizer)
    assert told in error


def test_truth_is_a_value_and_a_tokenizer_is_trained_on_what_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tokenizer: Path
) -> None:
    table = [{"text": text, "good": n % 2 == 0} for n, text in enumerate(passages(8))]
    source = write_lines(tmp_path / "in.jsonl", table)
    flags = ("--only=good=true", "--validation=0")
    corpus = build(source, *flags, out=tmp_path / "out", tokenizer=tokenizer)
    assert len(documents(corpus)) == 4
    assert main(["build", str(source), str(tmp_path / "none"), "--only", "good=True"]) == 2
    assert "No row has what --only asks for, but false, true" in capsys.readouterr().err


def test_documentation_has_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "nowhere", "--only", "a=b"]) == 2
    assert "documentation has no rows: leave out --only" in capsys.readouterr().err
