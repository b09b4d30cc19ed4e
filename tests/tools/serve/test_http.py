"""A real server on a real socket: what clients hear, and what is left of those who leave."""

import copy
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from torch import Tensor

from model.adapters.kinds import LoraConfig
from model.adapters.merging import with_adapters
from model.adapters.several import put_adapter
from model.adapters.tuning import Names, Tuning
from model.generation.picking import Sampling
from model.layers import initialize
from model.reading import Reading
from model.semicausal import SemiCausal
from tests.corpora import WORDS, write_tokenizer
from tests.train.test_prompt import MODEL
from tools.serve import worker as worker_module
from tools.serve.application import Rules, application
from tools.serve.worker import BusyError, Job, Worker
from tools.speaker import by_row
from train.text import Asked, Prompt, Speaker

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


def until(holds: Callable[[], bool], *, seconds: float = 20) -> None:
    """Waits until something holds."""
    last = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < last, "it never came to that"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    path = tmp_path_factory.mktemp("serve") / "tokenizer.json"
    write_tokenizer(path)
    model = SemiCausal(MODEL).eval()
    initialize(model, seed=1)
    return Speaker(model, path, read=Slowly(model))


@contextmanager
def serving(
    speaker: Speaker, *, key: str | None = None, adapters: tuple[str, ...] = (), **options: int
) -> Generator[Any]:
    """A server, its worker, and a client of it."""
    worker = Worker(
        speaker,
        most_rows=options.get("most_rows", 8),
        most_waiting=options.get("most_waiting", 8),
    )
    most_body_bytes = options.get("most_body_bytes", 20_000)
    rules = Rules(model="tiny", adapters=adapters, api_key=key, most_body_bytes=most_body_bytes)
    server = uvicorn.Server(
        uvicorn.Config(
            application(worker, rules), log_level="warning", access_log=False, lifespan="off"
        )
    )
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


@pytest.fixture(scope="module")
def served(speaker: Speaker) -> Iterator[tuple[httpx.Client, Worker]]:
    with serving(speaker) as pair:
        yield pair


@pytest.fixture
def client(served: tuple[httpx.Client, Worker]) -> httpx.Client:
    return served[0]


def complete(client: httpx.Client, **wanted: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"model": "tiny"} | wanted)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(client: httpx.Client, **wanted: Any) -> list[dict[str, Any]]:
    wanted = {"model": "tiny", "stream": True} | wanted
    with client.stream("POST", "/v1/completions", json=wanted) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_answers_are_the_speakers_own(client: httpx.Client, speaker: Speaker) -> None:
    """Several prompts, several continuations of each: all of the first, then of the second."""
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.8, "seed": 7}
    told = complete(client, prompt=PROMPTS, n=2, **options)
    wanted = speaker.complete(
        [
            Asked(
                prompt=prompt,
                max_new_tokens=12,
                sampling=Sampling(temperature=0.9, top_p=0.8, seed=7 + copy),
            )
            for prompt in PROMPTS
            for copy in range(2)
        ]
    )
    assert [choice["text"] for choice in told["choices"]] == [answer.text for answer in wanted]
    assert [choice["index"] for choice in told["choices"]] == list(range(6))
    assert {choice["finish_reason"] for choice in told["choices"]} == {"length"}
    prompted = sum(len(speaker.prompt(prompt).tokens) for prompt in PROMPTS)
    assert told["usage"] == {
        "prompt_tokens": prompted, "completion_tokens": 72, "total_tokens": prompted + 72
    }  # fmt: skip
    assert told["object"] == "text_completion"
    tokens = [speaker.prompt(prompt).tokens for prompt in ("a", PROMPTS[0])]
    by_tokens = complete(client, prompt=tokens[0], n=2, **options)
    assert by_tokens["choices"] == [
        choice | {"index": choice["index"] - 2} for choice in told["choices"][2:4]
    ]
    assert len(complete(client, prompt=tokens, **options)["choices"]) == 2


def test_without_temperature_it_is_greedy_and_without_a_seed_it_changes(
    client: httpx.Client, speaker: Speaker
) -> None:
    (wanted,) = speaker.complete([Asked(prompt="a", max_new_tokens=16)])
    assert complete(client, prompt="a", temperature=0)["choices"][0]["text"] == wanted.text
    assert len({complete(client, prompt="a")["choices"][0]["text"] for _ in range(3)}) == 3


