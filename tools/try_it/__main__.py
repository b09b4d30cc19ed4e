"""A page to try a run with in a browser: `make try RUN=runs/mine`.

Show it pictures and sounds, as many as its encoders read, ask, and ask again; the answer comes as
it is made. All stays on this machine.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.arguments import Parser, whole
from tools.command import command_line
from tools.endings import end_with_parent, told_to_stop
from tools.serve.__main__ import API_KEY, ITEM_BYTES
from train.errors import UserError
from train.exit_status import ExitStatus

PYTHON: Final = Path(__file__).parents[2] / ".venv/try/bin/python"
_ELSEWHERE: Final = ("GRADIO_", "HF_", "SPACE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Beginnings of variables by which Gradio would listen or send elsewhere."""


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    parser = Parser(prog="python -m tools.try_it", description=__doc__)
    parser.add_argument("run", nargs="?", help="run directory or one of its checkpoints")
    parser.add_argument(
        "--port", type=whole(least=1, most=65535), default=7861, help="of this host (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.run is None:
        raise UserError(
            "no run is named: make pretrain trains one, then make try RUN=runs/first_light"
        )
    with told_to_stop("ended"), page(options.run, options.port) as (server, process):
        sys.stdout.write(f"try it: http://127.0.0.1:{options.port} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        while server.poll() is None and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
    return ExitStatus.FAULT


@contextlib.contextmanager
def page(run: str, port: int) -> Generator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """The processes of the server and of the page, both ready, until the context ends.

    Args:
        run: what is served.
        port: of the page.

    Raises:
        UserError: the page is not installed, its port is taken, or one of them did not start.
    """
    if not PYTHON.exists():
        raise UserError("the page is not installed: make .venv/try/installed, as make try does")
    with socket.socket() as tried:
        if tried.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is in use: choose another with --port")
    with tempfile.TemporaryDirectory(prefix="try-") as directory, contextlib.ExitStack() as stack:
        key = secrets.token_hex(16)
        server = stack.enter_context(
            _process(
                [sys.executable, "-m", "tools.serve", run, "--port", "0"],
                environment=os.environ | {API_KEY: key},
            )
        )
        assert server.stdout is not None
        told = server.stdout.readline()
        if not told:
            raise UserError(f"{run} is not served (exit status {server.wait()})")
        model, _, url = told.split(" (")[0].rpartition(" answers at ")
        shown = stack.enter_context(
            _process(
                [str(PYTHON), str(Path(__file__).with_name("page.py"))],
                environment=kept_here(os.environ, directory=directory),
                directory=directory,
            )
        )
        assert shown.stdin is not None
        assert shown.stdout is not None
        said = {"url": url, "key": key, "model": model, "port": port, "most_file_bytes": ITEM_BYTES}
        # Not among its arguments, which everybody sees.
        shown.stdin.write(json.dumps(said) + "\n")
        shown.stdin.flush()
        if shown.stdout.readline() != "ready\n":
            raise UserError(f"the page did not start (exit status {shown.wait()})")
        yield server, shown


def kept_here(environment: Mapping[str, str], *, directory: str) -> dict[str, str]:
    """Variables of a Gradio that keeps what it is shown in a directory, and sends nothing away."""
    ours = {
        name: value
        for name, value in environment.items()
        if not name.upper().startswith(_ELSEWHERE)
    }
    return {
        **ours,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": f"{directory}/shown",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": f"{directory}/hub",
        "MPLCONFIGDIR": directory,
    }


@contextlib.contextmanager
def _process(
    command: Sequence[str], *, environment: Mapping[str, str], directory: str | None = None
) -> Generator[subprocess.Popen[str]]:
    """A process that ends with the context, or with this one."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=directory,
        preexec_fn=end_with_parent,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
