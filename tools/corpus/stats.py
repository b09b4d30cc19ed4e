"""A page about a corpus: how long its documents are, what they hold, how they fill sequences.

Made from the manifest and the files of lengths, 24 bytes a document; shards are not read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tools.corpus.finished import Corpus
from train.data.document import LENGTH_COLUMNS, MEDIA
from train.data.pack import SequenceShape, pack
from train.data.store.manifest import SourceRecord
from train.errors import DataError
from train.storage.place import Place
from train.watch.report import Number, format_count, render_page

PADDING_LENGTHS: Final = (512, 1024, 2048, 4096, 8192)
"""Sequence lengths that padding is told for."""
PADDING_DOCUMENTS: Final = 1 << 15
"""Documents that are packed to tell it, drawn at random from the training split."""
_OF_SPLITS: Final = ("split", "documents", "tokens", "spans", "in spans", *MEDIA.values())
_OF_SOURCES: Final = ("source", "licences", "documents", "tokens", "duplicates", "skipped")
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)

Lengths = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A chart of bars.

    Attributes:
        title: what it shows, with the unit.
        note: a sentence below; empty for none.
        bars: from the top: what each counts, its height and how this is told.
        highest: what fills the width.
    """

    title: str
    note: str = ""
    bars: list[tuple[str, float, str]]
    highest: float


def write_stats(path: str, out: Path) -> None:
    """Write the page of a corpus as HTML.

    Args:
        path: of the corpus, or its URL.
        out: file to write.

    Raises:
        DataError: there is no corpus of documents, or its lengths are damaged.
    """
    corpus = Corpus.at(path)
    lengths = {split: _lengths(corpus, split) for split in corpus.splits}
    everything = np.concatenate(list(lengths.values()))
    training = lengths.get("train", everything)
    splits = [
        [split, f"{len(of_split):,}", *(f"{total:,}" for total in _totals(of_split))]
        for split, of_split in lengths.items()
    ]
    sources = [_source(source) for source in corpus.manifest.sources]
    page = render_page(
        Path(__file__).with_name("stats.html.jinja"),
        title=corpus.place.name,
        facts=_facts(corpus),
        numbers=_numbers(everything),
        charts=[chart for chart in _charts(corpus, everything, training) if chart is not None],
        tables=[("Splits", _OF_SPLITS, splits), ("Sources", _OF_SOURCES, sources)],
        skipped=corpus.manifest.skipped,
    )
    try:
        Place.of(out).write(page.encode())
    except OSError as error:
        raise DataError(f"Cannot write {out}: {error.strerror}.") from error


def expected_padding(lengths: Lengths, sequence_tokens: int) -> float:
    """Share of slots that stay empty when documents are packed as training packs them."""
    shape = SequenceShape(slots=sequence_tokens, opening=1)
    rows = pack(lengths[:, :1].astype(np.int64), shape)
    used = int((rows.parts[:, 2] - rows.parts[:, 1] + shape.opening).sum())
    return 1 - used / (len(rows) * sequence_tokens)


def _lengths(corpus: Corpus, split: str) -> Lengths:
    store = corpus.store(split)
    found = [store.lengths(shard) for shard in range(len(store.shard_sizes))]
    return np.concatenate(found)  # 24 bytes a document, as stored


def _facts(corpus: Corpus) -> list[str]:
    manifest = corpus.manifest
    dedup = manifest.dedup
    facts = [
        str(corpus.place),
        f"vocabulary of {manifest.vocabulary or 0:,}, tokenizer SHA-256 "
        f"{str(manifest.tokenizer_sha256)[:12]}…",
    ]
    if dedup.method:
        facts.append(f"{dedup.duplicates_removed:,} duplicates removed ({dedup.method})")
    return facts


