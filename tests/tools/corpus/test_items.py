"""Sizes of items beside the shards: what a build records, and what is refused of it."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from PIL import Image

from tests.tools.corpus.making import build, documents, sound, write_lines
from tools.corpus.media import RowError, measured
from train.data.document import ITEM_COLUMNS, Kind
from train.data.store.shards import ShardStore
from train.errors import DataError


def drawn(height: int, width: int, kind: str = "PNG", *, orientation: int = 1) -> bytes:
    """A picture of noise, which does not compress."""
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(content, kind, exif=exif)
    return content.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    directory = tmp_path_factory.mktemp("items")
    rows: list[dict[str, Any]] = [{"text": f"no picture in {number}"} for number in range(30)]
    for number in range(30):
        name = f"{number}.png"
        (directory / name).write_bytes(drawn(1 + number, 40 - number))
        (directory / f"{number}.wav").write_bytes(sound())
        segments: list[dict[str, Any]] = [{"text": "look at"}, {"image": name}, {"text": "it"}]
        if number % 3 == 0:
            segments += [{"audio": f"{number}.wav"}, {"image": name}]
        rows.append({"segments": segments})
    source = write_lines(directory / "a.jsonl", rows)
    return build(source, "--media", out=directory / "out", tokenizer=tokenizer)


def test_sizes_are_known_without_a_shard(corpus: Path) -> None:
    found: dict[str, list[tuple[int, ...]]] = {}
    for split in ("train", "validation"):
        store = ShardStore(f"{corpus}/{split}")
        first = 0
        for shard, count in enumerate(store.shard_sizes):
            items = store.items(shard)
            assert items.shape[1] == len(ITEM_COLUMNS)
            for document, *item in items.tolist():
                name = store.columns(first + document)["id"]
                found.setdefault(name, []).append(tuple(item))
            first += count
    wanted = {
        name: document.item_rows()
        for name, document in documents(corpus).items()
        if document.payload
    }
    assert found == wanted
    assert len(found) == 30
    for document in documents(corpus).values():
        for item in document.items():
            if item.kind == Kind.IMAGE:
                with Image.open(io.BytesIO(item.data)) as image:
                    assert item.size == (image.height, image.width)
            else:
                assert item.size == (80, 8000)
        counts = [item.at for item in document.items()]
        assert counts == sorted(counts)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_size_is_that_of_the_picture_as_it_is_shown(kind: str, orientation: int) -> None:
    found = measured(Kind.IMAGE, drawn(9, 30, kind, orientation=orientation))
    assert found == ((9, 30) if orientation <= 4 else (30, 9))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_that_is_cut_off_is_refused(kind: str) -> None:
    whole = drawn(64, 64, kind)
    assert measured(Kind.IMAGE, whole) == (64, 64)
    with pytest.raises(RowError, match="the image cannot be read"):
        measured(Kind.IMAGE, whole[: len(whole) // 2])


def damaged(corpus: Path, tmp_path: Path, rows: list[list[int]]) -> ShardStore:
    """The training split with another table of items in its first shard, for which it vouches."""
    root = Path(shutil.copytree(corpus / "train", tmp_path / "train"))
    (root / "manifest.json").write_text("{}")
    listing = json.loads((root / "lengths.json").read_text())
    entry = listing["shards"][0]["items"]
    np.save(root / entry["basename"], np.array(rows, np.uint32))
    content = (root / entry["basename"]).read_bytes()
    entry |= {"bytes": len(content), "hashes": {"xxh64": xxhash.xxh64(content).hexdigest()}}
    (root / "lengths.json").write_text(json.dumps(listing))
    return ShardStore(str(root))


@pytest.mark.parametrize("change", ["kind", "document", "order", "size", "columns"])
def test_a_table_that_is_not_what_was_promised(corpus: Path, tmp_path: Path, change: str) -> None:
    rows = ShardStore(f"{corpus}/train").items(0).tolist()
    assert len(rows) >= 2
    match change:
        case "kind":
            rows[0][2] = int(Kind.VIDEO)
        case "document":
            rows[-1][0] = 10_000
        case "order":
            rows[0][0], rows[-1][0] = rows[-1][0], rows[0][0]
        case "size":
            rows[0][3:] = [0, 0, 0, 0]
        case _:
            rows = [row[:6] for row in rows]
    store = damaged(corpus, tmp_path, rows)
    with pytest.raises(DataError, match=r"items\.npy .*build the corpus again"):
        store.items(0)


def test_more_sizes_than_items_are_refused(corpus: Path, tmp_path: Path) -> None:
    store = damaged(corpus, tmp_path, ShardStore(f"{corpus}/train").items(0).tolist())
    path = Path(store.root) / "lengths.json"
    listing = json.loads(path.read_text())
    listing["shards"][0]["items"]["sized"][0] += 1
    path.write_text(json.dumps(listing))
    with pytest.raises(DataError, match="has sizes of more items than there are"):
        _ = ShardStore(store.root).lengths_index


def test_a_corpus_of_text_has_none(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(20)])
    out = build(source, out=tmp_path / "out", tokenizer=tokenizer)
    assert not list(out.rglob("*.items.npy"))
    store = ShardStore(f"{out}/train")
    assert store.items(0).shape == (0, len(ITEM_COLUMNS))
    assert "items" not in (out / "train/lengths.json").read_text()
