"""What `inspect`, `stats` and `cost` say about a corpus."""

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.tools.corpus.making import build, documents, passages, picture, sound, write_lines
from tools.corpus import cost, show, stats
from tools.corpus.__main__ import main
from tools.corpus.finished import Corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    (directory / "x.png").write_bytes(picture(side=64))
    (directory / "x.wav").write_bytes(sound())
    special: dict[str, Any] = {
        "name": "mixed",
        "segments": [
            {"text": "for its device", "span": True},
            {"image": "x.png"},
            {"text": "ask \x1b[31mthe\x07 bus", "scored": False},
            {"audio": "x.wav"},
            {"text": "a page\n\nof memory <s>"},
        ],
    }
    rows = [{"text": text, "name": f"n{number}"} for number, text in enumerate(passages(40))]
    source = write_lines(directory / "a.jsonl", [special, *rows])
    return build(
        source, "--id-field=name", "--media", "--licence=a=MIT", out=directory / "out",
        tokenizer=tokenizer,
    )  # fmt: skip


def test_a_document_as_people_read_it(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(corpus), "--id", "a/mixed"]) == 0

    told = capsys.readouterr().out
    head, *body = told.splitlines()
    count = len(documents(corpus)["a/mixed"].tokens)
    assert re.match(
        rf"a/mixed · train \d+, {count} tokens, 1 span of \d+ tokens, 1 image, 1 audio ─", head
    )
    assert body == [
        f"[[for its device]]<image 64x64 PNG, {len(picture(side=64)) / 1000:.1f} kB>",
        "ask ␛[31mthe␇ bus",
        "<audio WAV, 0.2 kB>",
        "a page",
        "of memory <s>",
        "</d>",
        "",
    ]


def test_spans_and_unscored_text_stand_out(corpus: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=200, force_terminal=True, color_system="standard")
    printer = show.Printer(Corpus.at(str(corpus)), "train", console=console)

    printer.print(printer.number_of("a/mixed"))

    styled = screen.getvalue()
    assert "\x1b[2;36m[[\x1b[0m\x1b[2;36mfor its device\x1b[0m\x1b[2;36m]]" in styled
    assert "\x1b[2mask " in styled
    assert "\x1b[35m<image 64x64 PNG" in styled
    assert "\na page" in styled, "what is scored is plain"


def test_which_documents_are_shown(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def heads(*arguments: str) -> list[str]:
        capsys.readouterr()
        assert main(["inspect", str(corpus), *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.split(",")[0] for line in lines if " · " in line]

    assert heads() == heads("--number", "0")
    drawn = heads("--random", "4", "--seed", "3")
    assert len(set(drawn)) == 4
    assert drawn == heads("--random", "4", "--seed", "3") != heads("--random", "4", "--seed", "4")
    assert len(heads("--split", "validation", "--random", "99")) < 20
    for arguments, reason in (
        (["--split", "test"], "has no split test; it has train, validation"),
        (["--number", "999"], "train has samples 0 to"),
        (["--random", "-1"], "--random: '-1': give a whole number from 1 on"),
        (["--id", "none"], "has no document none in train"),
    ):
        assert main(["inspect", str(corpus), *arguments]) == 2
        assert reason in capsys.readouterr().err


def test_the_page(corpus: Path, tmp_path: Path) -> None:
    assert main(["stats", str(corpus), "--out", str(tmp_path / "deep/stats.html")]) == 0

    page = (tmp_path / "deep/stats.html").read_text()
    assert "http" not in page.replace("http-equiv", ""), "it needs no network"
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    titles = ["Documents by length, tokens", "Tokens by source", "Expected padding"]
    for told in (*titles, "Documents by number of text spans", "Spans of image", "MIT"):
        assert told in page
    lengths = [document.lengths() for document in documents(corpus).values()]
    assert f"{sum(row[0] for row in lengths) / len(lengths):,.0f}" in page
    assert list(tmp_path.glob("deep/*")) == [tmp_path / "deep/stats.html"]


def test_the_page_reads_no_shard(corpus: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(corpus, tmp_path / "c"))
    for shard in copy.rglob("*.mds"):
        shard.unlink()
    assert main(["stats", str(copy), "--out", str(tmp_path / "s.html")]) == 0


def test_what_a_page_cannot_be_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], corpus: Path
) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "pretraining", "splits": {"train": {}}}')
    assert main(["stats", str(tmp_path)]) == 2
    assert "holds sequences of one length, not documents" in capsys.readouterr().err
    assert main(["stats", str(corpus), "--out", str(corpus / "manifest.json/x.html")]) == 2
    assert "cannot be written; name a file" in capsys.readouterr().err


def test_bars_hold_everything_once() -> None:
    values = np.array([1, 1, 2, 3, 4, 7, 8, 1023, 1024], np.uint32)
    chart = stats._histogram("x", values)
    assert chart is not None
    assert {label: told.split()[0] for label, height, told in chart.bars if height} == {
        "1": "2",
        "2 – 3": "2",
        "4 – 7": "2",
        "8 – 15": "1",
        "512 – 1,023": "1",
        "1,024 – 2,047": "1",
    }
    assert stats._histogram("x", values[:0]) is None


def test_padding_is_what_stays_empty() -> None:
    # Rows of 8: one document of 7 and its opening fill one; 5 and 5 leave 2 slots each.
    def lengths(*tokens: int):
        rows = np.zeros((len(tokens), 6), np.uint32)
        rows[:, 0] = tokens
        return rows

    assert stats.expected_padding(lengths(7, 7), 8) == 0
    assert stats.expected_padding(lengths(3, 3, 3, 3), 8) == 0
    assert stats.expected_padding(lengths(5), 8) == pytest.approx(2 / 8)


def test_cost_is_arithmetic(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = sum(len(d.tokens) for d in documents(corpus).values())
    train = Corpus.at(str(corpus)).manifest.splits["train"]
    assert train.tokens is not None
    assert train.bytes is not None
    assert train.tokens < total
    size = train.bytes

    found = dict(
        cost.cost(
            str(corpus),
            cost.Training(
                tokens=train.tokens * 3.0,
                sequence_tokens=10,
                batch_sequences=7,
                tokens_per_second=train.tokens / 3600,
                hosts=2,
                price_per_gb_month=1e9,
                price_per_gb_egress=2e9,
            ),
        )
    )

    sequences = -(-3 * train.tokens // 10)
    assert found["epochs"] == "3"
    assert found["tokens"] == f"{train.tokens:,}"
    assert found["documents"] == f"{train.documents:,}"
    assert found["sequences of 10"] == f"{sequences:,}"
    assert found["steps of 7"] == f"{-(-sequences // 7):,}"
    assert found["bytes a token"] == f"{size / train.tokens:.2f}"
    assert found["hours"].startswith("3.0 at ")
    assert found["storage a month"] == f"{size:,.2f}"
    assert found["egress"] == f"{4 * size:,.2f}"

    assert main(["cost", str(corpus), "--epochs", "0.5", "--price-per-gb-month", "0.02"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^to download +0\.\d+ MB by 1 host$", told, re.MULTILINE)
    assert re.search(r"^epochs +0\.5$", told, re.MULTILINE)
    assert re.search(r"^storage a month +0\.0+[1-9]\d*$", told, re.MULTILINE)
    assert f"tokens to train on  {train.tokens * 0.5:,.0f}" in told
    assert "hours" not in told
    assert main(["cost", str(corpus), "--sequence-tokens", "0"]) == 2
    assert main(["cost", str(corpus), "--tokens", "nan"]) == 2
    assert "--tokens: 'nan': give a number from 0 on" in capsys.readouterr().err