def _numbers(lengths: Lengths) -> list[Number]:
    sums: dict[str, int] = dict(zip(LENGTH_COLUMNS, _totals(lengths), strict=True))
    documents, tokens, spans = len(lengths), sums["tokens"], sums["spans"]
    numbers = [
        Number("Documents", format_count(documents)),
        Number("Tokens", format_count(tokens)),
        Number(
            "Tokens a document",
            f"{tokens / max(1, documents):,.0f}",
            f"median {np.median(lengths[:, 0]):,.0f}",
        ),
    ]
    if spans:
        inside = sums["span_tokens"]
        told = f"{format_count(spans)} span{'s' * (spans != 1)} of {inside / spans:,.1f} tokens"
        numbers.append(Number("Tokens in spans", f"{inside / tokens:.1%}", f"{told} on average"))
    for column, kind in enumerate(LENGTH_COLUMNS):
        if kind in MEDIA.values() and sums[kind]:
            has = f"in {(lengths[:, column] > 0).mean():.1%} of documents"
            numbers.append(Number(f"Spans of {kind}", format_count(sums[kind]), has))
    return numbers


def _charts(corpus: Corpus, everything: Lengths, training: Lengths) -> list[Bars | None]:
    tokens = everything[:, 0]
    told = ", ".join(
        f"{value:,.0f} ({share:.0%})"
        for share, value in zip(_QUANTILES, np.quantile(tokens, _QUANTILES), strict=True)
    )
    with_spans = everything[everything[:, 1] > 0]
    return [
        _histogram("Documents by length, tokens", tokens, note=f"Quantiles: {told}."),
        _histogram("Tokens by length of their document", tokens, weights=tokens),
        _by_source(corpus.manifest.sources),
        _histogram("Documents by number of text spans", with_spans[:, 1]),
        _histogram(
            "Documents by mean length of their text spans, tokens",
            with_spans[:, 2] // np.maximum(1, with_spans[:, 1]),
        ),
        _padding(training),
    ]


def _histogram(
    title: str, values: Lengths, *, weights: Lengths | None = None, note: str = ""
) -> Bars | None:
    """Bars that each stand for twice the values of the one before."""
    if not len(values):
        return None
    # Bin k holds 2^k to 2^(k+1) - 1; frexp is exact where a logarithm is not.
    bins = np.frexp(np.maximum(values, 1).astype(np.float64))[1] - 1
    heights = np.bincount(bins, weights=weights)
    total = heights.sum()
    bars = [
        (
            f"{2**k:,}" if k == 0 else f"{2**k:,} – {2 ** (k + 1) - 1:,}",
            float(heights[k]),
            f"{format_count(int(heights[k]))} ({heights[k] / total:.1%})",
        )
        for k in range(int(bins.min()), len(heights))
    ]
    return Bars(title=title, bars=bars, note=note, highest=float(heights.max()))


def _by_source(sources: Sequence[SourceRecord]) -> Bars | None:
    tokens: dict[str, float] = {source.name: source.tokens for source in sources}
    total = sum(tokens.values())
    if not total:
        return None
    bars = [
        (name, count, f"{format_count(int(count))} ({count / total:.1%})")
        for name, count in sorted(tokens.items(), key=lambda item: -item[1])
    ]
    return Bars(title="Tokens by source", bars=bars, highest=max(tokens.values()))


def _padding(training: Lengths) -> Bars | None:
    if not len(training):
        return None
    drawn = training
    note = "Documents of the training split packed as training packs them."
    if len(training) > PADDING_DOCUMENTS:
        drawn = np.random.default_rng(0).choice(training, PADDING_DOCUMENTS, replace=False)
        note = f"{PADDING_DOCUMENTS:,} random documents, packed as training packs them."
    if training[:, 3:].any():
        note += " Text alone: the encoders decide how many slots other spans take."
    shares = {length: expected_padding(drawn, length) for length in PADDING_LENGTHS}
    bars = [(f"{length:,}", share, f"{share:.2%}") for length, share in shares.items()]
    title = "Expected padding by sequence length"
    # Little padding is to look like little.
    return Bars(title=title, note=note, bars=bars, highest=max(*shares.values(), 0.1))


def _totals(lengths: Lengths) -> list[int]:
    return lengths.sum(axis=0, dtype=np.int64).tolist()


def _source(source: SourceRecord) -> list[str]:
    return [
        source.name,
        " and ".join(source.licences) or "not stated",
        f"{source.documents:,}",
        f"{source.tokens:,}",
        f"{source.duplicates_removed:,}",
        f"{source.skipped:,}",
    ]
