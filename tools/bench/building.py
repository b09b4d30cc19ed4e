"""Building a corpus of documents against the tokenizer alone, over the same texts."""

import json
import os
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from tools.bench.rounds import Contestant, Findings, Step, alternate, ratio, record
from tools.bench.shapes import Plan
from tools.corpus import build
from tools.corpus.documentation import Documentation
from tools.corpus.encoding import paragraphs
from tools.corpus.packages import package_cache
from tools.corpus.tokenizer import CorpusTokenizer

PACKAGE: Final = "linux-doc-6.1"
VOCABULARY: Final = 8192
TEXTS_AT_ONCE: Final = 4096
"""Paragraphs in a call of the tokenizer, which then keeps all cores busy."""


def against_tokenizer(plan: Plan) -> Findings:
    """Documents a second through `python -m tools.corpus build`, over `encode_batch_fast` alone.

    The text is the same few thousand documents again and again: enough that starting the processes
    is little of it.
    """
    text_bytes = plan.building_bytes
    texts = _texts(text_bytes)
    tokenizer = CorpusTokenizer.train(
        texts[: len(texts) // max(1, text_bytes >> 23)], vocabulary=VOCABULARY
    )
    pieces = [paragraph for text in texts for paragraph in paragraphs(text)]
    tokens = sum(len(ids) + 1 for ids in tokenizer.encode(pieces)) + len(texts)
    with tempfile.TemporaryDirectory(prefix="semicausal-bench-") as directory:
        source = Path(directory) / "text.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        (Path(directory) / "tokenizer.json").write_bytes(tokenizer.content)
        contestants = [
            _contestant("encode_batch_fast", _encode_all(tokenizer, pieces), tokens),
            _contestant("corpus build", _builds(Path(directory), plan.threads), tokens),
        ]
        seconds = alternate(contestants, plan.heavy)
    alone, built = (seconds[contestant.name] for contestant in contestants)
    return Findings(
        case="building",
        settings={
            "text": PACKAGE,
            "bytes": source_bytes(texts),
            "documents": len(texts),
            "vocabulary": VOCABULARY,
            "workers": plan.threads,
        },
        contestants=record(contestants, seconds),
        ratios={"build_vs_tokenizer": ratio(alone, built)},
    )


def source_bytes(texts: list[str]) -> int:
    """What the texts take as UTF-8."""
    return sum(len(text.encode()) for text in texts)


def _texts(text_bytes: int) -> list[str]:
    documentation = Documentation(sources=(PACKAGE,), cache=package_cache())
    read, _ = documentation.texts(report=lambda _: None)
    found = ["\n\n".join(paragraph.text for paragraph in text.paragraphs) for text in read]
    texts: list[str] = []
    total = 0
    while total < text_bytes:
        text = found[len(texts) % len(found)]
        texts.append(text)
        total += len(text)
    return texts


def _contestant(name: str, step: Step, tokens: int) -> Contestant:
    return Contestant(name=name, step=step, tokens=tokens, parameters=0, precision="")


def _encode_all(tokenizer: CorpusTokenizer, pieces: list[str]) -> Step:
    def step() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        for begin in range(0, len(pieces), TEXTS_AT_ONCE):
            tokenizer.tokenizer.encode_batch_fast(
                pieces[begin : begin + TEXTS_AT_ONCE], add_special_tokens=False
            )

    return step


def _builds(directory: Path, workers: int) -> Step:
    request = build.Request(
        sources=[str(directory / "text.jsonl")],
        tokenizer=directory / "tokenizer.json",
        workers=workers,
    )
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        build.build(str(directory / f"built-{number}"), request, console=Console(quiet=True))

    return step
