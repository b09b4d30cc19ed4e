"""`python -m tools.merge CHECKPOINT OUT`: add a LoRA run's adapters into a plain checkpoint."""

import argparse
import sys
from pathlib import Path

from train.adapter import merge
from train.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Write OUT; print what reads it."""
    parser = argparse.ArgumentParser(prog="python -m tools.merge", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="LoRA run directory or a checkpoint of it")
    parser.add_argument("out", type=Path, help="directory to create")
    options = parser.parse_args(arguments)
    try:
        out = merge(options.checkpoint, options.out)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{out}: for tools.generate, tools.evaluate and init_from\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
