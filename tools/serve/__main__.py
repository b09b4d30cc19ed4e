"""`python -m tools.serve RUN`: a trained model behind HTTP, for any client of completions."""

import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from tools.arguments import Parser, whole
from tools.command import command_line
from tools.serve.worker import Worker
from tools.speaker import speaker_of
from train.asked import item_vectors
from train.errors import UserError
from train.items import Bounds
from train.storage.path import local_path
from train.storage.place import Place

API_KEY: Final = "SEMICAUSAL_API_KEY"
ITEM_BYTES: Final = 16 << 20
"""Of the file of an item, at most, where nothing else is said."""
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = Parser(prog="python -m tools.serve", description=__doc__)
    parser.add_argument("checkpoint", help="run directory or one of its checkpoints")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=whole(most=65535), default=8000, help="0: any that is free")
    parser.add_argument("--name", help="of the model in requests; default: the run's")
    parser.add_argument(
        "--api-key", help=f"that clients must send; better in {API_KEY}, which ps does not show"
    )
    parser.add_argument(
        "--rows", type=whole(least=1, most=4096), default=32, help="answers generated at a time"
    )
    parser.add_argument(
        "--waiting", type=whole(most=10**6), default=256, help="answers that may wait for a row"
    )
    parser.add_argument(
        "--body-bytes",
        type=whole(least=1),
        help="of a request, at most; default: 4 MiB, or 32 where the model reads pictures or such",
    )
    parser.add_argument(
        "--items", type=whole(), default=32, help="that a request may show, such as pictures"
    )
    parser.add_argument(
        "--item-bytes", type=whole(least=1), default=ITEM_BYTES, help="of the file of one, at most"
    )
    parser.add_argument(
        "--item-pixels",
        type=whole(least=1),
        default=1 << 25,
        help="of a picture or a frame, at most",
    )
    parser.add_argument(
        "--video-pixels",
        type=whole(least=1),
        default=1 << 33,  # ten minutes of 1024x576 at 24 a second
        help="of all frames of a request's clips together, at most",
    )
    parser.add_argument(
        "--item-seconds", type=whole(least=1), default=600, help="of a sound or a clip, at most"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIRECTORY",
        help="adapter in peft's format that requests may name as a model; once or several times",
    )
    parser.add_argument("--tokenizer", type=Place.parse, help="default: the one the run kept")
    options = parser.parse_args(arguments)
    require_packages()
    adapters = _named(options.adapter)
    api_key = options.api_key or os.environ.get(API_KEY) or None
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise UserError("the API key has characters that no header holds: choose another")

    from tools.serve.application import Rules, application, server_of

    listening = _listen(options.host, options.port)
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name, speaker = speaker_of(
            options.checkpoint, options.tokenizer, device=device, adapters=adapters
        )
        if (name := options.name or name) in adapters:
            raise UserError(f"--adapter: {name} is the model's own name: give one of them another")
        reads_items = bool(item_vectors(speaker.config))
        rules = Rules(
            model=name,
            adapters=tuple(adapters),
            api_key=api_key,
            most_body_bytes=options.body_bytes or (32 if reads_items else 4) << 20,
            most_items=options.items,
            bounds=Bounds(
                num_bytes=options.item_bytes,
                pixels=options.item_pixels,
                video_pixels=options.video_pixels,
                seconds=options.item_seconds,
            ),
        )
        worker = Worker(speaker, most_rows=options.rows, most_waiting=options.waiting)
        server = server_of(application(worker, rules))
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        if api_key is None and host not in LOOPBACK:
            sys.stderr.write(f"everybody who reaches {shown} may use it: set {API_KEY}\n")
        worker.start()
        try:
            sys.stdout.write(
                f"{rules.model} answers at http://{shown}:{port}/v1 (Ctrl-C ends it)\n"
            )
            sys.stdout.flush()
            server.run(sockets=[listening])
        finally:
            worker.stop()
    finally:
        listening.close()


def require_packages() -> None:
    """Refuses to begin without what only the server needs.

    Raises:
        UserError: it is not installed.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"tools.serve needs {' and '.join(missing)}: pip install --constraint constraints.txt "
            "-e '.[serve]'"
        )


def _named(given: Sequence[str]) -> dict[str, Path]:
    """Directories of adapters by name.

    Raises:
        UserError: one has no name, or two have one.
    """
    named: dict[str, Path] = {}
    for each in given:
        name, sign, place = each.partition("=")
        if not (name and sign and place):
            raise UserError(f"--adapter {each}: write NAME=DIRECTORY")
        if name in named:
            raise UserError(f"--adapter {name}: is given twice: give one of them another name")
        named[name] = local_path(place)
    return named


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything large is read.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # two of one port would both be bound; who comes early waits
    except (OSError, UnicodeError) as error:  # a name with a part that is empty or too long
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{host}:{port} cannot be listened on ({reason}): choose another with --host or --port"
        ) from None
    return listening


if __name__ == "__main__":
    sys.exit(main())
