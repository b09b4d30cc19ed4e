"""Many clients of one server: who waits, who is sent away, and what is left of those who leave."""

import copy
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from model.adapters.kinds import LoraConfig
from model.adapters.merging import with_adapters
from model.adapters.several import put_adapter
from model.adapters.tuning import Names, Tuning
from model.generation.picking import Sampling
from model.layers import initialize
from model.semicausal import SemiCausal
from tests.corpora import write_tokenizer
from tests.tools.serve.serving import PROMPTS, Slowly, complete, serving, until
from tests.train.test_prompt import MODEL
from tools.serve import worker as worker_module
from tools.serve.worker import BusyError, Job, Worker
from tools.speaker import by_row
from train.asked import Asked, Prompt
from train.text import Speaker


def leaving(client: httpx.Client, *, stream: bool) -> None:
    """Ask for much, and leave after a moment."""
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 60, "stream": stream, "n": 3}
    if stream:
        with client.stream("POST", "/v1/completions", json=asked) as answer:
            next(answer.iter_lines())
        return
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=asked, timeout=0.3)


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_rows(speaker: Speaker, stream: bool) -> None:
    read = speaker.read
    assert isinstance(read, Slowly)
    with serving(speaker, most_rows=2) as (client, worker):
        read.seconds, read.rows = 0.05, []
        try:
            leaving(client, stream=stream)
            until(lambda: worker.load == (0, 0))
            assert len(read.rows) < 120, "three times sixty tokens, two rows at a time"
            read.rows = []
            assert complete(client, prompt="a", max_tokens=4)["choices"][0]["text"]
            assert set(read.rows) == {1}, "what nobody waits for is generated on"
        finally:
            read.seconds = 0.0


def test_who_leaves_while_waiting_takes_no_place(speaker: Speaker) -> None:
    worker = Worker(speaker, most_rows=1, most_waiting=1)  # which does not begin

    def job() -> Job:
        asked = Asked(prompt="a", max_new_tokens=4)
        return Job(asked=asked, num_tokens=2, tell=lambda _: None, reads_along=False)

    first, second = job(), job()
    worker.submit([first, second])
    with pytest.raises(BusyError):
        worker.submit([job()])
    second.leave()
    worker.submit([job()])
    assert worker.load == (0, 2)


