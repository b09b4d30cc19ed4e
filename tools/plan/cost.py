"""`python -m tools.plan cost CONFIG... --gpu h100`: hours and GPU-hours of a run, on so many GPUs.

One copy of the model on each GPU, in the largest step that fits, under ZeRO-1 and ZeRO-2, with each
way to send gradients: those that keys of the configuration choose, and what would be gained by one
that nothing chooses yet.
"""

from collections.abc import Iterator, Sequence

from rich.table import Table

from parallel.mesh import LayoutConfig
from tools.arguments import Parser, local_path, whole
from tools.plan.documents import document_tokens
from tools.plan.machines import GIB, KINDS, Machine, machine_for
from tools.plan.published import OURS, nanotron, rows
from tools.plan.search import FORMULA, MOST_MICRO_SEQUENCES, Plan, one_plan
from tools.plan.table import console
from tools.plan.task import Candidate, Task, Wire, task_of
from train.config import RunConfig
from train.config_files import load
from train.errors import ConfigError

HOUR_SECONDS = 3600.0
GPUS = (8, 64, 512)
WAYS = (
    (1, "fp32", Wire(scatters=True)),
    (1, "zero.reduce_precision=bf16", Wire(scatters=True, reduce_in="bf16")),
    (1, "bf16, overlapped (not there)", Wire(scatters=True, reduce_in="bf16", overlaps=True)),
    (2, "fp32", Wire()),
    (2, "zero.overlap=true", Wire(overlaps=True)),
)
"""ZeRO stage, and how gradients are sent."""


def main(arguments: list[str]) -> int:
    """Print the table.

    Raises:
        ConfigError: the configuration or the rates are wrong, or nothing fits.
    """
    parser = Parser(prog="python -m tools.plan cost", description=__doc__)
    parser.add_argument("arguments", nargs="+", metavar="FILE.yaml|key=value")
    parser.add_argument("--gpus", type=whole(least=1, most=1 << 20), nargs="+", default=GPUS)
    parser.add_argument("--gpu", choices=KINDS, required=True, help="what the ranks are")
    parser.add_argument(
        "--calibration", type=local_path, help="measured rates; default: those kept"
    )
    options = parser.parse_intermixed_args(arguments)
    config = load(RunConfig, options.arguments)
    machine, source = machine_for(options.gpu, options.calibration)
    task = task_of(config, kind=options.gpu, document_tokens=document_tokens(config))
    out = console()
    table = Table(
        title=f"{config.name}: {task.steps:,} steps of {task.sequences} x {task.sequence_tokens} "
        f"tokens on {machine.device}",
        title_justify="left",
    )
    for name in ("GPUs", "ZeRO", "gradients", "microbatch", "GiB", "step s", "of it, sent"):
        table.add_column(name, justify="left" if name == "gradients" else "right")
    for name in ("tokens/s/GPU", "MFU", "hours", "GPU-hours"):
        table.add_column(name, justify="right")
    for ranks in options.gpus:
        for stage, name, plan in plans(task, machine, ranks=ranks):
            hours = task.steps * plan.seconds.total / HOUR_SECONDS
            candidate = plan.candidate
            table.add_row(
                str(ranks),
                str(stage),
                name,
                f"{candidate.num_microbatches} x {candidate.micro_sequences}",
                f"{plan.memory.total / GIB:.1f}",
                f"{plan.seconds.total:.3f}",
                f"{plan.seconds.data / plan.seconds.total:.1%}",
                f"{plan.tokens_per_second / ranks:,.0f}",
                f"{plan.mfu:.1%}",
                f"{hours:,.0f}",
                f"{hours * ranks:,.0f}",
            )
        table.add_section()
    out.print(table)
    errors = [abs(row.error) for row in rows()]
    own = sum(row.source == OURS for row in rows())
    untold = [row.error for row in nanotron()]
    out.print(
        f"rates: {source}; of {len(errors) - own} published runs and {own} of ours, few of which "
        f"set a rate, it missed the tokens a second by {sum(errors) / len(errors):.0%} on average, "
        f"{max(errors):.0%} at most; of {len(untold)} more, whose layouts are not told, it "
        f"predicts {min(untold):.0%} to {max(untold):.0%} more than they ran at "
        "(python -m tools.plan published); validation, checkpoints and restarts are not in it",
        markup=False,
    )
    out.print(FORMULA, markup=False)
    return 0


def plans(task: Task, machine: Machine, *, ranks: int) -> Iterator[tuple[int, str, Plan]]:
    """ZeRO stage, the way gradients are sent, and the fastest microbatch that fits.

    Raises:
        ConfigError: the batch does not divide, or nothing fits.
    """
    if task.sequences % ranks:
        raise ConfigError(
            f"batch.sequences: {task.sequences} do not divide by {ranks} GPUs: name others in "
            "--gpus, or change the batch"
        )
    for stage, name, wire in WAYS if ranks > 1 else [(1, "none are sent", None)]:
        plan = _fastest(task, machine, ranks=ranks, stage=stage, wire=wire)
        if plan is None:
            raise ConfigError(
                f"batch.sequences: on {ranks} x {machine.device} not even one sequence of the "
                "model fits with ZeRO-1 or ZeRO-2: python -m tools.plan CONFIG finds other layouts"
            )
        yield stage, name, plan


def _fastest(
    task: Task, machine: Machine, *, ranks: int, stage: int, wire: Wire | None
) -> Plan | None:
    mine = task.sequences // ranks
    sizes = [n for n in range(1, min(mine, MOST_MICRO_SEQUENCES) + 1) if mine % n == 0]
    found = (
        one_plan(
            task,
            Candidate(
                layout=LayoutConfig(split=[task.model.decoder.num_layers]),
                data=ranks,
                stage=stage,
                micro_sequences=size,
                num_microbatches=mine // size,
                wire=wire,
            ),
            machine,
        )
        for size in sizes
    )
    fitting: Sequence[Plan] = [p for p in found if p.memory.total <= machine.usable_bytes]
    return min(fitting, key=lambda plan: plan.seconds.total, default=None)
