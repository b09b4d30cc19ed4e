"""`python -m tools.comparison [PLAN.yaml]`: the paper's comparison in small.

Pretrains and tunes all arms with all seeds, asks all of them, and writes what came out to
`out/comparison.json`. What has run is not run again: stopped at any moment, even killed, the same
command goes on.
"""

from train.preemption import quiet_until_asked

if __name__ == "__main__":
    quiet_until_asked()  # what is imported next takes seconds

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from tools.arguments import Parser, local_path, output_file, real, whole
from tools.command import command_line, write_json
from tools.comparison.compute import costs
from tools.comparison.jobs import Jobs
from tools.comparison.plan import Plan
from tools.comparison.results import differences, protocols, score_rows
from tools.comparison.schedule import run_all
from tools.comparison.table import page
from train.config_files import load
from train.errors import RunDirectoryError, UserError
from train.storage.lease import Lease
from train.storage.place import Place

PLAN = "configs/comparison/plan.yaml"
BEGUN = "begun.json"


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Train, ask, compare."""
    parser = Parser(prog="python -m tools.comparison", description=__doc__)
    parser.add_argument("plan", nargs="*", default=[PLAN], metavar="PLAN.yaml|key=value")
    parser.add_argument(
        "--hours", type=real(above=0), default=1.5, help="what it may take (1.5); sets the steps"
    )
    parser.add_argument("--directory", type=local_path, default=Path("runs/comparison"))
    parser.add_argument(
        "--side-by-side",
        type=whole(least=1, most=1024),
        default=len(os.sched_getaffinity(0)),
        help="commands at a time (default: one for each core)",
    )
    parser.add_argument("--out", type=output_file, default="out/comparison.json")
    options = parser.parse_intermixed_args(arguments)
    started = time.monotonic()
    plan = load(Plan, options.plan)
    jobs = Jobs(plan, options.directory, plan.steps(options.hours))
    configs = jobs.checked()
    if not Path(plan.encoder).is_dir():
        raise UserError(
            f"encoder: {plan.encoder} is not there: make .venv/minilm/installed brings it"
        )
    console = Console(highlight=False)

    def report(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    with Lease(Place.of(options.directory), instead="name another --directory") as lease:
        lease.take()
        _begin(options.directory, {"hours": options.hours, "plan": plan.model_dump(mode="json")})
        _begin(Path(plan.data), plan.documents)
        for kind, steps in jobs.steps.items():
            config = configs[f"{plan.arms[0]}/{kind}"]
            tokens = steps * config.batch.sequences * config.data.sequence_tokens
            report(f"{kind}: {steps} steps, {tokens:,} tokens")
        num_run = run_all(
            jobs.all(),
            side_by_side=options.side_by_side,
            logs=options.directory / "logs",
            report=report,
        )
        document = {
            "hours": options.hours,
            "commands_run": num_run,
            "seconds": time.monotonic() - started,
            **results(jobs),
        }
    write_json(options.out, document)
    tables = options.out.with_suffix(".md")
    Place.of(tables).write(page(document).encode())
    console.print(Markdown(page(document)))
    report(f"{options.out}, {tables}")


def results(jobs: Jobs) -> dict[str, Any]:
    """What came out of all that was trained and asked, for programs.

    Raises:
        UserError: something is missing, or damaged.
    """
    plan, found = jobs.plan, protocols(jobs)
    return {
        "arms": plan.arms,
        "seeds": plan.seeds,
        "steps": jobs.steps,
        "rows": score_rows(found, plan.arms, plan.seeds),
        "differences": differences(found, plan.arms, plan.seeds),
        "costs": costs(jobs),
    }


def _begin(directory: Path, begun: dict[str, Any]) -> None:
    """Keep what a comparison was begun with, and hold what it goes on with against it."""
    file = directory / BEGUN
    if file.exists():
        if json.loads(file.read_text()) != begun:
            raise RunDirectoryError(
                f"{directory} belongs to a comparison of another plan or other hours: go on with "
                f"those ({file}), or name another: --directory for runs, data= for corpora"
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    Place.of(file).write(json.dumps(begun, indent=2).encode())


if __name__ == "__main__":
    sys.exit(main())
