"""`python -m tools.merge CHECKPOINT OUT`: add a LoRA run's adapters into a plain checkpoint."""

import sys

from tools.arguments import Parser
from tools.command import command_line
from train.adapter import merge
from train.storage.place import Place


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Write OUT; print what reads it."""
    parser = Parser(prog="python -m tools.merge", description=__doc__)
    parser.add_argument("checkpoint", help="LoRA run directory or a checkpoint of it")
    parser.add_argument("out", help="directory to create")
    options = parser.parse_args(arguments)
    out = merge(Place.parse(options.checkpoint), Place.parse(options.out))
    sys.stdout.write(f"{out}: for tools.generate, tools.evaluate and init_from\n")


if __name__ == "__main__":
    sys.exit(main())
