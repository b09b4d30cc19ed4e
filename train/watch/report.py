"""The report of a run: one HTML file that needs nothing beside it."""

import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from pathlib import Path

import jinja2

from train.run_directory import RunDirectory
from train.watch.charts import Chart, Line, draw_chart, smoothed
from train.watch.metrics import (
    GIB_BYTES,
    Metrics,
    TrainRecord,
    ValidationRecord,
    perplexity,
    read_metrics,
)
from train.watch.progress import format_seconds

TABLE_ROWS = 30
"""Most rows of the validation table; the chart has all."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A key number of the run, already formatted."""

    name: str
    value: str
    remark: str = ""


def write_report(directory: RunDirectory, *, out: Path | None = None) -> Path:
    """Writes the report of a run from what it has recorded so far; returns the file.

    Call it on one rank. The run need not be over.

    Args:
        directory: of the run, with its metrics and perhaps its configuration.
        out: file to write; None for `report.html` in the run directory.

    Raises:
        DataError: there is no `metrics.jsonl`, or it is damaged.
    """
    metrics = read_metrics(directory.metrics)
    config = directory.config.read_text(encoding="utf-8") if directory.config.exists() else ""
    out = out or directory.report
    # Written beside and renamed: a browser that reloads never sees half a page.
    partial = out.with_name(out.name + ".partial")
    partial.write_text(render_report(metrics, config=config), encoding="utf-8")
    os.replace(partial, out)
    return out


