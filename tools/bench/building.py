"""Building a corpus of documents against the tokenizer alone, over the same texts."""

import json
import os
import tempfile
from itertools import count, cycle
from pathlib import Path
from typing import Final

from rich.console import Console

from tools.bench.rounds import Findings, contestants
from tools.bench.shapes import Plan
from tools.corpus.build import build
from tools.corpus.documentation import Documentation
from tools.corpus.request import Request
from tools.corpus.tokenizer import CorpusTokenizer
from tools.packages.kept import package_cache
from train.data.segments import paragraphs

PACKAGE: Final = "linux-doc-6.1"
VOCABULARY: Final = 8192
TEXTS_AT_ONCE: Final = 4096
"""Paragraphs in a call of the tokenizer, which then keeps all cores busy."""


def against_tokenizer(plan: Plan) -> Findings:
    """Documents a second through `python -m tools.corpus build`, over `encode_batch_fast` alone.

    The text is the same few thousand documents again and again: enough that starting the processes
    is little of it.
    """
    texts = _texts(plan.building_bytes)
    tokenizer = CorpusTokenizer.train(
        texts[: len(texts) // max(1, plan.building_bytes >> 23)], vocabulary=VOCABULARY
    )
    pieces = [paragraph for text in texts for paragraph in paragraphs(text)]
    tokens = sum(
        len(ids) + 1
        for ids in tokenizer.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    ) + len(texts)
    found = Findings(
        settings={
            "text": PACKAGE,
            "bytes": sum(len(text.encode()) for text in texts),
            "documents": len(texts),
            "vocabulary": VOCABULARY,
            "workers": plan.threads,
        }
    )
    with tempfile.TemporaryDirectory(prefix="semicausal-bench-") as name:
        directory = Path(name)
        source, given = directory / "text.jsonl", directory / "tokenizer.json"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        given.write_bytes(tokenizer.content)
        request = Request(sources=[str(source)], tokenizer=given, workers=plan.threads)
        numbers = count()

        def build_corpus() -> None:
            root = directory / f"built-{next(numbers)}"
            build(str(root), request, console=Console(quiet=True))

        def encode() -> None:
            os.environ["TOKENIZERS_PARALLELISM"] = "true"
            for begin in range(0, len(pieces), TEXTS_AT_ONCE):
                tokenizer.tokenizer.encode_batch_fast(
                    pieces[begin : begin + TEXTS_AT_ONCE], add_special_tokens=False
                )

        steps = {"encode_batch_fast": encode, "corpus build": build_corpus}
        found.compare(
            contestants(steps, tokens=tokens),
            plan.heavy,
            {"build_vs_tokenizer": ("encode_batch_fast", "corpus build")},
        )
    return found


def _texts(text_bytes: int) -> list[str]:
    documentation = Documentation(sources=(PACKAGE,), cache=package_cache())
    read, _ = documentation.texts(report=lambda _: None)
    found = cycle(["\n\n".join(paragraph.text for paragraph in text.paragraphs) for text in read])
    texts: list[str] = []
    while text_bytes > 0:
        texts.append(next(found))
        text_bytes -= len(texts[-1])
    return texts
