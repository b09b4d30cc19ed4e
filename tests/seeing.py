"""Tiny models that read text, pictures and sounds: a random one, and one that says what it sees."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.layers import initialize
from model.semicausal import ModelConfig, SemiCausal
from tests import clips, pictures, sounds
from tests.corpora import WORDS, write_tokenizer
from tests.tiny_pictures import PICTURES
from tests.train.runs import run
from tests.train.scores.test_pictures import SEEING
from tests.train.test_sounds import SOUNDS
from tests.train.test_videos import VIDEOS
from train.text import Speaker


def seeing(directory: Path, config: ModelConfig = SEEING) -> Speaker:
    """A speaker that says something else of each; its tokenizer lies in the directory."""
    torch.manual_seed(0)
    model = SemiCausal(config).eval()
    initialize(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    write_tokenizer(directory / "tokenizer.json")
    return Speaker(model, directory / "tokenizer.json")


def with_encoders(*names: str) -> ModelConfig:
    """The model with these of its encoders alone."""
    document = SEEING.model_dump()
    encoders = document["encoders"]
    return ModelConfig.model_validate(
        document | {"encoders": {name: encoders[name] for name in names}}
    )


COLOURS = {name: pictures.COLOURS[name] for name in ("red", "blue")}
TONES = {"low": 300.0, "high": 2700.0}
TURNS = {"rising": -1, "falling": 1}
"""Which way a bright row of squares goes in a clip."""
ANSWERS = {"image": [*COLOURS], "audio": [*TONES], "video": [*TURNS]}
QUESTIONS = {
    "image": "What colour is it?", "audio": "How high is it?", "video": "Where does it go?",
}  # fmt: skip
SAYING = (
    *PICTURES,
    *(option for option in (*SOUNDS, *VIDEOS) if not option.startswith("data.")),
    "spans.text.ratio=0.0",
    "model.decoder.max_tokens=128",
    "data.sequence_tokens=128",
    "batch.sequences=4",
    "batch.micro_sequences=4",
    "validation.every_steps=1000",
    "checkpoint.every_steps=1000",
)


def shown(name: str) -> bytes:
    """A file of a colour, a tone or a clip."""
    if name in COLOURS:
        return pictures.png(32, 40, colour=COLOURS[name])
    if name in TURNS:
        frames = np.zeros((4, 32, 32, 3), np.uint8)
        for number in range(4):
            place = (TURNS[name] * number) % 4
            frames[number, 8 * place : 8 * place + 8] = 255
        return clips.saved(list(frames))
    return sounds.tone(TONES[name], 1600, 8000)


def conversations(count: int) -> list[Any]:
    """One or two questions, each about what is shown before it, with their answers."""
    random = np.random.default_rng(0)
    rows: list[Any] = []
    for _ in range(count):
        segments: list[dict[str, Any]] = []
        for _ in range(random.integers(1, 3)):
            kind = str(random.choice(list(QUESTIONS)))
            name = str(random.choice(ANSWERS[kind]))
            question = {"text": QUESTIONS[kind], "scored": False, "ends_paragraph": False}
            segments += [{kind: shown(name)}, question, {"text": f" it is {name}"}]
        rows.append({"segments": segments})
    return rows


def learned(root: Path, *, steps: int = 160) -> Path:
    """A run that was trained until it says what it sees and hears."""
    tokenizer = root / "tokenizer.json"
    write_tokenizer(
        tokenizer, text=" ".join([*COLOURS, *TONES, *TURNS, *QUESTIONS.values()] * 4 + [WORDS])
    )
    flags = ("--tokenizer", str(tokenizer))
    corpus = pictures.build(root / "corpus", conversations(200), flags=flags)
    run(corpus, root / "run", *SAYING, f"steps={steps}")
    return root / "run"
