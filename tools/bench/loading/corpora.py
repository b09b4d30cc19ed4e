"""Corpora of random tokens for the bench of loading: sequences, documents, and a vast index."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

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
SPLITS: Final = ("train", "validation")
MEDIAN_TOKENS: Final = 400
"""Of a document; logarithms spread normally by 1, as those of web pages roughly do."""
COLUMNS: Final = {"id": "str", "segments": "ndarray:int32", "tokens": "ndarray:uint16"}


def write_sequences(root: Path, *, num_sequences: int, sequence_tokens: int) -> None:
    """A corpus of documents that are a sequence each; [n, S + 1] in `tokens.npy`, with `<s>`."""
    documents = _documents([sequence_tokens] * num_sequences)
    for split, part in (("train", documents), ("validation", documents[:8])):
        _commit(root / split, _shards(root / split, part))
    np.save(root / "tokens.npy", np.insert(np.stack(documents), 0, SpecialTokens().start, axis=1))


def write_documents(root: Path, *, num_tokens: int) -> None:
    """A corpus of documents of many lengths, as `tools.corpus` stores it."""
    random = np.random.default_rng(1)
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        lengths += random.lognormal(np.log(MEDIAN_TOKENS), 1.0, 1000).astype(int).tolist()
    for split, sizes in (("train", lengths), ("validation", lengths[:8])):
        documents = _documents([max(8, size) for size in sizes])
        _commit(root / split, _shards(root / split, documents))


def write_vast(root: Path, *, num_shards: int, documents_a_shard: int) -> None:
    """A corpus whose index lists very many equal shards; those of the first window are there."""
    lengths = [int(size) for size in np.random.default_rng(2).integers(8, 1200, documents_a_shard)]
    documents = _documents(lengths)
    (record,) = _shards(root / "train", documents, shard_bytes=1 << 30)
    names = [(f"shard.{number:06}.mds", f"shard.{number:06}.npy") for number in range(num_shards)]
    for name, of_record in zip(names[0], (record.index["raw_data"], record.lengths), strict=True):
        (root / "train" / of_record["basename"]).rename(root / "train" / name)
        of_record["basename"] = "@"
    for file, head, entry, place in (
        (INDEX_NAME, '{"version": 2, "shards": [', record.index, 0),
        (LENGTHS_NAME, _lengths_head() + '"shards": [', record.lengths, 1),
    ):
        text = json.dumps(entry)
        assert text.count('"@"') == 1, "one name to fill in"
        before, after = text.split("@")
        with (root / "train" / file).open("w") as out:
            out.write(head)
            out.write(", ".join(f"{before}{name[place]}{after}" for name in names))
            out.write("]}")
    _write_manifest(root / "train")
    for number in _first_shards(num_shards, documents_a_shard):
        for first, name in zip(names[0], names[number], strict=True):
            if number:
                os.link(root / "train" / first, root / "train" / name)
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

    scratch = directory / "scratch"
    with ShardWriter(scratch, COLUMNS, stem="part", size=shard_bytes, deliver=deliver) as writer:
        for number, tokens in enumerate(documents):
            columns: dict[str, Any] = {
                "id": f"{number:08}",
                "segments": np.array([[Kind.TEXT, len(tokens), 1]], dtype=np.int32),
                "tokens": tokens,
            }
            writer.add(columns, (len(tokens), 0, 0, 0, 0, 0))
    return writer.records


def _commit(directory: Path, records: Sequence[ShardRecord]) -> None:
    shards = [record.lengths for record in records]
    text = _lengths_head() + f'"shards": {json.dumps(shards)}}}'
    (directory / LENGTHS_NAME).write_text(text)
    index = {"version": 2, "shards": [record.index for record in records]}
    (directory / INDEX_NAME).write_text(json.dumps(index))
    _write_manifest(directory)


def _lengths_head() -> str:
    return f'{{"format_version": 1, "columns": {json.dumps(LENGTH_COLUMNS)}, '


def _write_manifest(directory: Path) -> None:
    manifest = {"kind": DOCUMENTS_KIND, "special_tokens": SpecialTokens().to_manifest()}
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))
