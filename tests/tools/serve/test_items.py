"""Conversations and completions that show pictures and sounds: bytes alone, each named if bad."""

import base64
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.generation.picking import Sampling
from tests import clips
from tests.pictures import png
from tests.seeing import seeing, with_encoders
from tests.sounds import noise, saved
from tests.tools.serve.serving import complete, serving, streamed, until
from tools.serve import application
from tools.serve.items import GivenItems, Sent
from train.asked import Asked, Prompt
from train.data.document import Kind
from train.data.segments import MediaSegment
from train.errors import UserError
from train.items import Bounds, item_of
from train.text import Speaker

CHAT = "/v1/chat/completions"
FILES = {
    "cat.png": png(16, 24),
    "other.png": png(8, 8),
    "a.wav": saved(noise(900), 8000),
    "b.flac": saved(noise(333), 8000, "FLAC"),
}
BOUNDS = Bounds(num_bytes=50_000, pixels=2000, seconds=1.0)


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{coded(data)}"


def image(data: bytes | str) -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": data if isinstance(data, str) else url(data)},
    }


def sound(data: bytes | str, format: str = "wav") -> dict[str, Any]:
    held = data if isinstance(data, str) else coded(data)
    return {"type": "input_audio", "input_audio": {"data": held, "format": format}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any] | str) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else parts}


def opened(kind: Kind, name: str) -> MediaSegment:
    return item_of(kind, FILES[name], name=name, bounds=Bounds())


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return seeing(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def client(seer: Speaker) -> Iterator[httpx.Client]:
    with serving(seer, bounds=BOUNDS, most_items=4, most_body_bytes=200_000) as (client, _):
        yield client


def answer(seer: Speaker, prompt: str, *, most: int = 8, **options: Any) -> str:
    read = seer.prompt(prompt, items=opened)
    (told,) = seer.complete([Asked(prompt=read, max_new_tokens=most, **options)])
    return told.text


SHOWN = [image(FILES["cat.png"]), text("the page"), sound(FILES["b.flac"], "flac")]
AS_PROMPT = "[[image:cat.png]]\nthe page\n[[audio:b.flac]]"
GREEDY = {"temperature": 0, "max_tokens": 8}


def test_a_conversation_is_a_prompt(client: httpx.Client, seer: Speaker) -> None:
    told = complete(client, CHAT, messages=[user(*SHOWN)], **GREEDY)
    assert told["object"] == "chat.completion"
    assert told["id"].startswith("chatcmpl-")
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer(seer, AS_PROMPT)}
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("length", "stop")
    read = seer.prompt(AS_PROMPT, items=opened)
    assert told["usage"]["prompt_tokens"] == len(read.tokens)
    assert told["usage"]["item_slots"] == [
        {"item": "messages.0.content.0", "modality": "image", "slots": 6},
        {"item": "messages.0.content.2", "modality": "audio", "slots": 3},
    ]
    assert [item.stop - item.start for item in read.items] == [6, 3]


def test_it_streams(client: httpx.Client, seer: Speaker) -> None:
    options = {"stream_options": {"include_usage": True}, "max_completion_tokens": 8}
    pieces = streamed(client, CHAT, messages=[user(*SHOWN)], seed=3, **options)
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    deltas = [choice["delta"] for piece in pieces for choice in piece["choices"]]
    wanted = answer(seer, AS_PROMPT, sampling=drawn(3))
    assert "".join(delta["content"] for delta in deltas) == wanted
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert len(deltas) > 2
    assert [piece["usage"]["item_slots"][1]["slots"] for piece in pieces if "usage" in piece] == [3]


def test_asked_again_it_knows_what_was_shown_and_said(client: httpx.Client, seer: Speaker) -> None:
    """What is sent again is read as it was: the tokens of a prompt and its answer stay the same."""
    messages = [
        {"role": "system", "content": "the driver"},
        user(*SHOWN[:2]),
        {"role": "assistant", "content": " a [[page]]"},
        user("its device "),
        {"role": "assistant", "content": [text("the bus")]},
        user(sound(FILES["a.wav"]), text("what"), text("then")),
    ]
    prompt = (
        "the driver\n\n[[image:cat.png]]\nthe page a \\[[page\\]]\n\nits device the bus\n\n"
        "[[audio:a.wav]]\nwhat\nthen"
    )
    told = complete(client, CHAT, messages=messages, n=2, seed=3, max_tokens=6)
    wanted = [answer(seer, prompt, most=6, sampling=sampling) for sampling in (drawn(3), drawn(4))]
    assert [choice["message"]["content"] for choice in told["choices"]] == wanted
    assert told["usage"]["prompt_tokens"] == len(seer.prompt(prompt, items=opened).tokens)


def drawn(seed: int) -> Any:
    return Sampling(temperature=1.0, top_p=1.0, seed=seed)


def test_without_a_bound_an_answer_ends_with_the_room(client: httpx.Client) -> None:
    for most in ({}, {"max_tokens": 999}):
        told = complete(client, CHAT, messages=[user("the page")], temperature=0, **most)
        usage = told["usage"]
        assert told["choices"][0]["finish_reason"] == "stop" or usage["total_tokens"] == 65


