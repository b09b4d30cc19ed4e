"""Sounds for tests, and rows of corpora with them."""

import io
from typing import Any

import numpy as np
import soundfile

from tests import pictures
from tests.corpora import WORDS

TONES = {"red": 300.0, "green": 900.0, "blue": 2700.0}
"""Hertz, and what rows of `tones` say of them."""


def noise(count: int, *, channels: int = 1, seed: int = 0) -> Any:
    """[count, channels] between -0.5 and 0.5."""
    return np.random.default_rng(seed + count).uniform(-0.5, 0.5, (count, channels))


def saved(samples: Any, rate: int, format: str = "WAV", **options: Any) -> bytes:
    """A file."""
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=format, **options)
    return content.getvalue()


def tone(hertz: float, count: int, rate: int, format: str = "WAV") -> bytes:
    """A file of a sine."""
    return saved(0.3 * np.sin(2 * np.pi * hertz / rate * np.arange(count)), rate, format)


def interleaved(count: int, *, seed: int = 0, most_items: int = 3, with_pictures: bool = True):
    """Rows of text, spans of text, pictures and sounds in any order; some of text alone."""
    random = np.random.default_rng(seed)
    words = WORDS.split()

    def text(most: int) -> str:
        return " ".join(random.choice(words, random.integers(1, most)))

    rows: list[Any] = []
    for number in range(count):
        segments: list[dict[str, Any]] = []
        for _ in range(random.integers(0, most_items + 1) if number % 3 else 0):
            rate = int(random.choice([8000, 16_000, 11_025]))
            length, channels = int(random.integers(1, rate // 5)), int(random.integers(1, 3))
            format = str(random.choice(["WAV", "FLAC"]))
            sound = saved(noise(length, channels=channels), rate, format)
            segments.append({"audio": sound})
            if with_pictures and random.random() < 0.3:
                segments.append({"image": pictures.png(9, 12)})
        segments += [{"text": text(12)} for _ in range(random.integers(1, 3))]
        if random.random() < 0.3:
            segments.append({"text": text(6), "span": True})
        order = random.permutation(len(segments)).tolist()
        rows.append({"segments": [segments[place] for place in order]})
    return rows


def tones(count: int, *, seed: int = 0) -> list[Any]:
    """Sounds of one tone each, of many lengths and rates, and its name."""
    random = np.random.default_rng(seed)
    rows: list[Any] = []
    for _ in range(count):
        name = list(TONES)[random.integers(len(TONES))]
        rate = int(random.choice([8000, 16_000]))
        length = int(random.integers(rate // 20, rate // 5))
        rows.append({"audio": tone(TONES[name], length, rate), "text": name})
    return rows
