"""The report of a run: one HTML file that needs nothing beside it."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import jinja2

from train.plain_yaml import MOST_BYTES
from train.run_directory import RunDirectory
from train.storage.place import Place
from train.storage.record import content_of
from train.watch.charts import Chart, Line, draw_chart, smoothed
from train.watch.metrics import (
    GIB_BYTES,
    LeftOutRecord,
    Metrics,
    TrainRecord,
    ValidationRecord,
    perplexity,
    read_metrics,
)
from train.watch.progress import format_seconds

TABLE_ROWS = 30
"""Most rows of the validation table; the chart has all."""


_STYLES = ("main", "other", "marked")
"""Of lines beside each other."""

Value = Callable[[TrainRecord], float | None]


class Number(NamedTuple):
    """A key number of the run, already formatted."""

    name: str
    value: str
    remark: str = ""


class Trouble(NamedTuple):
    """Something that went wrong.

    Attributes:
        step: at which; None where that is not known.
        what: in few words, with rank and node where one is to blame.
        text: all of it.
    """

    step: int | None
    what: str
    text: str


def write_report(
    directory: RunDirectory, *, out: Path | None = None, troubles: Sequence[Trouble] = ()
) -> Path:
    """Writes the report of a run from what it has recorded so far; returns the file.

    Call it on one rank. The run need not be over.

    Args:
        directory: of the run, with its metrics and perhaps its configuration.
        out: file to write; None for `report.html` in the run directory.
        troubles: that the run has not recorded itself, for it did not live to.

    Raises:
        DataError: there is no `metrics.jsonl`, or it is damaged.
    """
    metrics = read_metrics(directory.metrics)
    config = ""
    if directory.config.exists():
        # As it stands there, readable or not: it is shown, not believed.
        content = content_of(directory.config, limit_bytes=MOST_BYTES)
        config = content.decode(errors="replace")
    out = out or directory.report
    # Whole at once: a browser that reloads never sees half a page.
    Place.of(out).write(render_report(metrics, config=config, troubles=troubles).encode())
    return out


def render_report(metrics: Metrics, *, config: str = "", troubles: Sequence[Trouble] = ()) -> str:
    """The report as HTML.

    Args:
        metrics: what the run recorded.
        config: resolved configuration as YAML; empty to leave it out.
        troubles: as for `write_report`.
    """
    found = sorted([*_left_out(metrics), *troubles], key=lambda each: each.step or 0)
    bad_steps = {record.step for record in metrics.left_out} | {each.step for each in troubles}
    stride = math.ceil(len(metrics.validation) / TABLE_ROWS) or 1
    return render_page(
        Path(__file__).with_name("report.html.jinja"),
        title=metrics.runs[-1].name if metrics.runs else "Run",
        facts=_facts(metrics),
        numbers=_key_numbers(metrics),
        charts=_charts(metrics, bad_steps=sorted(filter(None, bad_steps))),
        troubles=found,
        # The last row is always among them.
        validation=[_table_row(record) for record in metrics.validation[::-1][::stride][::-1]],
        samples=metrics.samples[::-1],
        notes=metrics.notes,
        config=config,
    )


def _left_out(metrics: Metrics) -> list[Trouble]:
    """Steps that count for nothing, those in a row and of one reason together."""
    found: list[Trouble] = []
    steps: list[LeftOutRecord] = []
    for record in [*metrics.left_out, None]:
        if steps and (
            record is None or (record.step - 1, record.reason) != (steps[-1].step, steps[-1].reason)
        ):
            first, last, reason = steps[0].step, steps[-1].step, steps[0].reason
            many = f"steps {first:,} to {last:,} count" if steps[1:] else f"step {first:,} counts"
            found.append(Trouble(first, f"left out: {reason}", f"{many} for nothing"))
            steps = []
        if record is not None:
            steps.append(record)
    return found


def render_page(template: Path, **values: object) -> str:
    """A page as HTML that needs nothing beside it.

    Args:
        template: extends `page.html.jinja`, which gives it its look, `title`, `facts` and
            `numbers`.
        values: for the template.
    """
    return template_of(template).render(**values)


def template_of(path: Path) -> jinja2.Template:
    """A page's template, which is compiled once a process."""
    return _environment(path.parent).get_template(path.name)


