"""`python -m tools.plan CONFIG... --gpus 64 --gpu h100`: will it fit, which layout, how long.

Pure arithmetic on shapes: no tensor is allocated and no process started. The configuration says
what is trained; `layout`, `zero.stage` and `batch.micro_sequences` are the planner's to choose,
whatever it says.
`python -m tools.plan calibrate` measures this machine's rates, which later plans for its kind use;
`python -m tools.plan check` holds predictions to real runs, `python -m tools.plan published` to
what others have published; `python -m tools.plan cost CONFIG... --gpu h100` tells hours.
"""

import importlib
import shlex
import sys
from pathlib import Path

import yaml

from tools.arguments import Parser, local_path, output_file, whole
from tools.command import command_line
from tools.plan.documents import document_tokens
from tools.plan.machines import GIB, KINDS, machine_for
from tools.plan.search import Plan, all_plans
from tools.plan.table import console, layout_words, show
from tools.plan.task import task_of
from tools.ranks import RanksFailed
from train.config import RunConfig
from train.config_files import load

NOTHING_FITS = 1
COMMANDS = ("calibrate", "check", "cost", "published")

MOST_RANKS = 1 << 20


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Plan, or do as one of the other commands."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] not in [[name] for name in COMMANDS]:
        return plan(arguments)
    # Only when asked for: they import what trains, and a plan is quick.
    command = importlib.import_module(f"tools.plan.{arguments[0]}")
    try:
        return command.main(arguments[1:])
    except RanksFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1


def plan(arguments: list[str]) -> int:
    """Print the layouts that fit, the fastest first.

    Raises:
        UserError: the configuration, the rates or the file to write are wrong.
    """
    parser = Parser(prog="python -m tools.plan", description=__doc__)
    parser.add_argument("arguments", nargs="+", metavar="FILE.yaml|key=value")
    parser.add_argument(
        "--gpus",
        type=whole(least=1, most=MOST_RANKS),
        required=True,
        help="ranks: GPUs, or cores of CPUs",
    )
    parser.add_argument("--gpu", choices=KINDS, required=True, help="what the ranks are")
    parser.add_argument("--top", type=whole(least=1), default=10, help="rows of the table")
    parser.add_argument(
        "--document-tokens",
        type=whole(least=1),
        metavar="N",
        help="with data.attend=within: tokens of the document that a token lies in, on average "
        "(the sum of squared lengths over their sum); default: as in the run's corpora, where they "
        "are on this host, else whole sequences",
    )
    parser.add_argument(
        "--write", type=output_file, metavar="OUT.yaml", help="write the first one's keys"
    )
    parser.add_argument(
        "--calibration", type=local_path, help="measured rates; default: those kept"
    )
    options = parser.parse_intermixed_args(arguments)
    config = load(RunConfig, options.arguments)
    machine, source = machine_for(options.gpu, options.calibration)
    reach = options.document_tokens
    task = task_of(config, kind=options.gpu, document_tokens=reach or document_tokens(config))
    plans = all_plans(task, machine, ranks=options.gpus)
    out = console()
    if config.data.attend == "within":
        known = "asked" if reach else "of its corpora" if task.document_tokens else "not known"
        tokens = task.document_tokens or task.sequence_tokens
        out.print(f"documents apart: a token's has {tokens:,.0f} tokens ({known})")
    show(out, plans, task, machine, ranks=options.gpus, top=options.top, source=source)
    if not plans.ranked:
        out.print("No layout fits: use more ranks, or a smaller batch, sequence or model.")
        return NOTHING_FITS
    if options.write is not None:
        best = plans.ranked[0]
        words = layout_words(best.candidate)
        title = f"{config.name} on {options.gpus} x {machine.device}: {words}"
        write_overlay(options.write, best, title=title)
        command = shlex.join(["python", "-m", "train", *options.arguments, str(options.write)])
        out.print(f"written: {command}", markup=False, soft_wrap=True)
    return 0


def write_overlay(path: Path, plan: Plan, *, title: str) -> None:
    """Write what runs a plan, headed by what is expected of it."""
    text = yaml.safe_dump(plan.candidate.overlay, sort_keys=False, default_flow_style=None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"# {title}\n# predicted: {plan.seconds.total:.3g} s a step, "
        f"{plan.tokens_per_second:,.0f} tokens/s, {plan.memory.total / GIB:.1f} GiB on the fullest "
        f"rank\n{text}"
    )


if __name__ == "__main__":
    sys.exit(main())
