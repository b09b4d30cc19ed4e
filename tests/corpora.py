"""Tiny corpora for tests, written straight with MDSWriter: no network."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from streaming import MDSWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from train.data.document import LENGTH_COLUMNS, Document

VOCABULARY = 300
SPECIAL = ["<s>", "</s>", "</d>", "<pad>"]
WORDS = "the kernel maps a page of memory when the driver asks the bus for its device"


def write_tokenizer(path: Path, *, text: str = WORDS) -> str:
    """A byte-level BPE of `VOCABULARY` tokens, made for a text; returns its SHA-256."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]  # likewise
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([text] * 4, trainer)
    # Text this small has fewer merges than asked for; the ids up to VOCABULARY stay unused.
    tokenizer.save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_corpus(
    root: Path,
    *,
    sequence_tokens: int = 64,
    train: int = 96,
    validation: int = 16,
    seed: int = 0,
    with_spans: bool = False,
    shard_bytes: int = 8192,
) -> Path:
    """A corpus that a tiny model can learn: token t + 1 follows from token t, with noise.

    Read as a stream (`data.pack: stream`), or fitted where there are spans, sequence k is text k.

    Args:
        root: directory to write.
        sequence_tokens: S.
        train: texts of S tokens in the training split.
        validation: and in the other.
        seed: of the text.
        with_spans: one document a text, with a span and scored tokens, as an instruction task does;
            otherwise a text is one document or two.
        shard_bytes: size limit of a shard.
    """
    random = np.random.default_rng(seed)
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, count in (("train", train), ("validation", validation)):
        documents = splits[split] = []
        for _ in range(count):
            for tokens, segments in _text(random, sequence_tokens, with_spans):
                name = f"{split}/{len(documents)}"
                documents.append(
                    {"id": name, "tokens": tokens, "segments": np.array(segments, dtype=np.int32)}
                )
    return write_splits(root, splits, shard_bytes=shard_bytes)


def write_documents(
    root: Path,
    *,
    train: int = 120,
    validation: int = 12,
    seed: int = 0,
    mean_tokens: float = 40.0,
    with_spans: bool = False,
    shard_bytes: int = 4096,
    media: bool = False,
    least_tokens: int = 4,
    lie_about_tokens: int = 0,
) -> Path:
    """A corpus of documents of many lengths.

    Token t + 1 follows from token t as in `write_corpus`; the last token is `</d>`.
    """
    random = np.random.default_rng(seed)
    splits = {
        split: [
            _document(
                random,
                f"{split}/{number}",
                least_tokens + int(random.exponential(mean_tokens)),
                with_spans,
                media,
            )
            for number in range(count)
        ]
        for split, count in (("train", train), ("validation", validation))
    }
    return write_splits(root, splits, shard_bytes=shard_bytes, media=media, lie=lie_about_tokens)


def write_partly_scored(root: Path, *, train: int = 48, scores_any: bool = True) -> Path:
    """Documents that fill a sequence of 64 tokens each; every second of training scores none.

    Args:
        root: directory to write.
        train: documents of the training split.
        scores_any: else none of its documents scores a token.
    """
    random = np.random.default_rng(0)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for split, count in (("train", train), ("validation", 8)):
        for number in range(count):
            document = _document(random, f"{split}/{number}", 64, False, False)
            is_scored = split == "validation" or (scores_any and number % 2)
            document["segments"] = np.array([[0, 64, int(is_scored)]], dtype=np.int32)
            splits[split].append(document)
    return write_splits(root, splits, shard_bytes=8192)


def write_splits(
    root: Path,
    splits: dict[str, list[dict[str, Any]]],
    *,
    shard_bytes: int,
    media: bool = False,
    lie: int = 0,
) -> Path:
    """A corpus of these documents, by split."""
    root.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format_version": 1,
        "kind": "documents",
        "vocabulary": VOCABULARY,
        "tokenizer_sha256": write_tokenizer(root / "tokenizer.json"),
        "special_tokens": {"start": 0, "paragraph": 1, "document": 2, "padding": 3},
        "splits": {name: {"samples": len(documents)} for name, documents in splits.items()},
        "recipe": {"shard_bytes": shard_bytes + 128},
    }
    columns = {"id": "str", "tokens": "ndarray:uint16", "segments": "ndarray:int32"}
    if media:
        columns["payload"] = "bytes"
    for split, documents in splits.items():
        with MDSWriter(
            out=str(root / split), columns=columns, hashes=["xxh64"], size_limit=shard_bytes
        ) as writer:
            for document in documents:
                writer.write(document)
        write_lengths(root / split, documents, lie=lie)
        shutil.copyfile(root / "tokenizer.json", root / split / "tokenizer.json")
        (root / split / "manifest.json").write_text(json.dumps(manifest))
    return root


def _document(
    random: np.random.Generator, name: str, length: int, with_spans: bool, media: bool
) -> dict[str, Any]:
    steps = random.integers(1, 4, length)
    tokens = (10 + (int(random.integers(200)) + steps.cumsum()) % 240).astype(np.uint16)
    tokens[-1] = 2
    segments = [[0, length, 1]]
    if with_spans and length >= 8:
        half = length // 2
        segments = [[1, half, 0], [0, length - half, 1]]
    document: dict[str, Any] = {"id": name, "tokens": tokens}
    if media:
        document["payload"] = b"picture"
        segments = [[2, 7, 0], *segments]
    return document | {"segments": np.array(segments, dtype=np.int32)}


def write_lengths(directory: Path, documents: list[dict[str, Any]], *, lie: int = 0) -> None:
    """List how long the documents of a split are."""
    index = json.loads((directory / "index.json").read_text())
    shards: list[dict[str, Any]] = []
    at = 0
    for shard in index["shards"]:
        mine = documents[at : at + shard["samples"]]
        at += len(mine)
        lengths = np.array(
            [Document.from_columns(document).lengths() for document in mine], dtype=np.uint32
        )
        lengths[:, 0] += lie
        name = shard["raw_data"]["basename"].removesuffix(".mds") + ".lengths.npy"
        np.save(directory / name, lengths)
        content = (directory / name).read_bytes()
        shards.append(
            {
                "basename": name,
                "bytes": len(content),
                "hashes": {"xxh64": xxhash.xxh64(content).hexdigest()},
                "documents": len(mine),
                "totals": lengths.sum(axis=0, dtype=np.int64).tolist(),
            }
        )
    text = json.dumps({"format_version": 1, "columns": LENGTH_COLUMNS, "shards": shards})
    (directory / "lengths.json").write_text(text)


def _text(
    random: np.random.Generator, sequence_tokens: int, with_spans: bool
) -> list[tuple[npt.NDArray[np.uint16], list[list[int]]]]:
    """Tokens and segments of the documents of one text."""
    steps = random.integers(1, 4, sequence_tokens)
    tokens = (10 + (int(random.integers(200)) + steps.cumsum()) % 240).astype(np.uint16)
    if not with_spans:
        ends = [sequence_tokens]
        if random.random() < 0.5:
            ends.insert(0, int(random.integers(2, sequence_tokens)))
            tokens[ends[0] - 1] = 2
        return [(part, [[0, len(part), 1]]) for part in np.split(tokens, ends[:-1])]
    half = sequence_tokens // 2
    # The answer is of a few words only, which adapters alone can learn.
    tokens[half:] = 20 + np.arange(sequence_tokens - half) % 8
    return [(tokens, [[1, half - 1, 0], [0, 1, 0], [0, sequence_tokens - half, 1]])]
