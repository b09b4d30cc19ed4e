"""`python -m tools.generate CHECKPOINT --prompt TEXT`: let a trained model continue texts."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.text import Text

from model.generation.picking import Sampling
from tools.arguments import Parser, local_path, real, whole
from tools.command import command_line
from tools.speaker import speaker_of
from train.asked import Asked, Prompt
from train.data.document import MEDIA, Kind
from train.data.segments import MediaSegment
from train.errors import UserError
from train.items import Bounds, item_of
from train.storage.place import Place
from train.text import Speaker, Speech

HELP: Final = """\
Write a text to have it continued; an empty line continues the last one further.
/temperature 0.8, /top-p 0.9, /top-k 40, /seed 1, /max-new-tokens 64 change how; /help, /quit."""

MOST_TOKENS: Final = whole(least=1)
PROBABILITY: Final = real(least=0, most=1)
TEMPERATURE: Final = real(above=0)


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Print the prompts' continuations."""
    parser = Parser(prog="python -m tools.generate", description=__doc__)
    parser.add_argument("checkpoint", help="run directory or one of its checkpoints")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--prompt",
        action="append",
        help=r"text to continue, once or several times; a part between [[ and ]] is read by the "
        r"bidirectional encoder, [[image:cat.png]] or [[audio:a.wav]] is read from that file, "
        r"\[[ is as it stands; a blank line ends a paragraph",
    )
    given.add_argument("--chat", action="store_true", help="ask for prompts, one after the other")
    parser.add_argument("--max-new-tokens", type=MOST_TOKENS, default=64)
    parser.add_argument(
        "--top-p",
        type=PROBABILITY,
        help="nucleus; 0 is greedy, as all is unless one of these three is given",
    )
    parser.add_argument("--top-k", type=MOST_TOKENS, help="draw among this many")
    parser.add_argument("--temperature", type=TEMPERATURE, help="divides the logits")
    parser.add_argument("--seed", type=whole(), default=0)
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        help="text that ends an answer, once or several times",
    )
    parser.add_argument(
        "--choice", action="append", help="the answer is one of these, given once or several times"
    )
    parser.add_argument(
        "--beams", type=whole(least=1, most=1024), help="search with so many instead of drawing"
    )
    parser.add_argument(
        "--length-penalty", type=real(least=0, most=100), default=0.6, help="of the beam search"
    )
    parser.add_argument("--adapter", type=local_path, help="directory of one in peft's format")
    parser.add_argument("--tokenizer", type=Place.parse, help="default: the one the run kept")
    options = parser.parse_args(arguments)
    drawn = options.top_p or options.top_k is not None or options.temperature is not None
    told = drawn or options.stop or options.choice or options.chat or options.adapter
    if options.beams is not None and told:
        parser.error(
            "--beams: goes without --top-p, --top-k, --temperature, --stop, --choice, --adapter "
            "and --chat"
        )
    if options.top_p == 0 and drawn:
        parser.error("--top-p: 0 is greedy: leave it out where --top-k or --temperature draw")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapters = {} if options.adapter is None else {"given": options.adapter}
    _, speaker = speaker_of(options.checkpoint, options.tokenizer, device=device, adapters=adapters)
    console = Console(highlight=False, soft_wrap=True)
    asked = Asked(
        prompt="",
        max_new_tokens=options.max_new_tokens,
        sampling=Sampling(
            top_p=(1.0 if drawn else 0.0) if options.top_p is None else options.top_p,
            top_k=options.top_k,
            temperature=1.0 if options.temperature is None else options.temperature,
            seed=options.seed,
        ),
        stop=tuple(options.stop),
        choices=None if options.choice is None else tuple(options.choice),
        adapter=next(iter(adapters), None),
    )
    if options.chat:
        chat(speaker, asked, console)
        return
    # Refused before anything is shown.
    prompts = [speaker.prompt(prompt, items=item_in_file) for prompt in options.prompt]
    if len(prompts) == 1 and options.beams is None:
        console.print(Text(options.prompt[0], style="dim"), end="")
        for piece in speaker.stream(replace(asked, prompt=prompts[0])):
            _print(console, piece)
        console.print()
    else:
        texts = _texts(speaker, prompts, asked, options)
        for prompt, text in zip(options.prompt, texts, strict=True):
            console.print(Text(prompt, style="dim").append(text, style="not dim"))