def render_report(metrics: Metrics, *, config: str = "") -> str:
    """The report as HTML.

    Args:
        metrics: what the run recorded.
        config: resolved configuration as YAML; empty to leave it out.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    stride = math.ceil(len(metrics.validation) / TABLE_ROWS) or 1
    return environment.get_template("report.html.jinja").render(
        title=metrics.runs[-1].name if metrics.runs else "Run",
        facts=_facts(metrics),
        numbers=_key_numbers(metrics),
        charts=_charts(metrics),
        # The last row is always among them.
        validation=[_table_row(record) for record in metrics.validation[::-1][::stride][::-1]],
        samples=metrics.samples[::-1],
        notes=metrics.notes,
        config=config,
    )


def _facts(metrics: Metrics) -> list[str]:
    if not metrics.runs:
        return []
    run = metrics.runs[-1]
    done = max((record.step for record in metrics.train), default=run.step)
    ranks = f"{run.num_ranks} rank{'s' if run.num_ranks > 1 else ''}"
    threads = f"{run.num_threads} thread{'s' if run.num_threads > 1 else ''} each"
    started = datetime.fromtimestamp(metrics.runs[0].started).astimezone()
    resumes = [f"{record.step:,}" for record in metrics.runs if record.step > 0]
    resumed = f", resumed after step {', '.join(resumes)}" if resumes else ""
    return [
        f"{done:,} of {run.total_steps:,} steps, started {started:%-d %B %Y %H:%M %Z}{resumed}",
        f"{ranks}, {threads}, {run.precision}, on {run.machine}",
    ]


def _key_numbers(metrics: Metrics) -> list[Number]:
    numbers = []
    if metrics.validation:
        first, last = metrics.validation[0], metrics.validation[-1]
        value = f"{first.loss:.3f} → {last.loss:.3f}" if first is not last else f"{last.loss:.3f}"
        numbers += [
            Number(name="Validation loss", value=value, remark="nats a token"),
            Number(name="Validation perplexity", value=f"{perplexity(last.loss):,.1f}"),
        ]
    elif metrics.train:
        last_loss = smoothed(_points(metrics.train, lambda r: r.loss))[-1][1]
        numbers.append(
            Number(name="Training loss", value=f"{last_loss:.3f}", remark="nats a token, smoothed")
        )
    if metrics.baseline:
        entropy = metrics.baseline.unigram_entropy
        remark = "what token frequencies alone reach"
        if metrics.validation:
            ahead = entropy - metrics.validation[-1].loss
            remark = f"the model is {abs(ahead):.2f} nats {'better' if ahead > 0 else 'worse'}"
        numbers.append(Number(name="Unigram entropy", value=f"{entropy:.3f}", remark=remark))
    if metrics.runs:
        num_parameters = metrics.runs[-1].num_parameters
        numbers.append(Number(name="Parameters", value=format_count(num_parameters)))
    if metrics.train:
        numbers += _speed_numbers(metrics.train)
    return numbers


def _speed_numbers(train: Sequence[TrainRecord]) -> list[Number]:
    seconds = sum(record.step_seconds for record in train)
    waiting = sum(record.data_wait_seconds for record in train) / max(seconds, 1e-9)
    rate = statistics.median(map(_tokens_per_second, train))
    scored = sum(record.scored_tokens for record in train)
    return [
        Number(
            name="Tokens seen",
            value=format_count(sum(record.tokens for record in train)),
            remark=f"{format_count(scored)} of them scored",
        ),
        Number(name="Tokens a second", value=f"{rate:,.0f}", remark="median, all ranks together"),
        Number(name="Training time", value=format_seconds(seconds)),
        Number(name="Waiting for data", value=f"{waiting:.2%}", remark="of the time in steps"),
        Number(
            name="Peak memory",
            value=f"{max(record.memory_bytes for record in train) / GIB_BYTES:.2f} GiB",
            remark="of rank 0",
        ),
    ]


def _charts(metrics: Metrics) -> list[Chart]:
    train, validation = metrics.train, metrics.validation
    last_step = max((record.step for record in [*train, *validation]), default=0)
    resumes = [record.step for record in metrics.runs if record.step > 0]
    baseline = metrics.baseline

    def chart(title: str, *lines: Line, rule: bool = False, from_zero: bool = False):
        entropy = (baseline.unigram_entropy, "unigram entropy") if rule and baseline else None
        return draw_chart(
            title,
            lines,
            last_step=last_step,
            mark_steps=resumes,
            rule=entropy,
            from_zero=from_zero,
        )

    def line(name: str, style: str, value: Callable[[TrainRecord], float | None]) -> Line:
        return Line(name=name, style=style, points=_points(train, value))

    def smooth(name: str, style: str, value: Callable[[TrainRecord], float | None]) -> Line:
        return Line(name=name, style=style, points=smoothed(_points(train, value)))

    charts = [
        chart(
            "Loss, nats a token",
            line("training, each step", "raw", lambda r: r.loss),
            smooth("training, smoothed", "main", lambda r: r.loss),
            Line(name="validation", style="marked", points=[(r.step, r.loss) for r in validation]),
            rule=True,
        ),
        _by_source(metrics, chart),
        # Without spans the second line would repeat the chart above.
        chart(
            "Training loss by kind of token, smoothed",
            smooth("first token of a span", "other", lambda r: r.first_of_span_loss),
            smooth("other tokens", "main", lambda r: r.other_loss),
        )
        if any(record.first_of_span_loss is not None for record in train)
        else None,
        chart(
            "Learning rate",
            line("learning rate", "main", lambda r: r.learning_rate),
            from_zero=True,
        ),
        chart(
            "Gradient norm, before clipping",
            line("each step", "raw", lambda r: r.gradient_norm),
            smooth("smoothed", "main", lambda r: r.gradient_norm),
            from_zero=True,
        ),
        chart(
            "Tokens a second, all ranks together",
            line("each step", "raw", _tokens_per_second),
            smooth("smoothed", "main", _tokens_per_second),
            from_zero=True,
        ),
        chart(
            "Peak memory of rank 0, GiB",
            line("memory", "main", lambda r: r.memory_bytes / GIB_BYTES),
            from_zero=True,
        ),
        chart(
            "Waiting for data, share of the step",
            line("each step", "raw", _data_wait_fraction),
            smooth("smoothed", "main", _data_wait_fraction),
            from_zero=True,
        ),
    ]
    return [drawn for drawn in charts if drawn is not None]


def _by_source(metrics: Metrics, chart: Callable[..., Chart | None]) -> Chart | None:
    """Validation losses of the sources, where a run mixes several."""
    by_source = [(r.step, r.by_source) for r in metrics.validation if r.by_source is not None]
    if not by_source:
        return None
    lines = [
        Line(
            name=name,
            style=style,
            points=[(step, losses[name]) for step, losses in by_source if name in losses],
        )
        for name, style in zip(by_source[-1][1], cycle(("main", "other", "marked")), strict=False)
    ]
    return chart("Validation loss by source, nats a token", *lines)


def _points(
    train: Sequence[TrainRecord], value: Callable[[TrainRecord], float | None]
) -> list[tuple[float, float]]:
    """One point for each step that has the value; steps without such tokens leave no gap."""
    values = ((record.step, value(record)) for record in train)
    return [(step, number) for step, number in values if number is not None]


def _tokens_per_second(record: TrainRecord) -> float:
    return record.tokens / max(record.step_seconds, 1e-9)


def _data_wait_fraction(record: TrainRecord) -> float:
    return record.data_wait_seconds / max(record.step_seconds, 1e-9)


def _table_row(record: ValidationRecord) -> list[str]:
    losses = (record.first_of_span_loss, record.other_loss)
    return [
        f"{record.step:,}",
        f"{record.loss:.4f}",
        f"{perplexity(record.loss):,.1f}",
        *("–" if loss is None else f"{loss:.4f}" for loss in losses),
    ]


def format_count(count: int) -> str:
    """A count to three digits with its magnitude, such as 7.41 M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)