@pytest.mark.parametrize("options", [{}, {"echo": True, "logprobs": 2}, {"logprobs": 0, "n": 2}])
def test_a_stream_is_the_whole_in_pieces(client: httpx.Client, options: dict[str, Any]) -> None:
    options = {"prompt": PROMPTS[:2], "max_tokens": 9, "seed": 3, "stop": ["z", "qu"]} | options
    whole = complete(client, **options)
    pieces = streamed(client, stream_options={"include_usage": True}, **options)
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == whole["usage"]
    assert len(pieces) > 2 * len(whole["choices"]), "piece by piece"
    for choice in whole["choices"]:
        mine = [p["choices"][0] for p in pieces[:-1] if p["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert [piece["finish_reason"] for piece in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"] is not None:
            joined: dict[str, list[Any]] = {key: [] for key in choice["logprobs"]}
            for piece in mine:
                for key, values in piece["logprobs"].items():
                    joined[key] += values
            assert joined == choice["logprobs"]


def test_echo_tells_the_probability_of_each_token(client: httpx.Client, speaker: Speaker) -> None:
    """As lm-eval's local-completions asks: the prompt as tokens, one token more, greedy."""
    tokens = speaker.prompt("the kernel maps a page").tokens
    told = complete(
        client, prompt=[tokens, tokens[:3]], echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    free = speaker.complete([Asked(prompt=tokens, max_new_tokens=1, num_top=1, echoes=True)])[0]
    first, second = (choice["logprobs"] for choice in told["choices"])
    assert first["token_logprobs"][0] is None
    assert first["top_logprobs"][0] is None
    assert first["token_logprobs"][1:] == pytest.approx(
        [token.log_probability for token in (*free.row.echo[1:], *free.tokens)], abs=1e-5
    )
    assert len(first["tokens"]) == len(tokens) + 1
    assert second["token_logprobs"][1:3] == pytest.approx(first["token_logprobs"][1:3], abs=1e-5)
    for chance, top in zip(first["token_logprobs"][1:], first["top_logprobs"][1:], strict=True):
        assert chance in top.values()
        assert max(top.values()) >= chance
    assert first["token_logprobs"][-1] == max(first["top_logprobs"][-1].values())
    text = told["choices"][0]["text"]
    assert text.startswith("the kernel maps a page")
    assert first["text_offset"][-1] == len("the kernel maps a page")
    assert all(0 <= offset <= len(text) for offset in first["text_offset"])
    nothing = complete(client, prompt="the kernel", echo=True, logprobs=0, max_tokens=0)
    (choice,) = nothing["choices"]
    assert choice["text"] == "the kernel"
    assert all(math.isfinite(chance) for chance in choice["logprobs"]["token_logprobs"][1:])


def test_a_stop_string_is_not_told(client: httpx.Client) -> None:
    options: dict[str, Any] = {"prompt": "a", "max_tokens": 16, "seed": 8}
    text = complete(client, **options)["choices"][0]["text"]
    stop = text[9:11]
    assert len(stop) == 2
    (choice,) = complete(client, stop=stop, **options)["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_models(client: httpx.Client) -> None:
    told = client.get("/v1/models").json()
    assert [(card["id"], card["max_model_len"]) for card in told["data"]] == [("tiny", 64)]
    assert client.get("/v1/models/tiny").json() == told["data"][0]
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json() == {"status": "ok", "generated": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("wanted", "status", "told"),
    [
        ({"prompt": "a [[b"}, 400, "is not closed (line 1, character 3): close each span"),
        ({"prompt": [5] * 65}, 400, "the prompt has 65 tokens, the model reads 64"),
        ({"prompt": [5] * 60, "max_tokens": 6}, 400, "the prompt's 60 tokens and 6 more exceed"),
        ({"prompt": [5, 300]}, 400, "tokens outside of the vocabulary of 300"),
        ({"prompt": []}, 400, "prompt: is an empty list"),
        ({"prompt": [[]]}, 400, "the prompt has no tokens"),
        ({"prompt": ["a", 5]}, 400, "prompt: "),
        ({"prompt": 5}, 400, "prompt: "),
        ({}, 400, "prompt: Field required"),
        ({"prompt": "a", "model": "french"}, 404, "model: there is no 'french'; there is 'tiny'"),
        ({"prompt": "a", "best_off": 2}, 400, "best_off: is not known here: leave it out"),
        ({"prompt": "a", "best_of": 2}, 400, "best_of: only n of n are given"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix: "),
        ({"prompt": "a", "temperature": -1, "n": 0}, 400, "temperature: Input should be greater"),
        ({"prompt": "a", "n": 0}, 400, "n: Input should be greater"),
        ({"prompt": "a", "logprobs": 21}, 400, "logprobs: Input should be less"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias: "),
        ({"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty: "),
        ({"prompt": "a", "stream_options": {}}, 400, "stream_options: is for streams alone"),
        ({"prompt": ["a"] * 100, "n": 3}, 400, "prompt: 100 prompts by n=3 are more than 256"),
        ({"prompt": "a" * 30_000}, 413, "the request is larger than 20000 bytes"),
        (b'{"model": "tiny", "prompt": "a"', 400, "the request: Invalid JSON: EOF"),
        (b"\xff", 400, "the request: Invalid JSON"),
        (b"[" * 10_000, 400, "the request: Invalid JSON"),
        (b"", 400, "the request: Invalid JSON"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(
    client: httpx.Client, wanted: dict[str, Any] | bytes, status: int, told: str
) -> None:
    body = wanted if isinstance(wanted, bytes) else json.dumps({"model": "tiny"} | wanted).encode()
    answer = client.post("/v1/completions", content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert told in error["message"]
    assert len(error["message"]) < 300
    assert error["type"] == "invalid_request_error"


def test_a_body_that_is_larger_than_it_says_is_refused(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    assert client.post("/v1/completions", content=pieces()).status_code == 413


def test_other_places(client: httpx.Client) -> None:
    for answer, status in ((client.get("/v1/chat"), 404), (client.get("/v1/completions"), 405)):
        assert answer.status_code == status
        assert "there are /v1/completions, /v1/models and /health" in answer.text


def test_a_key_is_asked_for_and_never_shown(
    speaker: Speaker, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(speaker, key=KEY) as (client, _):
        asked = {"model": "tiny", "prompt": "a private word"}
        for headers in ({}, {"Authorization": "Bearer another"}, {"Authorization": "Bearer é"}):
            for answer in (
                client.post("/v1/completions", json=asked, headers=_encoded(headers)),
                client.get("/v1/models", headers=_encoded(headers)),
            ):
                assert answer.status_code == 401
                assert "missing or wrong: send it as a bearer token" in answer.text
                assert KEY not in answer.text
        good = {"Authorization": f"Bearer {KEY}"}
        assert client.post("/v1/completions", json=asked, headers=good).status_code == 200
        assert client.get("/health").status_code == 200
    out, err = capfd.readouterr()
    assert KEY not in out + err
    assert "private" not in out + err


def _encoded(headers: dict[str, str]) -> dict[str, bytes]:
    return {name: value.encode() for name, value in headers.items()}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (RuntimeError("a private word"), "the server failed (RuntimeError)"),
        (FloatingPointError("what the model predicts is not finite"), "not finite: name another"),
    ],
)
def test_a_failure_is_told_and_the_next_request_is_answered(
    speaker: Speaker, fault: Exception, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    read = speaker.read
    assert isinstance(read, Slowly)
    asked = {"model": "tiny", "prompt": "a private word"}
    with serving(speaker) as (client, worker):
        try:
            read.fault = fault
            answer = client.post("/v1/completions", json=asked)
            events = client.post("/v1/completions", json=asked | {"stream": True}).text
        finally:
            read.fault = None
        assert answer.status_code == 503
        assert told in answer.json()["error"]["message"]
        assert told in json.loads(events.removeprefix("data: "))["error"]["message"]
        assert worker.load == (0, 0)
        assert complete(client, prompt="a")["choices"][0]["text"]
    out, err = capfd.readouterr()
    assert "private" not in out + err + answer.text + events


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
        read.seconds = 0.05
        try:
            leaving(client, stream=stream)
            # Sixty tokens would take seconds.
            started = time.monotonic()
            until(lambda: worker.load == (0, 0))
            assert time.monotonic() - started < 1.5
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

    def slow(given: str | Sequence[int] | Prompt) -> Prompt:
        if isinstance(given, str):
            reading.set()
            may_end.wait(20)
        return prompt(given)

    monkeypatch.setattr(speaker, "prompt", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(complete, client, prompt="a", max_tokens=2)
        try:
            assert reading.wait(20)
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