def test_completions_name_what_comes_with_them(client: httpx.Client, seer: Speaker) -> None:
    items = {"a cat": url(FILES["cat.png"]), "b": url(FILES["b.flac"], "audio/flac")}
    prompts = ["[[image:a cat]]\nthe page\n[[audio: b ]]", "[[image:a cat]] is"]
    told = complete(client, prompt=prompts, items=items, n=2, **GREEDY)
    wanted = [answer(seer, AS_PROMPT), answer(seer, "[[image:cat.png]] is")]
    found = [choice["text"] for choice in told["choices"]]
    assert found == [wanted[0], wanted[0], wanted[1], wanted[1]]
    assert [(each["item"], each["slots"]) for each in told["usage"]["item_slots"]] == [
        ("items.a cat", 6), ("items.b", 3), ("items.a cat", 6),
    ]  # fmt: skip


def test_files_are_let_go_before_a_request_waits(client: httpx.Client, seer: Speaker) -> None:
    seen: list[Prompt] = []
    submit = seer.request

    def request(asked: Asked) -> Any:
        assert isinstance(asked.prompt, Prompt)
        seen.append(asked.prompt)
        return submit(asked)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(seer, "request", request)
        complete(client, CHAT, messages=[user(*SHOWN)], max_tokens=1)
    assert [item.data for prompt in seen for item in prompt.items] == [b"", b""]


def test_pixels_of_all_videos_of_a_request_are_bounded() -> None:
    """One that is shown again is decoded again, and counts again."""
    sent = Sent(key="items.a", data=coded(clips.exact(clips.noise(5, 16, 24))))
    items = GivenItems({"a": sent}, Bounds(video_pixels=2 * 5 * 16 * 24 + 7), most=9)
    assert [items(Kind.VIDEO, "a").size[:3] for _ in range(2)] == [(5, 16, 24)] * 2
    with pytest.raises(
        UserError, match=r"items\.a has more than 7 pixels in all frames of 16x24: "
    ):
        items(Kind.VIDEO, "a")


