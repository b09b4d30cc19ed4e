"""A server on a real socket, its worker, and a client of it."""

import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import httpx
from torch import Tensor

from model.reading import Reading
from model.semicausal import SemiCausal
from tests.corpora import WORDS
from tools.serve.application import Rules, application, server_of
from tools.serve.worker import Worker
from train.items import Bounds
from train.text import Speaker

KEY = "a-secret-key"
PROMPTS = [f"the {WORDS[:20]} [[{WORDS[:9]}]] x", "a", f"{WORDS[10:44]} [[b]]"]


class Slowly:
    """The model, but it takes its time, or fails, and counts what it reads."""

    def __init__(self, model: SemiCausal):
        self.model = model
        self.seconds = 0.0
        self.fault: Exception | None = None
        self.rows: list[int] = []

    def __call__(self, reading: Reading) -> Tensor:
        time.sleep(self.seconds)
        self.rows.append(len(reading.tokens))
        if self.fault is not None:
            raise self.fault
        logits = self.model(reading)
        assert isinstance(logits, Tensor)
        return logits


def until(holds: Callable[[], bool], *, seconds: float = 60) -> None:
    """Waits until something holds."""
    last = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < last, "it never came to that"
        time.sleep(0.01)


@contextmanager
def serving(
    speaker: Speaker,
    *,
    key: str | None = None,
    adapters: tuple[str, ...] = (),
    bounds: Bounds | None = None,
    **options: int,
) -> Generator[Any]:
    """A server, its worker, and a client of it."""
    worker = Worker(
        speaker,
        most_rows=options.get("most_rows", 8),
        most_waiting=options.get("most_waiting", 8),
    )
    most_body_bytes = options.get("most_body_bytes", 20_000)
    rules = Rules(
        model="tiny",
        adapters=adapters,
        api_key=key,
        most_body_bytes=most_body_bytes,
        most_items=options.get("most_items", 32),
        bounds=bounds or Bounds(),
    )
    server = server_of(application(worker, rules))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    worker.start()
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            until(lambda: server.started)
            yield client, worker
    finally:
        server.should_exit = True
        thread.join(10)
        worker.stop()
        listening.close()


def complete(
    client: httpx.Client, path: str = "/v1/completions", /, **wanted: Any
) -> dict[str, Any]:
    answer = client.post(path, json={"model": "tiny"} | wanted)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(
    client: httpx.Client, path: str = "/v1/completions", /, **wanted: Any
) -> list[dict[str, Any]]:
    wanted = {"model": "tiny", "stream": True} | wanted
    with client.stream("POST", path, json=wanted) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
