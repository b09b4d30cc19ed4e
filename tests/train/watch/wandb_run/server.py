"""The W&B server of tests: openwandb in an environment of its own, for its licence's sake."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
PYTHON = ROOT / ".venv/openwandb/bin/python"
KEY = "0123456789abcdef" * 2 + "01234567"
"""Any may write."""


@dataclass(frozen=True)
class WandbServer:
    """A running server.

    Attributes:
        directory: all that it has been sent.
        variables: have wandb upload there.
    """

    directory: Path
    variables: dict[str, str]

    @property
    def run_ids(self) -> list[str]:
        """Of all runs that there are."""
        files = self.directory.glob("files/*/*/*/wandb-history.jsonl")
        return sorted(file.parent.name for file in files)

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """The history of a run, as it was sent."""
        [file] = self.directory.glob(f"files/*/*/{run_id}/wandb-history.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines() if line]

    def alerts(self, run_id: str) -> list[tuple[str, str]]:
        """Titles and texts of a run's alerts."""
        file = self.directory / "alerts.jsonl"
        alerts = [json.loads(line) for line in file.read_text().splitlines()]
        return [(each["title"], each["text"]) for each in alerts if each["runName"] == run_id]


def require_openwandb() -> None:
    """Skip a test where the server is not installed; in CI it has to be."""
    if PYTHON.exists():
        return
    reason = "needs a W&B server: make .venv/openwandb/installed"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def wandb_server(directory: Path, *, port: int | None = None) -> Generator[WandbServer]:
    """A server while the context lasts."""
    require_openwandb()
    if port is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    directory.mkdir(exist_ok=True)
    script = Path(__file__).with_name("openwandb_server.py")
    # Not ours to trace: what it prints goes to a file.
    with (directory / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [PYTHON, script, directory, str(port)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (directory / "server.log").read_text()
            assert time.monotonic() < deadline, "the W&B server does not come up"
            time.sleep(0.1)
        variables = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": KEY}
        yield WandbServer(directory, variables)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def wandb_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbServer]:
    """A server for all tests of a session; each has runs of its own."""
    with wandb_server(tmp_path_factory.mktemp("wandb")) as running:
        yield running
