"""Conversations as prompts, however many messages they have."""

import random
from typing import Any

from tools.serve.chat import ChatRequest
from train.prompt import escaped

SAID = ["", " ", "\n", "\n\n", "x", " x ", "x\n", "x \n\n", "\nx  ", "  "]


def conversation(messages: list[dict[str, Any]]) -> ChatRequest:
    return ChatRequest.model_validate({"model": "tiny", "messages": messages})


def as_told(messages: list[dict[str, Any]]) -> str:
    """By a text that grows."""
    told = ""
    for number, message in enumerate(messages):
        parts = [part["text"] for part in message["content"]]
        if message["role"] == "assistant":
            said = escaped("".join(parts)).rstrip()
            if told and not told[-1].isspace() and not said[:1].isspace():
                told += " "
            told += said + "\n\n"
            continue
        if told and not told.endswith("\n\n"):
            told += "\n\n"
        written = ""
        for part in parts:
            if written and not written[-1].isspace() and not part[:1].isspace():
                written += "\n"
            written += part
        told += written
        if message["role"] == "user" and number + 1 < len(messages):
            told = told.rstrip(" ")
    return told


def test_any_conversation_is_what_a_text_that_grows_has() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        messages = [
            {
                "role": draw.choice(["system", "user", "assistant"]),
                "content": [
                    {"type": "text", "text": draw.choice(SAID)} for _ in range(draw.randrange(4))
                ],
            }
            for _ in range(draw.randrange(6))
        ]
        messages.append({"role": "user", "content": [{"type": "text", "text": draw.choice(SAID)}]})
        assert conversation(messages).prompts(None) == [as_told(messages)], messages


def test_a_message_costs_nothing_for_those_before_it() -> None:
    """Of 50,000 of them each piece is as long as its message: nothing that grows is copied."""
    turn = [
        {"role": "user", "content": "where is the page"},
        {"role": "assistant", "content": "here"},
    ]
    pieces = list(conversation(turn * 25_000 + turn[:1]).pieces(None))
    assert len(pieces) == 50_001
    assert max(map(len, pieces)) < 30