def test_who_leaves_before_all_is_said_is_no_failure(
    client: httpx.Client, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    place = client.base_url
    with socket.create_connection((place.host, place.port)) as sending:
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        sending.sendall(head.encode())
        time.sleep(0.1)
    time.sleep(0.2)
    assert client.get("/health").status_code == 200
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text


def test_others_are_answered_while_a_long_prompt_is_read(
    client: httpx.Client, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, may_end = threading.Event(), threading.Event()
    prompt = speaker.prompt

    def slow(given: str | Sequence[int] | Prompt, **options: Any) -> Prompt:
        if isinstance(given, str):
            reading.set()
            may_end.wait(60)
        return prompt(given, **options)

    monkeypatch.setattr(speaker, "prompt", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(complete, client, prompt="a", max_tokens=2, temperature=0)
        try:
            assert reading.wait(60)
            assert httpx.get(f"{client.base_url}/health", timeout=10).status_code == 200
        finally:
            may_end.set()
        assert answer.result()["choices"][0]["text"]


def test_short_prompts_are_not_read_as_long_as_a_long_one(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are read together are as long as the longest: thirty times as much to compute."""
    monkeypatch.setattr(worker_module, "MOST_ADMITTED_SLOTS", 40)
    read = speaker.read
    assert isinstance(read, Slowly)
    read.rows = []
    with serving(speaker) as (client, _):
        complete(client, prompt=[[5] * 30, *([[5]] * 7)], max_tokens=1)
    assert read.rows == [1, 7]


def test_rows_and_waiting_are_bounded(speaker: Speaker) -> None:
    """Two rows and three that wait: nobody's answer changes, and the sixth is sent away."""
    read = speaker.read
    assert isinstance(read, Slowly)
    (wanted,) = speaker.complete([Asked(prompt="a", max_new_tokens=16)])
    with serving(speaker, most_rows=2, most_waiting=3) as (client, worker):
        read.seconds, read.rows = 0.03, []

        def ask(_: int) -> str:
            return complete(client, prompt="a", temperature=0)["choices"][0]["text"]

        try:
            with ThreadPoolExecutor(5) as pool:
                answers = pool.map(ask, range(5))
                until(lambda: worker.load == (2, 3))
                refused = client.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
                assert refused.status_code == 429
                assert refused.headers["retry-after"] == "1"
                assert "too many requests are waiting: try again later" in refused.text
                assert list(answers) == [wanted.text] * 5
        finally:
            read.seconds = 0.0
    assert max(read.rows) == 2


def test_requests_that_come_together_are_generated_together(speaker: Speaker) -> None:
    read = speaker.read
    assert isinstance(read, Slowly)
    options: dict[str, Any] = {"max_tokens": 16, "seed": 5}
    with serving(speaker) as (client, _):
        wanted = [complete(client, prompt=prompt, **options)["choices"] for prompt in PROMPTS]
        read.seconds, read.rows = 0.02, []

        def ask(prompt: str) -> Any:
            return complete(client, prompt=prompt, **options)["choices"]

        try:
            with ThreadPoolExecutor(3) as pool:
                assert list(pool.map(ask, PROMPTS)) == wanted
        finally:
            read.seconds = 0.0
    assert read.rows.count(3) >= 4, "steps are of all three"


def test_who_still_waits_at_the_end_is_told(speaker: Speaker) -> None:
    read = speaker.read
    assert isinstance(read, Slowly)
    with serving(speaker) as (client, worker), ThreadPoolExecutor(1) as pool:
        read.seconds = 0.05
        try:
            asked = {"model": "tiny", "prompt": "a", "max_tokens": 60}
            waiting = pool.submit(client.post, "/v1/completions", json=asked)
            until(lambda: worker.load == (1, 0))
            worker.stop()
            answer = waiting.result(10)
            assert answer.status_code == 503
            assert "the server is stopping" in answer.text
            assert client.get("/health").status_code == 503
        finally:
            read.seconds = 0.0


def test_adapters_are_models_too(speaker: Speaker, tmp_path: Path) -> None:
    """Rows of one batch with adapters of their own say what a merged model says alone."""
    write_tokenizer(tmp_path / "tokenizer.json")
    plain = SemiCausal(MODEL).eval()
    initialize(plain, seed=1)
    weights = {name: value.detach() for name, value in plain.named_parameters()}
    wanted: dict[str | None, str] = {}
    drawn = Sampling(top_p=1.0, seed=3)
    model = copy.deepcopy(plain)
    for seed, name in enumerate(("french", "german")):
        config = LoraConfig(rank=2, alpha=8.0)
        generator = torch.Generator().manual_seed(seed)
        shapes = Tuning(lora=config).adapter_shapes(Names.of(MODEL))
        values = {n: torch.randn(shape, generator=generator) / 3 for n, shape in shapes.items()}
        put_adapter(model, name, config, values)
        merged = copy.deepcopy(plain)
        merged.load_state_dict(with_adapters(weights, values, factor=config.factor), strict=False)
        alone = Speaker(merged.eval(), tmp_path / "tokenizer.json")
        wanted[name] = alone.complete(
            [Asked(prompt=PROMPTS[0], max_new_tokens=12, sampling=drawn)]
        )[0].text
    wanted[None] = speaker.complete([Asked(prompt=PROMPTS[0], max_new_tokens=12, sampling=drawn)])[
        0
    ].text
    assert len(set(wanted.values())) == 3
    several = Speaker(model, tmp_path / "tokenizer.json", read=by_row(model))
    asked = [
        Asked(prompt=PROMPTS[0], max_new_tokens=12, sampling=drawn, adapter=name)
        for name in (*wanted, None)
    ]
    told = [answer.text for answer in several.complete(asked)]
    assert told == [*wanted.values(), wanted[None]]
    with serving(several, adapters=("french", "german")) as (client, _):
        for name, text in wanted.items():
            body = {"model": name or "tiny", "prompt": PROMPTS[0], "max_tokens": 12}
            choice = complete(client, **body, seed=3)["choices"][0]
            assert choice["text"] == text
        cards = client.get("/v1/models").json()["data"]
        parents = [(card["id"], card["parent"]) for card in cards]
        assert parents == [("tiny", None), ("french", "tiny"), ("german", "tiny")]
        answer = client.post("/v1/completions", json={"model": "dutch", "prompt": "a"})
        assert answer.status_code == 404
        assert "there is no 'dutch'; there is 'tiny', 'french', 'german'" in answer.text