def refused(client: httpx.Client, path: str, body: dict[str, Any]) -> str:
    answer = client.post(path, json={"model": "tiny"} | body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 400
    return error["message"]


FIRST = "messages.0.content.0"
HERE = Path(__file__)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([image("https://example.com/a-secret/cat.png")], f"{FIRST}: no address and no file is op"),
        ([image("http://169.254.169.254/latest")], f"{FIRST}: no address and no file is opened"),
        ([image(HERE.as_uri())], f"{FIRST}: no address and no file is opened here: send the bytes"),
        ([image(str(HERE))], f"{FIRST}: no address and no file is opened here"),
        ([image("data:image/png,abc")], f"{FIRST}: is not in base 64: send it as data:image/png"),
        ([image("data:image/png;base64,a?c=")], f"{FIRST}: is not in base 64 ("),
        ([sound("https://example.com/a.wav")], f"{FIRST}: is not in base 64 ("),
        ([text("see"), image(b"")], "messages.0.content.1 is empty"),
        ([text("see"), image(b"\x89PNG\r\n\x1a\n" + b"x" * 40)], "messages.0.content.1 cannot be"),
        ([image(png(40, 40)[:-60])], f"{FIRST} cannot be read ("),
        ([sound(saved(noise(900), 8000)[:-99])], f"{FIRST} is cut off: "),
        ([image(FILES["a.wav"])], f"{FIRST} is no image but audio: name it so"),
        ([sound(FILES["cat.png"])], f"{FIRST} is no audio but image: name it so"),
        ([image(png(50, 41))], f"{FIRST} has 50x41 pixels, more than 2,000: make it smaller"),
        ([sound(saved(noise(8001), 8000))], f"{FIRST} is longer than 1 seconds"),
        ([sound(saved(noise(26_000), 8000))], f"{FIRST} has 52,044 bytes, more than 50,000"),
        ([sound(saved(noise(2000), 8000))], f"{FIRST} has a sound of 0.250 seconds, and its enc"),
        ([image(FILES["other.png"])] * 5, "the request shows more than 4 items: ask for less"),
        ([text("a [[b"), image(FILES["cat.png"])], f"{FIRST}: the prompt's span '[[b' is not cl"),
        ([text("[[image:x.png]]")], f"{FIRST}: the prompt's [[image: (line 1, character 1) names"),
        ([text("[[image:messages.0.content.1]]"), image(FILES["cat.png"])], "[[image: (line 1"),
        ([{"type": "file", "file": {}}], f"{FIRST}: Input tag 'file' found using 'type' does not"),
        ([{"type": "image_url", "image_url": {}}], f"{FIRST}: Field required"),
        ([{"type": "image_url", "image_url": {"url": "data:", "detail": "low"}}], f"{FIRST}: "),
        ([sound(FILES["a.wav"], "aac")], f"{FIRST}: Input should be 'wav', 'mp3', 'flac', 'ogg'"),
        ([{"type": "video_url", "video_url": {"url": url(b"x")}}], "has no encoder of video, its"),
        (None, "messages.0.content: "),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_named(client: httpx.Client, content: Any, told: str) -> None:
    message = refused(client, CHAT, {"messages": [{"role": "user", "content": content}]})
    assert told in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        (CHAT, {"messages": []}, "messages: List should have at least 1 item"),
        (CHAT, {}, "messages: Field required"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: Input should"),
        (CHAT, {"messages": [user("x"), {"role": "assistant", "content": "y"}]},
         "messages: the last one is not of the user"),
        (CHAT, {"messages": [{"role": "assistant", "content": [image(FILES["cat.png"])]},
                             user("x")]}, "messages.0: answers are text alone"),
        (CHAT, {"messages": [user("x")], "logprobs": True}, "logprobs: is done by /v1/completions"),
        (CHAT, {"messages": [user("x")], "tools": []}, "tools: is not known here: leave it out"),
        (CHAT, {"messages": [user("x " * 90)]}, "tokens, the model reads 64"),
        ("/v1/completions", {"prompt": "[[image:cat.png]]"},
         "the prompt's [[image:cat.png]] is none of the request's items, and no file is opened"),
        ("/v1/completions", {"prompt": "x", "items": {"a": url(FILES["cat.png"])}},
         "items.a: no prompt shows it: write its mark, such as [[image:a]], or leave it out"),
        ("/v1/completions", {"prompt": "[[audio:a]]", "items": {"a": url(FILES["cat.png"])}},
         "items.a is no audio but image: name it so"),
        ("/v1/completions", {"prompt": "[[image:a]]", "items": {"a": "/etc/passwd"}},
         "items.a: no address and no file is opened here: send the bytes"),
        ("/v1/completions", {"prompt": "[[image:a]]", "items": {"a": url(b"x")}, "echo": True},
         "echo: what items take has no text: leave it out, or them"),
        ("/v1/completions", {"prompt": "x", "items": [1]}, "items: give data: URLs by name"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any], told: str
) -> None:
    assert told in refused(client, path, body)


def test_what_a_model_reads_is_told(client: httpx.Client, tmp_path: Path) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert card["input_modalities"] == ["text", "image", "audio"]
    with serving(seeing(tmp_path, with_encoders("text"))) as (other, _):
        (card,) = other.get("/v1/models").json()["data"]
        assert card["input_modalities"] == ["text"]
        told = refused(other, CHAT, {"messages": [user(image(FILES["other.png"]))]})
        assert "the model has no encoder of image, its encoders read text: leave it out" in told


def test_what_is_shown_is_written_nowhere(
    client: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    complete(client, CHAT, messages=[user(*SHOWN)], max_tokens=1)
    client.post(CHAT, content=json.dumps({"messages": [user(image(b"a private picture"))]}))
    out, err = capfd.readouterr()
    assert not out
    assert coded(b"a private picture")[:20] not in err


def test_few_wait_with_their_items(seer: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps megabytes: of many some are refused at once, and texts alone are answered."""
    monkeypatch.setattr(application, "MOST_UNDECODED", 1)
    go_on = threading.Event()
    read, prompt = seer.prompt, [user(image(FILES["cat.png"]))]

    def prompt_of(given: Any, **options: Any) -> Prompt:
        if isinstance(given, str) and "image" in given:  # the worker has what was read
            assert go_on.wait(60)
        return read(given, **options)

    monkeypatch.setattr(seer, "prompt", prompt_of)
    found: list[int] = []

    def ask(client: httpx.Client) -> None:
        body = {"model": "tiny", "messages": prompt, "max_tokens": 1}
        answer = client.post(CHAT, json=body)
        found.append(answer.status_code)
        if answer.status_code == 429:
            assert answer.json()["error"]["message"].startswith("too many requests are waiting: ")

    with serving(seer) as (client, _), ThreadPoolExecutor(6) as pool:
        try:
            asking = [pool.submit(ask, client) for _ in range(6)]
            until(lambda: len(found) == 3)
            assert complete(client, CHAT, messages=[user("the page")], max_tokens=1)
        finally:
            go_on.set()
        for each in asking:
            each.result()
        assert Counter(found) == {200: application.MOST_DECODED + 1, 429: 3}
        ask(client)  # those that were answered wait no more
        assert found[-1] == 200


def test_a_bad_item_disturbs_nobody(client: httpx.Client, seer: Speaker) -> None:
    """Its request is refused while another's answer is made, which stays what it is alone."""
    wanted = answer(seer, "the page", most=50, sampling=drawn(5))
    body = {"model": "tiny", "prompt": "the page", "max_tokens": 50, "seed": 5, "stream": True}
    told = ""
    with client.stream("POST", "/v1/completions", json=body) as going_on:
        for number, line in enumerate(line for line in going_on.iter_lines() if line):
            if number == 1:
                message = {"role": "user", "content": [image(png(40, 40)[:-60])]}
                assert "cannot be read" in refused(client, CHAT, {"messages": [message]})
            if not line.endswith("[DONE]"):
                told += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    assert told == wanted
