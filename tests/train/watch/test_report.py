"""The report: whole in one file, right in its numbers, safe with any text."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.train.records import run_record, train_record, validation_record
from train.errors import DataError
from train.run_directory import RunDirectory
from train.watch.metrics import (
    BaselineRecord,
    LeftOutRecord,
    Metrics,
    MetricsFile,
    NoteRecord,
    SampleRecord,
    TrainRecord,
)
from train.watch.report import Trouble, format_count, render_report, write_report

HOSTILE = "</script><script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """Collects tags, what they refer to, and the text between them."""

    VOID = frozenset({"meta", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def full_metrics() -> Metrics:
    return Metrics(
        runs=[run_record(), run_record(step=10)],
        train=[train_record(step) for step in range(1, 21)],
        validation=[validation_record(step, 9.0 - 0.1 * step) for step in (0, 10, 20)],
        samples=[SampleRecord(step=step, prompt="The", text=f" {step}") for step in range(1, 21)],
        notes=[NoteRecord(step=5, text="a note")],
        baseline=BaselineRecord(step=0, unigram_entropy=8.25),
    )


def test_the_numbers_are_those_of_the_run() -> None:
    text = Page(render_report(full_metrics(), config="optim:\n  lr: 0.1\n")).text
    for expected in (
        "tiny & small",
        "20 of 20 steps",
        "resumed after step 10",
        "2 ranks, 1 thread each, fp32, on a machine",
        "Validation loss 9.000 → 7.000 nats a token",
        f"Validation perplexity {math.exp(7):,.1f}",
        "Unigram entropy 8.250 the model is 1.25 nats better",
        "Parameters 7.41 M",
        "Tokens seen 20 K 15 K of them scored",
        "Tokens a second 5,000",
        "Training time 0:04",
        "Waiting for data 0.50%",
        "Peak memory 1.50 GiB",
        "Samples step 20 The 20",
        "12 earlier samples",
        "step 5 a note",
        "optim: lr: 0.1",
    ):
        assert expected in text


def test_nothing_is_fetched_from_elsewhere() -> None:
    html = render_report(full_metrics())
    page = Page(html)
    assert page.references == []
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import|fetch\(", html)


def test_charts_say_what_they_show_to_those_who_do_not_see_them() -> None:
    labels = re.findall(r'aria-label="([^"]*)"', render_report(full_metrics()))
    assert len(labels) == 7
    assert "validation from 9 at step 0 to 7 at 20" in labels[0]


def test_any_text_is_only_text() -> None:
    metrics = full_metrics()
    clean = Page(render_report(metrics, config="x")).tags
    metrics.runs[:] = [run_record(step) for step in (0, 10)]
    object.__setattr__(metrics.runs[-1], "name", HOSTILE)
    metrics.samples[-1] = SampleRecord(step=20, prompt=HOSTILE, text=HOSTILE)
    metrics.notes[0] = NoteRecord(step=5, text=HOSTILE)

    page = Page(render_report(metrics, config=HOSTILE))

    assert page.tags == clean
    assert page.text.count(HOSTILE) == 6  # Title twice, prompt, text, note, configuration.


@pytest.mark.parametrize(
    "metrics",
    [
        Metrics(),
        Metrics(runs=[run_record()]),
        Metrics(runs=[run_record()], validation=[validation_record(0, 9.0)]),
        Metrics(runs=[run_record()], train=[train_record(1)]),
        Metrics(train=[train_record(1, first_of_span_loss=None, other_loss=None, loss=math.nan)]),
        Metrics(validation=[validation_record(0, math.nan), validation_record(3, 1e9)]),
        Metrics(train=[train_record(1, step_seconds=0.0, learning_rate=0.0, memory_bytes=0)]),
    ],
)
def test_a_run_that_has_hardly_begun_has_a_report(metrics: Metrics) -> None:
    page = Page(render_report(metrics))
    assert page.open == []
    assert ("No step has been recorded yet." in page.text) == (
        not metrics.train and not metrics.validation
    )


def test_a_long_run_has_a_small_report() -> None:
    train: list[TrainRecord] = [train_record(step) for step in range(1, 50_001)]
    assert len(render_report(Metrics(train=train))) < 500_000


def test_it_lies_in_the_run_directory(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(run_record())
    file.write(train_record(1))
    file.close()
    (tmp_path / "config.yaml").write_text("name: mine\n")

    assert write_report(RunDirectory(tmp_path)) == tmp_path / "report.html"

    assert "name: mine" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "report.html",
    ]


def test_a_directory_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is this the directory of a run"):
        write_report(RunDirectory(tmp_path))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0"), (999, "999"), (1000, "1 K"), (7_412_345, "7.41 M"), (1_339_700_000, "1.34 B")],
)
def test_counts_are_short(count: int, expected: str) -> None:
    assert format_count(count) == expected


def test_sources_have_a_chart_of_their_own() -> None:
    metrics = full_metrics()
    assert "loss by source" not in Page(render_report(metrics)).text
    metrics.validation[:] = [
        validation_record(step=step, by_source={"books": 5.0 - step / 10, HOSTILE: 4.0})
        for step in (0, 10)
    ]
    page = Page(render_report(metrics))
    assert "Validation loss by source, nats a token" in page.text
    assert "Training loss by source" not in page.text
    assert "books" in page.text
    metrics.train[:] = [train_record(step=s, by_source={"news": 4.0, "wiki": 3.0}) for s in (1, 9)]
    page = Page(render_report(metrics))
    assert "Training loss by source, smoothed, nats a token" in page.text
    assert "news" in page.text
    assert "<script>alert" not in render_report(metrics)


def test_what_went_wrong_stands_first() -> None:
    metrics = full_metrics()
    left_out = [(5, "spike"), (6, "spike"), (9, "not finite")]
    metrics.left_out.extend(LeftOutRecord(step=step, reason=why) for step, why in left_out)
    trouble = Trouble(12, "dead: rank 3 on node2", "start 1: rank 3 on node2 was killed")
    html = render_report(metrics, troubles=[trouble])
    text = Page(html).text
    for expected in (
        "5 left out: spike steps 5 to 6 count for nothing",
        "9 left out: not finite step 9 counts for nothing",
        "12 dead: rank 3 on node2 start 1: rank 3 on node2 was killed",
        "went wrong",
    ):
        assert expected in text
    assert text.index("What went wrong") < text.index("Loss, nats a token")
    # Four steps, in every chart.
    assert html.count('class="mark bad"') == 4 * html.count("<figure")
    assert "What went wrong" not in Page(render_report(full_metrics())).text
