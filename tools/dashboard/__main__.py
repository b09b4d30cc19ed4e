"""Shows runs in a browser as they go on: `make dashboard RUNS="runs/a runs/b"`.

Loss, speed and hardware, scores, samples; starts, rollbacks and what a keeper found, as alerts. All
stays on this machine.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tools.arguments import Parser, local_path, whole
from tools.command import command_line
from tools.dashboard.following import Followed
from train.errors import UserError
from train.exit_status import ExitStatus
from train.run_directory import RunDirectory

PYTHON: Final = Path(__file__).parents[2] / ".venv/dashboard/bin/python"
PROJECT: Final = "runs"
ORDER: Final = "train/loss,train/gradient_norm,train/*,validation/*,score/*,norm/*,marks/*,speed/*"
"""Of charts."""
LOOK_SECONDS: Final = 2.0
_ELSEWHERE: Final = ("TRACKIO_", "HF_TOKEN", "SPACE_")
"""Beginnings of variables by which trackio would send runs away."""


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C."""
    parser = Parser(prog="python -m tools.dashboard", description=__doc__)
    parser.add_argument(
        "runs", nargs="*", type=local_path, metavar="RUN", help="its directory (all in runs/)"
    )
    parser.add_argument(
        "--port", type=whole(least=1, most=65535), default=7860, help="of this host (%(default)s)"
    )
    options = parser.parse_args(arguments)
    followed = followed_runs(options.runs or runs_in(Path("runs")))
    with shown(options.port) as process:
        sys.stdout.write(
            f"{len(followed)} runs: http://127.0.0.1:{options.port}/?project={PROJECT}\n"
        )
        sys.stdout.flush()
        while process.poll() is None:
            if not tell(process, followed):
                time.sleep(LOOK_SECONDS)
    return ExitStatus.FAULT


def runs_in(directory: Path) -> list[Path]:
    """The runs whose directories lie in another.

    Raises:
        UserError: there is none.
    """
    found = [path.parent for path in directory.glob(f"*/{RunDirectory(directory).config.name}")]
    if not found:
        raise UserError(f"{directory}/ holds no run: name the directory of one")
    return found


def followed_runs(runs: Sequence[Path]) -> list[Followed]:
    """What is to be shown, under names that tell runs apart.

    Raises:
        UserError: some of them is no run.
    """
    faults = [
        f"{run} is no run: it has no {RunDirectory(run).config.name}; name the directory of one"
        for run in runs
        if not RunDirectory(run).config.is_file()
    ]
    if faults:
        raise UserError("\n".join(faults))
    paths = sorted({run.resolve() for run in runs})
    last = [path.name for path in paths]
    names = [
        path.name if last.count(path.name) == 1 else "/".join(path.parts[-2:]) for path in paths
    ]
    return [
        Followed(path, name=name if names.count(name) == 1 else str(path))
        for path, name in zip(paths, names, strict=True)
    ]


def tell(process: subprocess.Popen[str], followed: Sequence[Followed]) -> bool:
    """Sends on what is new; whether anything was."""
    assert process.stdin is not None
    is_news = False
    with contextlib.suppress(BrokenPipeError):  # it has ended, and says why itself
        for run in followed:
            for message in run.news():
                process.stdin.write(json.dumps(message) + "\n")
                is_news = True
        process.stdin.flush()
    return is_news


def kept_here(environment: Mapping[str, str], *, directory: str) -> dict[str, str]:
    """Variables of a trackio that keeps what it shows in a directory of this machine."""
    ours = {name: v for name, v in environment.items() if not name.startswith(_ELSEWHERE)}
    return {
        **ours,
        "TRACKIO_DIR": directory,
        "TRACKIO_PLOT_ORDER": ORDER,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@contextlib.contextmanager
def shown(port: int) -> Generator[subprocess.Popen[str]]:
    """The process that shows runs, ready, until the context ends.

    Raises:
        UserError: it is not installed, or its port is taken.
    """
    if not PYTHON.exists():
        raise UserError(
            "the dashboard is not installed: make .venv/dashboard/installed, as make dashboard does"
        )
    with socket.socket() as tried:
        if tried.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is in use: choose another with --port")
    with tempfile.TemporaryDirectory(prefix="dashboard-") as directory:
        process = subprocess.Popen(
            [PYTHON, Path(__file__).with_name("shown.py"), PROJECT, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=kept_here(os.environ, directory=directory),
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "ready\n":
                    break
            else:
                raise UserError(f"the dashboard did not start (exit status {process.wait()})")
            yield process
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
