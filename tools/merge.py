"""`python -m tools.merge CHECKPOINT OUT`: add adapters into a plain checkpoint, or take them out.

CHECKPOINT is a LoRA run, or a base with `--adapter DIRECTORY`, in peft's file format. `--unmerge`
subtracts that adapter from a checkpoint into which it was merged.

Sums are made in fp32, and layers with adapters are written so; others stay as they are. A run in
bf16 has kept its fixed weights rounded to that: `BASE OUT --adapter RUN/adapter` adds the same
adapter to the base as it was. Bottlenecks cannot be merged, for no weight can hold them.
"""

import sys
from pathlib import Path

from tools.arguments import Parser
from tools.command import command_line
from train.adapter import merge
from train.checkpoint.format import Index
from train.checkpoint.restore import read_state
from train.errors import UserError
from train.storage.place import Place


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Write OUT; print what reads it."""
    parser = Parser(prog="python -m tools.merge", description=__doc__)
    parser.add_argument("checkpoint", help="run directory or a checkpoint of it")
    parser.add_argument("out", help="directory to create")
    parser.add_argument(
        "--adapter", type=Path, help="in peft's file format; default: the run's own"
    )
    parser.add_argument("--unmerge", action="store_true", help="take --adapter out again")
    options = parser.parse_args(arguments)
    if options.unmerge and options.adapter is None:
        raise UserError("--unmerge: say with --adapter DIRECTORY what is to be taken out")
    out = merge(
        Place.parse(options.checkpoint),
        Place.parse(options.out),
        adapter=options.adapter,
        take_out=options.unmerge,
    )
    state, parameters = read_state(out), Index.read(out).parameters
    steps = state.config.get("steps", state.step)
    if options.adapter is None and state.step < steps:
        sys.stdout.write(f"the run is not finished: these are {state.step} of its {steps} steps\n")
    kinds = {str(record.torch_dtype).removeprefix("torch.") for record in parameters.values()}
    sys.stdout.write(f"written in {' and '.join(sorted(kinds))}\n")
    sys.stdout.write(f"{out}: for tools.generate, tools.evaluate and init_from\n")


if __name__ == "__main__":
    sys.exit(main())