def item_in_file(kind: Kind, name: str) -> MediaSegment:
    """The item that a prompt names: a file, from the directory that one is in.

    Raises:
        UserError: there is none, or it cannot be read as this; the message names it.
    """
    shown, bounds = f"the prompt's [[{MEDIA[kind]}:{name}]]", Bounds()
    try:
        data = Place.parse(name).read(limit_bytes=bounds.num_bytes)
    except FileNotFoundError:
        raise UserError(f"{shown} is no file in {Path.cwd()}: name one that is there") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{shown} cannot be read ({reason}): name a file") from None
    return item_of(kind, data, name=shown, bounds=bounds)


def _texts(
    speaker: Speaker, prompts: Sequence[Prompt], asked: Asked, options: argparse.Namespace
) -> list[str]:
    if options.beams is not None:
        return speaker.search(
            prompts,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.beams,
            length_penalty=options.length_penalty,
        )
    answers = speaker.complete([replace(asked, prompt=prompt) for prompt in prompts])
    return [answer.text for answer in answers]


def chat(speaker: Speaker, asked: Asked, console: Console) -> None:
    """Continue what is typed, until it ends; Ctrl-C ends an answer."""
    console.print(HELP, style="dim", markup=False)
    last: Prompt | None = None
    while True:
        try:
            line = console.input("[bold]› [/]")
        except EOFError:
            console.print()
            return
        try:
            if line.startswith("/"):
                if line.strip() == "/quit":
                    return
                asked = _changed(asked, line, console)
                continue
            if not line and last is None:
                continue
            prompt = speaker.prompt(line, items=item_in_file) if line or last is None else last
            last = _answer(speaker, replace(asked, prompt=prompt), console)
        except UserError as error:
            console.print(str(error), style="red", markup=False)


def _answer(speaker: Speaker, asked: Asked, console: Console) -> Prompt:
    """Tell an answer as it comes; the prompt and it together, for going on."""
    speech = Speech(speaker)
    (answer,) = speech.admit([asked])
    told = 0
    try:
        while True:
            text = answer.text
            _print(console, text[told:])
            told = len(text)
            if answer.ending is not None:
                break
            speech.step()
    except KeyboardInterrupt:
        console.print(" …", end="", style="dim")
    console.print()
    tokens = [token.id for token in answer.tokens]
    return replace(answer.prompt, tokens=[*answer.prompt.tokens, *tokens])


def _changed(asked: Asked, line: str, console: Console) -> Asked:
    """The settings that a line such as `/top-p 0.9` changes.

    Raises:
        UserError: there is no such setting, or no such value of it.
    """
    name, _, value = line[1:].strip().partition(" ")
    sampling = asked.sampling
    try:
        match name:
            case "temperature":
                sampling = _drawn(replace(sampling, temperature=TEMPERATURE(value)))
            case "top-p":
                sampling = replace(sampling, top_p=PROBABILITY(value))
            case "top-k":
                sampling = _drawn(replace(sampling, top_k=MOST_TOKENS(value)))
            case "seed":
                sampling = replace(sampling, seed=whole()(value))
            case "max-new-tokens":
                return replace(asked, max_new_tokens=MOST_TOKENS(value))
            case _:
                console.print(HELP, style="dim", markup=False)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"/{name} {error}") from None
    return replace(asked, sampling=sampling)


def _drawn(sampling: Sampling) -> Sampling:
    """Not greedy: whoever names a temperature means to draw."""
    return replace(sampling, top_p=sampling.top_p or 1.0)


def _print(console: Console, piece: str) -> None:
    console.print(piece, end="", markup=False)


if __name__ == "__main__":
    sys.exit(main())