@functools.cache
def _environment(directory: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([directory, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
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
    numbers: list[Number] = []
    validation, train, baseline = metrics.validation, metrics.train, metrics.baseline
    if validation:
        first, last = validation[0], validation[-1]
        value = f"{first.loss:.3f} → {last.loss:.3f}" if first is not last else f"{last.loss:.3f}"
        numbers += [
            Number("Validation loss", value, f"nats a token{_of_sequences(last)}"),
            Number("Validation perplexity", f"{perplexity(last.loss):,.1f}"),
        ]
        if (whole := metrics.whole_validation) is not None:
            remark = f"of all {whole.sequences:,} sequences, step {whole.step:,}"
            numbers.append(Number("Loss on the whole split", f"{whole.loss:.4f}", remark))
    elif train:
        _, last_loss = smoothed(_points(train, lambda r: r.loss))[-1]
        numbers.append(Number("Training loss", f"{last_loss:.3f}", "nats a token, smoothed"))
    if baseline:
        entropy = baseline.unigram_entropy
        remark = "what token frequencies alone reach"
        if validation:
            ahead = entropy - validation[-1].loss
            remark = f"the model is {abs(ahead):.2f} nats {'better' if ahead > 0 else 'worse'}"
        numbers.append(Number("Unigram entropy", f"{entropy:.3f}", remark))
    if metrics.runs:
        numbers.append(Number("Parameters", format_count(metrics.runs[-1].num_parameters)))
    if train:
        seen = format_count(sum(record.tokens for record in train))
        scored = format_count(sum(record.scored_tokens for record in train))
        memory = max(record.memory_bytes for record in train) / GIB_BYTES
        rate = f"{metrics.tokens_per_second:,.0f}"
        numbers += [
            Number("Tokens seen", seen, f"{scored} of them scored"),
            Number("Tokens a second", rate, "median, all ranks together"),
            *_utilisation(metrics),
            Number("Training time", format_seconds(metrics.training_seconds)),
            Number("Waiting for data", f"{metrics.data_wait_fraction:.2%}", "of the time in steps"),
            Number("Peak memory", f"{memory:.2f} GiB", "of rank 0"),
        ]
    if metrics.saved:
        seconds = sum(record.seconds for record in metrics.saved)
        remark = f"{len(metrics.saved):,} times, what is written meanwhile not counted"
        numbers.append(Number("Waiting to save", format_seconds(seconds), remark))
    return numbers


def _utilisation(metrics: Metrics) -> list[Number]:
    mfu = metrics.runs[-1].mfu(metrics.tokens_per_second) if metrics.runs else None
    return [] if mfu is None else [Number("MFU", f"{mfu:.1%}", "of the maker's dense bf16 peak")]


def _of_sequences(record: ValidationRecord) -> str:
    return "" if record.sequences is None else f", of {record.sequences:,} sequences"


def _charts(metrics: Metrics, *, bad_steps: Sequence[int] = ()) -> list[Chart]:
    train, validation, baseline = metrics.train, metrics.validation, metrics.baseline
    last_step = max((record.step for record in [*train, *validation]), default=0)
    resumes = [record.step for record in metrics.runs if record.step > 0]
    entropy = (baseline.unigram_entropy, "unigram entropy") if baseline else None
    charts: list[Chart | None] = []

    def chart(title: str, *lines: Line, rule: bool = False, from_zero: bool = False) -> None:
        charts.append(
            draw_chart(
                title,
                lines,
                last_step=last_step,
                mark_steps=resumes,
                bad_steps=bad_steps,
                rule=entropy if rule else None,
                from_zero=from_zero,
            )
        )

    def each(value: Value, name: str = "each step", style: str = "raw") -> Line:
        return Line(name, style, _points(train, value))

    def smooth(value: Value, name: str = "smoothed", style: str = "main") -> Line:
        return Line(name, style, smoothed(_points(train, value)))

    chart(
        "Loss, nats a token",
        each(lambda r: r.loss, "training, each step"),
        smooth(lambda r: r.loss, "training, smoothed"),
        Line("validation", "marked", [(r.step, r.loss) for r in validation]),
        rule=True,
    )
    chart("Training loss by source, smoothed, nats a token", *_by_source(train, smoothed))
    chart("Validation loss by source, nats a token", *_by_source(validation, list))
    by_task: dict[str, list[tuple[float, float]]] = {}
    for record in metrics.scores:
        by_task.setdefault(record.task, []).append((record.step, record.score))
    chart(
        "Scores of tasks",
        *(
            Line(name, style, points)
            for (name, points), style in zip(by_task.items(), cycle(_STYLES), strict=False)
        ),
    )
    # Without spans the second line would repeat the first chart.
    if any(record.first_of_span_loss is not None for record in train):
        chart(
            "Training loss by kind of token, smoothed",
            smooth(lambda r: r.first_of_span_loss, "first token of a span", "other"),
            smooth(lambda r: r.other_loss, "other tokens"),
        )
    rate = each(lambda r: r.learning_rate, "learning rate", "main")
    chart("Learning rate", rate, from_zero=True)
    values: dict[str, Value] = {
        "Gradient norm, before clipping": lambda r: r.gradient_norm,
        "Tokens a second, all ranks together": lambda r: r.tokens_per_second,
        "Waiting for data, share of the step": lambda r: r.data_wait_fraction,
    }
    for title, value in values.items():
        chart(title, each(value), smooth(value), from_zero=True)
    memory = each(lambda r: r.memory_bytes / GIB_BYTES, "memory", "main")
    chart("Peak memory of rank 0, GiB", memory, from_zero=True)
    return [drawn for drawn in charts if drawn is not None]


def _by_source(
    records: Sequence[TrainRecord] | Sequence[ValidationRecord],
    drawn: Callable[[list[tuple[float, float]]], list[tuple[float, float]]],
) -> Iterator[Line]:
    """A line for each source that any of the records tells of."""
    told = [(record.step, record.by_source) for record in records if record.by_source is not None]
    names = dict.fromkeys(name for _, losses in told for name in losses)
    for name, style in zip(names, cycle(_STYLES), strict=False):
        points: list[tuple[float, float]] = [
            (step, losses[name]) for step, losses in told if name in losses
        ]
        yield Line(name, style, drawn(points))


def _points(train: Sequence[TrainRecord], value: Value) -> list[tuple[float, float]]:
    """One point for each step that has the value; steps without such tokens leave no gap."""
    values = ((record.step, value(record)) for record in train)
    return [(step, number) for step, number in values if number is not None]


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
