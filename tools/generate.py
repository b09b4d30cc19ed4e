"""`python -m tools.generate CHECKPOINT --prompt TEXT`: let a trained model continue a text."""

import sys

import torch
from rich.console import Console
from rich.text import Text

from tools.arguments import Parser, real, whole
from tools.command import command_line
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.errors import CheckpointError
from train.loading import load_model
from train.run_directory import kept_tokenizer
from train.storage.place import Place
from train.text import Speaker


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Print the prompt's continuation."""
    parser = Parser(prog="python -m tools.generate", description=__doc__)
    parser.add_argument("checkpoint", help="run directory or one of its checkpoints")
    parser.add_argument(
        "--prompt",
        required=True,
        help=r"text to continue; a part between [[ and ]] is read by the bidirectional encoder, "
        r"\[[ is as it stands",
    )
    parser.add_argument("--max-new-tokens", type=whole(least=1), default=64)
    parser.add_argument(
        "--top-p", type=real(least=0, most=1), default=0.0, help="nucleus; 0 (default) is greedy"
    )
    parser.add_argument("--temperature", type=real(above=0), default=1.0)
    parser.add_argument("--seed", type=whole(), default=0)
    parser.add_argument("--tokenizer", type=Place.parse, help="default: the one the run kept")
    options = parser.parse_args(arguments)
    path = resolve(Place.parse(options.checkpoint))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = options.tokenizer or kept_tokenizer(path, read_state(path).model_dump())
    if tokenizer is None:
        raise CheckpointError(
            f"the tokenizer.json that the run was trained with is neither in {path.parent.parent} "
            f"nor in {path}: name the corpus's own with --tokenizer"
        )
    speaker = Speaker(load_model(path, device=device), tokenizer)
    text = speaker.speak(
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        top_p=options.top_p,
        temperature=options.temperature,
        seed=options.seed,
    )
    written = Text(options.prompt, style="dim").append(text, style="not dim")
    Console(highlight=False, soft_wrap=True).print(written)


if __name__ == "__main__":
    sys.exit(main())
