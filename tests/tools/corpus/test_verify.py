"""Damage of every kind is found and named; what is sound is called sound."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.hashing import get_hash

from tests.tools.corpus.making import QUIET, build, passages, picture, write_lines
from tools.corpus import verify
from tools.corpus.__main__ import main


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    directory = tmp_path_factory.mktemp("sound")
    (directory / "x.png").write_bytes(picture())
    rows: list[dict[str, Any]] = [{"text": text} for text in passages(80)]
    rows += [{"segments": [{"text": "the bus", "span": True}, {"image": "x.png"}, {"text": "of"}]}]
    source = write_lines(directory / "a.jsonl", rows)
    return build(source, "--media", out=directory / "out", tokenizer=tokenizer)


@pytest.fixture
def corpus(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "corpus"))


def faults_of(corpus: Path) -> list[str]:
    return verify.verify(str(corpus), workers=1, console=QUIET)


def test_a_sound_corpus(corpus: Path, capsys: pytest.CaptureFixture[str], processes: None) -> None:
    assert main(["verify", str(corpus), "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{corpus}: sound\n"
    assert main(["verify", f"{corpus}/train/", "--workers", "2"]) == 0


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_listing(corpus: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change what lists files of a split; no manifest vouches for it, as in earlier versions."""
    edit_json(corpus / "train" / name, change)
    edit_manifests(corpus, lambda manifest: manifest.pop("sha256", None))


def edit_manifests(corpus: Path, change: Callable[[Any], object]) -> None:
    for path in (corpus, corpus / "train", corpus / "validation"):
        edit_json(path / "manifest.json", change)


def first_shard(corpus: Path) -> Path:
    return min((corpus / "train").glob("*.mds"))


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def relist(corpus: Path, shard: Path) -> None:
    """Give the index the size and hash of a shard that was changed."""
    data = shard.read_bytes()

    def change(index: dict[str, Any]) -> None:
        [entry] = [e for e in index["shards"] if e["raw_data"]["basename"] == shard.name]
        entry["raw_data"]["bytes"] = len(data)
        entry["raw_data"]["hashes"] = {"xxh64": get_hash("xxh64", data)}

    edit_listing(corpus, "index.json", change)


def change_lengths(corpus: Path) -> None:
    def change(lengths: Any) -> None:
        lengths[0, 0] += 1
        lengths[1, 0] -= 1

    relist_lengths(corpus, change)


def relist_lengths(corpus: Path, change: Callable[[Any], object]) -> None:
    """Change the lengths of all shards of training, and all that lists them."""
    told: list[dict[str, Any]] = []
    for path in sorted((corpus / "train").glob("*.lengths.npy")):
        lengths = np.load(path)
        change(lengths)
        np.save(path, lengths)
        hashes = {"xxh64": get_hash("xxh64", path.read_bytes())}
        told.append({"hashes": hashes, "totals": lengths.sum(axis=0).tolist()})

    def relist(listing: dict[str, Any]) -> None:
        for shard, new in zip(listing["shards"], told, strict=True):
            shard.update(new)

    edit_listing(corpus, "lengths.json", relist)


def no_lengths(lengths: Any) -> None:
    lengths[:, :3] = 0


def other_sizes(corpus: Path) -> None:
    """Pictures are noted to be higher by a pixel."""
    [path] = (corpus / "train").glob("*.items.npy")
    items = np.load(path)
    items[:, 3] += 1
    np.save(path, items)
    hashes = {"xxh64": get_hash("xxh64", path.read_bytes())}

    def relist(listing: dict[str, Any]) -> None:
        [entry] = [shard["items"] for shard in listing["shards"] if "items" in shard]
        entry.update(hashes=hashes)

    edit_listing(corpus, "lengths.json", relist)


def many_tokens(lengths: Any) -> None:
    lengths[0, 0] = 10**9


def a_token_fewer(lengths: Any) -> None:
    lengths[:, 0] -= 1


