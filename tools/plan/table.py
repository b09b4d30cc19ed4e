"""Plans as tables."""

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from tools.plan.machines import GIB, Machine
from tools.plan.search import FORMULA, Plan, Plans
from tools.plan.task import Candidate, Task

PLAIN_WIDTH = 140
"""Columns where the output is no terminal."""


def console() -> Console:
    """Wide enough for the tables, wherever the output goes."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=PLAIN_WIDTH)


def show(
    out: Console, plans: Plans, task: Task, machine: Machine, *, ranks: int, top: int, source: str
) -> None:
    """The ranked table, why others are not in it, and the first one in detail."""
    out.print(_ranking(plans.ranked[:top], ranks=ranks, machine=machine))
    if len(plans.ranked) > top:
        out.print(f"{len(plans.ranked) - top} more fit and are slower (--top shows more)")
    out.print(
        f"rates: {source}; {task.precision}, {task.sequences} x {task.sequence_tokens} tokens a "
        "step; layout, zero.stage and batch.micro_sequences of the configuration are left out; "
        f"peak {machine.peak_flops[task.precision] / 1e12:.4g} TFLOP/s a rank",
        markup=False,
    )
    out.print(FORMULA, markup=False)
    if plans.refusals:
        table = Table("why others are not there", "layouts", title_justify="left")
        for reason, count in plans.refusals.items():
            table.add_row(reason, str(count))
        out.print(table)
    if plans.ranked:
        out.print(_details(plans.ranked[0]))


def layout_words(candidate: Candidate) -> str:
    """A layout in a few words."""
    layout = candidate.layout
    words = [f"tensor {layout.tensor}", f"pipeline {layout.pipeline}", f"data {candidate.data}"]
    if layout.sequence_parallel:
        words.append("sequence parallel")
    if layout.chunks > 1:
        words.append(f"chunks {layout.chunks}")
    if layout.pipeline > 1:
        words.append("split " + "+".join(map(str, candidate.split)))
    words += [f"ZeRO-{candidate.stage}", f"microbatch {candidate.micro_sequences}"]
    if layout.recompute != "none":
        words.append(f"recompute {layout.recompute}")
    return ", ".join(words)


def _ranking(plans: Sequence[Plan], *, ranks: int, machine: Machine) -> Table:
    table = Table(title=f"layouts on {ranks} x {machine.device}", title_justify="left")
    for name in (
        *("tensor", "pipeline", "data", "sequence parallel", "ZeRO", "microbatch", "recompute"),
        *("GiB", "step s", "tokens/s", "MFU", "days"),
    ):
        table.add_column(name, justify="left" if name == "recompute" else "right")
    for plan in plans:
        candidate, layout = plan.candidate, plan.candidate.layout
        stages = f"{layout.pipeline}" + (f" x {layout.chunks}" if layout.chunks > 1 else "")
        table.add_row(
            str(layout.tensor),
            stages,
            str(candidate.data),
            "yes" if layout.sequence_parallel else "",
            str(candidate.stage),
            f"{candidate.num_microbatches} x {candidate.micro_sequences}",
            "" if layout.recompute == "none" else layout.recompute,
            f"{plan.memory.total / GIB:.1f}",
            f"{plan.seconds.total:.3g}",
            f"{plan.tokens_per_second:,.0f}",
            f"{plan.mfu:.1%}",
            f"{plan.days:.3g}",
        )
    return table


def _details(plan: Plan) -> Table:
    title = f"the first: {layout_words(plan.candidate)}"
    table = Table(title=title, title_justify="left")
    for name in ("memory of the fullest rank", "GiB", "time of a step", "seconds"):
        table.add_column(name, justify="right" if name in ("GiB", "seconds") else "left")
    kinds = [(name, f"{value / GIB:.3f}") for name, value in asdict(plan.memory).items()]
    parts = [(name, f"{value:.4g}") for name, value in asdict(plan.seconds).items()]
    for kind, part in zip(kinds, parts, strict=True):
        table.add_row(*kind, *part)
    table.add_section()
    table.add_row(
        "all", f"{plan.memory.total / GIB:.3f}", "all", f"{plan.seconds.total:.4g}", style="bold"
    )
    table.add_section()
    for name, memory in plan.moments._asdict().items():
        table.add_row(f"at most, {name}", f"{memory.total / GIB:.3f}")
    return table
