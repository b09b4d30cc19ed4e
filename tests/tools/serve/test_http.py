"""A real server on a real socket: what clients hear."""

import json
import logging
import math
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from model.generation.picking import Sampling
from tests.tools.serve.serving import KEY, PROMPTS, Slowly, complete, serving, streamed
from train.asked import Asked
from train.text import Speaker


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


@pytest.mark.parametrize(
    "prompt",
    ["the [[kernel maps]] a\n\npage ", "\\[[ of \n [[ a]]\n\n\n[[text:b]] bus", "\n\nmemory\n"],
)
def test_an_echo_is_what_was_sent_and_offsets_lie_in_it(
    client: httpx.Client, speaker: Speaker, prompt: str
) -> None:
    told = complete(client, prompt=prompt, echo=True, logprobs=0, max_tokens=3)
    (choice,) = told["choices"]
    assert choice["text"].startswith(prompt)
    offsets, tokens = (choice["logprobs"][key] for key in ("text_offset", "tokens"))
    assert offsets == sorted(offsets)
    read = speaker.prompt(prompt).tokens
    for token, offset in zip(tokens[: len(read)], offsets, strict=False):
        if token not in ("<s>", "\n\n"):
            behind = prompt[offset:]
            unmarked = re.sub(r"\[\[(text:)?", "", behind)
            assert behind.startswith(token) or unmarked.startswith(token), (token, offset)


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
        ({"prompt": 5}, 400, "prompt: give a text, token ids from 0 on, or a list of either"),
        ({"prompt": [True, False]}, 400, "prompt: give a text"),
        ({"prompt": None}, 400, "prompt: give a text"),
        ({"prompt": "a", "stop": ["x"] * 17}, 400, "stop: give a text, or 16 at most"),
        ({}, 400, "prompt: Field required"),
        ({"prompt": "a", "model": "french"}, 404, "model: there is no 'french'; there is 'tiny'"),
        ({"prompt": "a", "best_off": 2}, 400, "best_off: is not known here: leave it out"),
        ({"prompt": "a", "best_of": 2}, 400, "best_of: only n of n are given"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix: "),
        ({"prompt": "a", "temperature": -1, "n": 0}, 400, "temperature: Input should be greater"),
        ({"prompt": "a", "n": 0}, 400, "n: Input should be greater"),
        ({"prompt": "a", "logprobs": 21}, 400, "logprobs: Input should be less"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias: is not done here"),
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


def test_what_usual_clients_send_is_answered(client: httpx.Client) -> None:
    """Nulls for what they leave open, what changes nothing, and no word of how much."""
    nulls = ("max_tokens", "temperature", "top_p", "n", "best_of", "stream", "stream_options")
    nulls += ("logprobs", "echo", "stop", "seed", "user", "suffix", "logit_bias")
    assert complete(client, prompt="a", **dict.fromkeys(nulls))["choices"]
    nothing = {"presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 2, "n": 2, "user": "me"}
    assert len(complete(client, prompt=["日本 🎉", ""], max_tokens=2, **nothing)["choices"]) == 4
    texts = {
        complete(client, prompt="a", max_tokens=4, **greedy)["choices"][0]["text"]
        for greedy in ({"temperature": 0}, {"top_p": 0}, {"temperature": 1e-320})
    }
    assert len(texts) == 1
    # Of a prompt that leaves less room than is generated unless said otherwise, what has room.
    (choice,) = complete(client, prompt=[5] * 60)["choices"]
    assert choice["finish_reason"] in ("length", "stop")
    assert client.head("/health").status_code == 200
    assert client.post("/v1/completions/", json={}).status_code == 404


def test_a_body_that_is_larger_than_it_says_is_refused(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    assert client.post("/v1/completions", content=pieces()).status_code == 413


def test_other_places(client: httpx.Client) -> None:
    for answer, status in ((client.get("/v1/chat"), 404), (client.get("/v1/completions"), 405)):
        assert answer.status_code == status
        assert "there are /v1/chat/completions, /v1/completions, /v1/models and" in answer.text


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
        before = complete(client, prompt="a", temperature=0)["choices"][0]["text"]
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
        after = complete(client, prompt="a", temperature=0)["choices"][0]["text"]
        assert after == before
        assert after
    out, err = capfd.readouterr()
    assert "private" not in out + err + answer.text + events


def test_a_server_closes_no_handler_of_others(speaker: Speaker) -> None:
    """Handlers as absl's, which rouge-score brings, close the stream that they write to."""
    closed: list[bool] = []

    class Theirs(logging.NullHandler):
        def close(self) -> None:
            closed.append(True)
            super().close()

    handler = Theirs()
    logging.root.addHandler(handler)
    try:
        with serving(speaker) as (client, _):
            assert client.get("/health").status_code == 200
        assert not closed
    finally:
        logging.root.removeHandler(handler)