def change_entries(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change what the index says of each shard of training."""

    def damage(corpus: Path) -> None:
        edit_listing(corpus, "index.json", lambda index: [*map(change, index["shards"])])

    return damage


def encode(column: str, encoding: str) -> Callable[[Path], None]:
    """Say in the index that a column is encoded otherwise."""

    def change(entry: dict[str, Any]) -> None:
        entry["column_encodings"][entry["column_names"].index(column)] = encoding

    return change_entries(change)


def change_tokens(corpus: Path) -> None:
    """The last token of a shard's last document becomes one that the vocabulary has not."""
    shard = first_shard(corpus)
    data = bytearray(shard.read_bytes())
    data[-2:] = (60000).to_bytes(2, "little")
    shard.write_bytes(data)
    relist(corpus, shard)


def repeat_first_shard(corpus: Path) -> None:
    for name in ("index.json", "lengths.json"):
        edit_listing(corpus, name, lambda index: index["shards"].append(index["shards"][0]))
    samples = json.loads((corpus / "train/index.json").read_text())["shards"][0]["samples"]

    def count(manifest: dict[str, Any]) -> None:
        manifest["splits"]["train"]["samples"] += samples

    edit_manifests(corpus, count)


def leave_the_directory(corpus: Path) -> None:
    edit_listing(
        corpus,
        "index.json",
        lambda index: index["shards"][0]["raw_data"].update(basename="../../secret.mds"),
    )


def other_special_tokens(corpus: Path) -> None:
    edit_manifests(corpus, lambda manifest: manifest["special_tokens"].update(document=7))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda c: flip(first_shard(c)), "is damaged: its xxh64 hash"),
    "a cut shard": (lambda c: first_shard(c).write_bytes(b"x"), "has 1 bytes where the index"),
    "no shard": (lambda c: first_shard(c).unlink(), "is missing"),
    "flipped lengths": (
        lambda c: flip(min((c / "train").glob("*.lengths.npy"))),
        "lengths.npy is damaged",
    ),
    "no lengths": (lambda c: (c / "train/lengths.json").unlink(), "has no lengths.json"),
    "other lengths": (change_lengths, "is noted"),
    "other sizes": (other_sizes, ", 2, 9, 8, 0, 0]] are noted"),
    "no such token": (change_tokens, "token 60000 is not below the vocabulary's 300"),
    "another tokenizer": (lambda c: flip(c / "tokenizer.json", 3), "is not the tokenizer of"),
    "no tokenizer": (lambda c: (c / "train/tokenizer.json").unlink(), "There is no file"),
    "another manifest": (
        lambda c: edit_json(c / "train/manifest.json", lambda m: m.update(kind="x")),
        "train/manifest.json is not the manifest of the corpus",
    ),
    "other totals": (
        lambda c: edit_manifests(c, lambda m: m["splits"]["train"].update(span_tokens=1)),
        "lengths.json counts 3 (span_tokens) where manifest.json promises 1",
    ),
    "other samples": (
        lambda c: edit_manifests(c, lambda m: m["splits"]["train"].update(samples=1)),
        "samples where its manifest.json promises 1",
    ),
    "other counts": (lambda c: flip(c / "train/token_counts.npy"), "how often each"),
    "counts of another split": (
        lambda c: flip(c / "validation/token_counts.npy"),
        "is not that of the training split",
    ),
    "no counts": (lambda c: (c / "token_counts.npy").unlink(), "token_counts.npy"),
    "damaged counts": (
        lambda c: (c / "train/token_counts.npy").write_bytes(b"\x93NUMPY\x01\x00\x02\x00{("),
        "holds no array",
    ),
    "twice the same": (repeat_first_shard, "lists part-00000.shard-00000.mds twice"),
    "special tokens": (other_special_tokens, "special tokens are not the manifest's"),
    "no lengths at all": (lambda c: relist_lengths(c, no_lengths), "counts 0 (tokens) where manif"),
    "a token fewer": (lambda c: relist_lengths(c, a_token_fewer), "(tokens) where manifest.json"),
    "10^9 tokens": (lambda c: relist_lengths(c, many_tokens), "than there is room for"),
    "an index that nothing vouches for": (
        change_entries(lambda entry: entry["raw_data"].update(hashes={})),
        "it has no hash of part-00000.shard-00000.mds",
    ),
    "unknown hashes": (
        change_entries(lambda entry: entry["raw_data"].update(hashes={"crc": "0"})),
        "it has no hash of part-00000.shard-00000.mds",
    ),
    "signed tokens": (encode("tokens", "ndarray:int16"), "encoded as ndarray:int16, which no corp"),
    "tokens that are reals": (encode("tokens", "ndarray:float16"), "encoded as ndarray:float16"),
    "other segments": (encode("segments", "ndarray:uint32"), "has other columns than its index"),
    "an index that was changed": (
        lambda c: edit_json(c / "train/index.json", lambda index: index["shards"].reverse()),
        "train/index.json is damaged: its sha256",
    ),
    "lengths that were listed otherwise": (
        lambda c: edit_json(c / "train/lengths.json", lambda listing: listing.update(x=1)),
        "train/lengths.json is damaged: its sha256",
    ),
    "pickle": (encode("id", "pkl"), "pickled, and reading it could run any code"),
    "a path outside": (leave_the_directory, "leaves the corpus directory"),
    "no index": (lambda c: (c / "validation/index.json").unlink(), "it has no index.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(damage: str, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, reason = DAMAGES[damage]
    change(corpus)

    status = main(["verify", str(corpus), "--workers", "1"])

    told = capsys.readouterr()
    assert status == 1
    assert reason in told.err
    assert "fault" in told.out


def test_every_damaged_shard_is_named(corpus: Path) -> None:
    shards = sorted((corpus / "train").glob("*.mds"))
    assert len(shards) > 2
    for shard in shards[1:]:
        flip(shard)

    faults = faults_of(corpus)

    assert len(faults) == len(shards) - 1
    for shard, fault in zip(shards[1:], faults, strict=True):
        assert shard.name in fault


def test_two_documents_of_one_id(corpus: Path) -> None:
    shards = sorted((corpus / "train").glob("*.mds"))
    ids = [re.search(rb"a/a.jsonl:\d\d", shard.read_bytes()) for shard in shards[:2]]
    assert ids[0] is not None
    assert ids[1] is not None
    shards[1].write_bytes(shards[1].read_bytes().replace(ids[1][0], ids[0][0]))
    relist(corpus, shards[1])

    [fault] = faults_of(corpus)

    assert "two documents have one id: train, shard 0, sample" in fault
    assert "and train, shard 1, sample" in fault


def test_a_document_whose_segments_do_not_add_up(tmp_path: Path, corpus: Path) -> None:
    shard = first_shard(corpus)
    index = json.loads((corpus / "train/index.json").read_text())["shards"][0]
    columns = dict(zip(index["column_names"], index["column_encodings"], strict=True))
    with MDSWriter(out=str(tmp_path / "w"), columns=columns, hashes=["xxh64"]) as writer:
        for number in range(index["samples"]):
            writer.write(
                {
                    "id": str(number),
                    "tokens": np.array([5, 2], np.uint16),
                    "segments": np.array([[0, 3, 1]], np.int32),
                    "payload": bytes(1000),
                    "sizes": b"",
                }
            )
    shutil.copy(tmp_path / "w/shard.00000.mds", shard)
    relist(corpus, shard)

    faults = faults_of(corpus)

    assert "sample 0: segments count 3 tokens, but there are" in faults[0]
    assert len(faults) <= verify.FAULTS_OF_A_SHARD + 1


def test_no_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert "is no corpus: it has no manifest.json" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text(
        '{"kind": "documents", "vocabulary": 3, "splits": {"../x": {}}}'
    )
    assert main(["verify", str(tmp_path)]) == 2
    assert "names splits outside the corpus" in capsys.readouterr().err
