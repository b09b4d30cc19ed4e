"""`python -m tools.export CHECKPOINT OUT`: a folder that transformers loads by itself.

It carries the code of our class. With `--native` a plain decoder is written as a class that
transformers has: LlamaForCausalLM, Qwen2ForCausalLM or GPT2LMHeadModel.
"""

import sys

from tools.arguments import Parser, local_path
from tools.command import command_line
from tools.hub.folder import CONFIG, read_json, write_folder
from train.run_directory import TOKENIZER
from train.storage.place import Place


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Write OUT; print what reads it."""
    parser = Parser(prog="python -m tools.export", description=__doc__)
    parser.add_argument("checkpoint", help="run directory or one of its checkpoints")
    parser.add_argument("out", type=local_path, help="folder to create")
    parser.add_argument("--tokenizer", type=Place.parse, help="default: the one the run kept")
    parser.add_argument(
        "--native",
        action="store_true",
        help="as a class of transformers itself: of decoders alone, in the shape of such a class",
    )
    options = parser.parse_args(arguments)
    out = write_folder(
        Place.parse(options.checkpoint),
        options.out,
        tokenizer=options.tokenizer,
        native=options.native,
    )
    if options.native:
        kind = read_json(out / CONFIG)["architectures"][0]
        sys.stdout.write(f"{out}: {kind}.from_pretrained({str(out)!r})\n")
        if not (out / TOKENIZER).is_file():
            sys.stdout.write("it has no tokenizer, as the checkpoint has none\n")
        return
    sys.stdout.write(
        f"{out}: AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
        "its config.json holds the run's configuration, paths too: look before you publish it\n"
    )


if __name__ == "__main__":
    sys.exit(main())
