"""Lengths of documents beside shards, and what an index, a listing and a manifest promise."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from tests.train.data.store.mds import write_mds
from train.data.document import LENGTH_COLUMNS, LENGTHS_NAME
from train.data.store.shards import ShardStore
from train.errors import DataError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Each sample i has the lengths [i, i + 1, ..., i + 5]."""
    root = write_mds(tmp_path / "train", manifest={"splits": {"train": {"samples": 30}}})
    entries: list[dict[str, Any]] = []
    first = 0
    for number, samples in enumerate(ShardStore(str(root)).shard_sizes):
        lengths = (np.arange(first, first + samples)[:, None] + np.arange(6)).astype(np.uint32)
        first += samples
        path = root / f"shard.{number:05d}.npy"
        np.save(path, lengths)
        entries.append(
            {
                "basename": path.name,
                "bytes": path.stat().st_size,
                "hashes": {"xxh64": xxhash.xxh64(path.read_bytes()).hexdigest()},
                "documents": samples,
                "totals": lengths.sum(axis=0, dtype=np.int64).tolist(),
            }
        )
    listing = {"format_version": 1, "columns": list(LENGTH_COLUMNS), "shards": entries}
    (root / LENGTHS_NAME).write_text(json.dumps(listing))
    return root


def edit(corpus: Path, change: Callable[[dict[str, Any]], object]) -> ShardStore:
    listing = json.loads((corpus / LENGTHS_NAME).read_text())
    change(listing)
    (corpus / LENGTHS_NAME).write_text(json.dumps(listing))
    return ShardStore(str(corpus))


def save(corpus: Path, array: Any) -> ShardStore:
    """Another file of lengths for shard 0, with its own hash in the listing."""
    path = corpus / "shard.00000.npy"
    np.save(path, array)
    data = path.read_bytes()

    def change(listing: dict[str, Any]) -> None:
        hashes = {"sha256": hashlib.sha256(data).hexdigest()}
        listing["shards"][0].update(bytes=len(data), hashes=hashes)

    return edit(corpus, change)


def test_lengths_and_totals(corpus: Path) -> None:
    store = ShardStore(str(corpus))
    assert store.totals.shape == (len(store.shard_sizes), 6)
    lengths = np.concatenate([store.lengths(number) for number in range(len(store.shard_sizes))])
    assert lengths.dtype == np.uint32
    assert lengths.tolist() == [[i + column for column in range(6)] for i in range(30)]
    assert store.totals.sum(axis=0).tolist() == lengths.sum(axis=0).tolist()


def test_a_file_of_lengths_is_opened_once(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check reads to the end of the same descriptor."""
    store, opened = ShardStore(str(corpus)), []
    monkeypatch.setattr(
        store._files, "open", lambda file, find=store._files.open: opened.append(file) or find(file)
    )
    assert store.lengths(0).any()
    assert len(opened) == 1


def test_columns_as_stored(corpus: Path) -> None:
    columns = ShardStore(str(corpus)).columns(7)
    assert list(columns) == ["tokens"]
    assert columns["tokens"].dtype == np.uint16
    assert set(columns["tokens"].tolist()) == {7}


def test_no_lengths(corpus: Path) -> None:
    (corpus / LENGTHS_NAME).unlink()
    with pytest.raises(DataError, match=r"has no lengths.json.*build it with .*tools.corpus"):
        _ = ShardStore(str(corpus)).totals


def test_a_listing_of_another_version(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"lengths.json is damaged: format_version: "):
        _ = edit(corpus, lambda listing: listing.update(format_version=2)).totals


@pytest.mark.parametrize(
    "change",
    [
        lambda listing: listing["columns"].reverse(),
        lambda listing: listing.update(shards={}),
        lambda listing: listing["shards"][0]["totals"].pop(),
        lambda listing: listing["shards"][0].update(totals=None),
        lambda listing: listing["shards"][0].pop("bytes"),
        lambda listing: listing["shards"][0].update(documents="3"),
    ],
)
def test_a_damaged_listing(corpus: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(DataError, match=r"lengths.json (is damaged|does not belong)"):
        _ = edit(corpus, change).totals


def test_a_listing_of_another_corpus(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"lengths.json does not belong to the index.json beside"):
        _ = edit(corpus, lambda listing: listing["shards"].pop()).totals


def test_a_listing_that_leaves_the_directory(corpus: Path) -> None:
    store = edit(corpus, lambda listing: listing["shards"][0].update(basename="../a.npy"))
    with pytest.raises(
        DataError, match=r"lengths.json .*the shard path '../a.npy' leaves the corp"
    ):
        _ = store.totals


def test_a_listing_that_names_a_file_twice(corpus: Path) -> None:
    store = edit(corpus, lambda listing: listing["shards"][1].update(basename="shard.00000.npy"))
    with pytest.raises(DataError, match=r"lengths.json lists shard.00000.npy twice"):
        _ = store.totals


def test_damaged_lengths(corpus: Path) -> None:
    path = corpus / "shard.00000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path} is damaged: its xxh64"):
        ShardStore(str(corpus)).lengths(0)


def test_lengths_that_do_not_add_up(corpus: Path) -> None:
    lengths = ShardStore(str(corpus)).lengths(0)
    for wrong in (lengths + np.uint32(1), lengths[:-1], np.uint32(1)):
        with pytest.raises(DataError, match=r"00000.npy does not hold the lengths that lengths"):
            save(corpus, wrong).lengths(0)


def test_lengths_of_another_type(corpus: Path) -> None:
    lengths = ShardStore(str(corpus)).lengths(0)
    with pytest.raises(DataError, match=r"00000.npy holds no uint32 array"):
        save(corpus, lengths.astype(np.int64)).lengths(0)


def test_pickled_lengths_are_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"00000.npy holds no array .*pickle"):
        save(corpus, np.array([{}], dtype=object)).lengths(0)


@pytest.mark.parametrize("promised", [29, 31])
def test_an_index_with_other_samples_than_the_manifest_promises(
    corpus: Path, promised: int
) -> None:
    (corpus / "manifest.json").write_text(json.dumps({"splits": {"train": {"samples": promised}}}))
    with pytest.raises(DataError, match=rf"lists 30 samples where .* promises {promised};"):
        ShardStore(str(corpus))


def test_a_manifest_that_promises_nothing_for_this_split(corpus: Path) -> None:
    for manifest in ({"splits": {"validation": {"samples": 3}}}, {}):
        (corpus / "manifest.json").write_text(json.dumps(manifest))
        assert len(ShardStore(str(corpus))) == 30


def test_an_index_that_lists_a_shard_twice(corpus: Path) -> None:
    index = json.loads((corpus / "index.json").read_text())
    index["shards"].append(index["shards"][0])
    (corpus / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"index.json lists shard.00000.mds twice"):
        ShardStore(str(corpus))
