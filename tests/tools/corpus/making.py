"""Sources to build corpora from, and short ways to build and read them."""

import functools
import hashlib
import io
import json
import random
import wave
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from tests import clips
from tests.corpora import WORDS
from tools.corpus.__main__ import main
from tools.corpus.tokenizer import CorpusTokenizer
from train.data.document import Document
from train.data.store.shards import ShardStore

QUIET = Console(quiet=True)
SHORT = ("--validation", "0.2", "--workers", "1", "--shard-mebibytes", "0.004")
"""Two splits out of few documents, several shards, no further processes."""


def passages(count: int, *, seed: int = 0) -> list[str]:
    """Texts of some paragraphs, all different."""
    chance = random.Random(seed)
    words = WORDS.split()
    return [
        "\n\n".join(
            f"{number} " + " ".join(chance.choices(words, k=chance.randint(3, 30)))
            for _ in range(chance.randint(1, 4))
        )
        for number in range(count)
    ]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def picture(number: int = 0, *, side: int = 8, kind: str = "PNG") -> bytes:
    """A small picture of one colour."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, 40, 200)).save(content, kind)
    return content.getvalue()


def sound(seconds: float = 0.01) -> bytes:
    """Silence as .wav."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(2 * int(8000 * seconds)))
    return content.getvalue()


@functools.cache
def video(number: int = 0) -> bytes:
    """A short one as .mp4."""
    return clips.saved(clips.noise(3, 8, 8, seed=number))


def build(*arguments: object, out: Path | str, tokenizer: Path) -> Path:
    """Build a corpus and expect it to work."""
    assert build_status(*arguments, out=out, tokenizer=tokenizer) == 0
    return Path(out)


def build_status(*arguments: object, out: Path | str, tokenizer: Path) -> int:
    """Try to build a corpus; returns the exit status."""
    given = [str(argument) for argument in arguments]
    sources = [text for text in given if not text.startswith("--")]
    flags = [text for text in given if text.startswith("--")]
    return main(["build", *sources, str(out), "--tokenizer", str(tokenizer), *SHORT, *flags])


def refusal(
    capsys: pytest.CaptureFixture[str], *arguments: object, out: Path | str, tokenizer: Path
) -> str:
    """What is said when a corpus cannot be built."""
    capsys.readouterr()
    assert build_status(*arguments, out=out, tokenizer=tokenizer) == 2
    return capsys.readouterr().err


def documents(corpus: Path | str) -> dict[str, Document]:
    """All documents of a corpus by id."""
    found: dict[str, Document] = {}
    for split in ("train", "validation"):
        if not (Path(corpus) / split).exists():
            continue
        store = ShardStore(f"{corpus}/{split}")
        for number in range(len(store)):
            document = Document.from_columns(store.columns(number))
            assert document.name not in found
            found[document.name] = document
    return found


def token_ids(tokenizer: CorpusTokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each text, without special tokens."""
    encodings = tokenizer.tokenizer.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def files_of(directory: Path) -> dict[str, str]:
    """The files below a directory with a hash of each."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
