"""Corpora of random tokens for the bench of loading: sequences, documents, and a vast index."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import numpy.typing as npt

from tools.corpus.writing import ShardRecord, ShardWriter
from train.data.document import DOCUMENTS_KIND, LENGTH_COLUMNS, LENGTHS_NAME, Kind
from train.data.order import GlobalOrder
from train.data.sources import Laying
from train.data.store.index import INDEX_NAME
from train.data.store.manifest import MANIFEST_NAME
from train.data.tokens import SpecialTokens

VOCABULARY: Final = 60_000
FIRST_WORD: Final = 4
SHARD_BYTES: Final = 1 << 24
MEDIAN_TOKENS: Final = 400
"""Of a document; logarithms spread normally by 1, as those of web pages roughly do."""
COLUMNS: Final = {"id": "str", "segments": "ndarray:int32", "tokens": "ndarray:uint16"}


def write_sequences(root: Path, *, num_sequences: int, sequence_tokens: int) -> None:
    """A corpus of documents that are a sequence each; [n, S + 1] in `tokens.npy`, with `<s>`."""
    documents = _write(root, [sequence_tokens] * num_sequences)
    np.save(root / "tokens.npy", np.insert(np.stack(documents), 0, SpecialTokens().start, axis=1))


def write_documents(root: Path, *, num_tokens: int) -> None:
    """A corpus of documents of many lengths, as `tools.corpus` stores it."""
    random = np.random.default_rng(1)
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        lengths += random.lognormal(np.log(MEDIAN_TOKENS), 1.0, 1000).astype(int).tolist()
    _write(root, [max(8, size) for size in lengths])


def _write(root: Path, lengths: Sequence[int]) -> list[npt.NDArray[np.uint16]]:
    documents = _documents(lengths)
    for split, part in (("train", documents), ("validation", documents[:8])):
        _commit(root / split, _shards(root / split, part))
    return documents


def write_vast(root: Path, *, num_shards: int, documents_a_shard: int) -> None:
    """A corpus whose index lists very many equal shards; those of the first window are there."""
    lengths = [int(size) for size in np.random.default_rng(2).integers(8, 1200, documents_a_shard)]
    documents = _documents(lengths)
    train = root / "train"
    (record,) = _shards(train, documents, shard_bytes=1 << 30)
    shard, lengths_file = record.index["raw_data"], record.lengths

    def named(number: int) -> ShardRecord:
        name = f"shard.{number:06}"
        index = {**record.index, "raw_data": {**shard, "basename": f"{name}.mds"}}
        return ShardRecord(index=index, lengths={**lengths_file, "basename": f"{name}.npy"})

    _commit(train, [named(number) for number in range(num_shards)])
    for number in _first_shards(num_shards, documents_a_shard):
        os.link(train / shard["basename"], train / f"shard.{number:06}.mds")
        os.link(train / lengths_file["basename"], train / f"shard.{number:06}.npy")
    _commit(root / "validation", _shards(root / "validation", documents[:8]))


def _first_shards(num_shards: int, documents_a_shard: int) -> list[int]:
    laying = Laying(sequence_tokens=0)
    order = GlobalOrder([documents_a_shard] * num_shards, seed=laying.seed, window=laying.window)
    return np.unique(order.locate(order.window_ids(0, 0))[0]).tolist()


def _documents(lengths: Sequence[int]) -> list[npt.NDArray[np.uint16]]:
    """Documents of these many tokens, in paragraphs of about a hundred."""
    special = SpecialTokens()
    random = np.random.default_rng(3)
    documents: list[npt.NDArray[np.uint16]] = []
    for size in lengths:
        tokens = random.integers(FIRST_WORD, VOCABULARY, size, dtype=np.uint16)
        tokens[99::100] = special.paragraph
        tokens[-1] = special.document
        documents.append(tokens)
    return documents


def _shards(
    directory: Path,
    documents: Sequence[npt.NDArray[np.uint16]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> list[ShardRecord]:
    directory.mkdir(parents=True)

    def deliver(name: str, content: Path | bytes) -> None:
        if isinstance(content, bytes):
            (directory / name).write_bytes(content)
        else:
            content.rename(directory / name)

    with (
        TemporaryDirectory(dir=directory.parent) as scratch,
        ShardWriter(
            Path(scratch) / "shards", COLUMNS, stem="part", size=shard_bytes, deliver=deliver
        ) as writer,
    ):
        for number, tokens in enumerate(documents):
            segments = np.array([[Kind.TEXT, len(tokens), 1]], dtype=np.int32)
            columns = {"id": f"{number:08}", "segments": segments, "tokens": tokens}
            writer.add(columns, (len(tokens), 0, 0, 0, 0, 0))
    return writer.records


def _commit(directory: Path, records: Sequence[ShardRecord]) -> None:
    for name, content in {
        LENGTHS_NAME: {
            "format_version": 1,
            "columns": LENGTH_COLUMNS,
            "shards": [record.lengths for record in records],
        },
        INDEX_NAME: {"version": 2, "shards": [record.index for record in records]},
        MANIFEST_NAME: {"kind": DOCUMENTS_KIND, "special_tokens": SpecialTokens().to_manifest()},
    }.items():
        (directory / name).write_text(json.dumps(content))
