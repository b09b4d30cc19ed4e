"""`python -m tools.harness run --model semicausal --model_args checkpoint=RUN …`: lm-eval itself.

Besides, `python -m tools.harness tasks NAMES --out DIR` writes our tasks for its `--include_path`.
"""

import importlib
import sys

from tools.arguments import Parser, local_path, whole
from tools.command import command_line
from tools.harness.model import register
from tools.harness.tasks import write_tasks
from train.errors import UserError
from train.tasks.task import load_tasks


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Write tasks, or leave all to lm-eval once it knows our model."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] != ["tasks"]:
        try:
            harness = importlib.import_module("lm_eval.__main__")
        except ImportError as error:
            raise UserError(
                f"lm-eval is not installed here ({error}): run make .venv/harness/installed, and "
                "this with .venv/harness/bin/python"
            ) from None
        register()
        sys.argv[1:] = given
        harness.cli_evaluate()
        return
    parser = Parser(prog="python -m tools.harness tasks", description=__doc__)
    parser.add_argument("names", help="all, names or files of tasks, with commas")
    parser.add_argument("--split", choices=["train", "validation", "test"], default="test")
    parser.add_argument("--rows", type=whole(least=1), help="of each task; default: all")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="spans are text like all else: for lm-eval's other models, such as hf on an export",
    )
    parser.add_argument("--out", type=local_path, required=True, help="directory to write")
    options = parser.parse_args(given[1:])
    for task in load_tasks(options.names.split(",")):
        name = write_tasks(
            task,
            options.out,
            split=options.split,
            most_rows=options.rows,
            has_spans=not options.plain,
        )
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    sys.exit(main())
