"""Corpora with pictures for tests, as `tools.corpus build` makes them."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.corpora import WORDS, write_tokenizer
from tools.corpus.__main__ import main

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 30), "blue": (30, 30, 240)}
"""What the captions of `colours` say of their pictures."""

BEGINNINGS = {
    b"RIFF": ".wav", b"fLaC": ".flac", b"\x1a\x45\xdf\xa3": ".mkv", b"\0\0\0\x1c": ".mp4",
    b"\0\0\0\x20": ".mp4",
}  # fmt: skip
"""How files that are no pictures begin, and end in name."""


def png(height: int, width: int, *, colour: tuple[int, int, int] | None = None) -> bytes:
    """A picture of one colour, or of noise."""
    pixels = np.empty((height, width, 3), np.uint8)
    if colour is None:
        pixels[:] = np.random.default_rng(height * width).integers(0, 256, pixels.shape)
    else:
        pixels[:] = colour
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def build(out: Path, rows: Iterable[Mapping[str, Any]], *, flags: Iterable[str] = ()) -> Path:
    """A corpus of these rows, in which `image` is what `png` gives or any bytes.

    `audio` is a sound, `video` a video. Files lie beside the corpus.
    """
    source = out.parent / f"{out.name}-source"
    source.mkdir(parents=True)
    write_tokenizer(source / "tokenizer.json")
    count = 0

    def stored(value: Any) -> Any:
        nonlocal count
        if isinstance(value, Mapping):
            return {key: stored(each) for key, each in value.items()}
        if isinstance(value, list):
            return [stored(each) for each in value]
        if not isinstance(value, bytes):
            return value
        count += 1
        suffix = BEGINNINGS.get(value[:4], ".png")
        (source / f"{count}{suffix}").write_bytes(value)
        return f"{count}{suffix}"

    with (source / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(stored(row)) + "\n" for row in rows)
    status = main(
        [
            *("build", str(source / "rows.jsonl"), str(out), "--media", "--workers", "1"),
            *("--tokenizer", str(source / "tokenizer.json"), "--validation", "0.15"),
            *("--shard-mebibytes", "0.02", *flags),
        ]
    )
    assert status == 0
    return out


def interleaved(
    count: int, *, seed: int = 0, most_items: int = 3, side: int = 40, words: int = 12
) -> list[Any]:
    """Rows of text, spans of text and pictures of many sizes in any order; some of text alone."""
    random = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(random.choice(WORDS.split(), random.integers(1, most)))

    rows: list[Any] = []
    for number in range(count):
        segments: list[dict[str, Any]] = []
        for _ in range(random.integers(0, most_items + 1) if number % 3 else 0):
            height, width = random.integers(1, side, 2).tolist()
            segments.append({"image": png(height, width)})
        segments += [{"text": text(words)} for _ in range(random.integers(1, 3))]
        if random.random() < 0.3:
            segments.append({"text": text(6), "span": True})
        order = random.permutation(len(segments)).tolist()
        rows.append({"segments": [segments[place] for place in order]})
    return rows


def albums(count: int, *, pages: int = 9, each: int = 1) -> list[Any]:
    """Rows of pictures, each with a text behind, which do not fit a short sequence."""
    random = np.random.default_rng(1)
    return [
        {
            "segments": [
                segment
                for _ in range(pages)
                for segment in (
                    *({"image": png(*random.integers(1, 40, 2).tolist())} for _ in range(each)),
                    {"text": " ".join(random.choice(WORDS.split(), random.integers(1, 30)))},
                )
            ]
        }
        for _ in range(count)
    ]


def colours(count: int, *, seed: int = 0, plain: int = 0) -> list[Any]:
    """Pictures of one colour each and of many sizes, with their colours; and rows of text alone."""
    random = np.random.default_rng(seed)
    rows: list[Any] = [
        {"text": " ".join(random.choice(WORDS.split(), random.integers(4, 40)))}
        for _ in range(plain)
    ]
    for number in range(count):
        name = list(COLOURS)[random.integers(len(COLOURS))]
        height, width = random.integers(8, 40, 2).tolist()
        picture = png(height, width, colour=COLOURS[name])
        rows.append({"image": picture, "text": f"{number} is {name}"})
    return [rows[place] for place in random.permutation(len(rows))]
