import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.train.data.store.mds import SEQUENCE_TOKENS, write_mds
from train.data.store.manifest import Manifest, require_vocabulary
from train.data.store.shards import ShardStore
from train.errors import DataError

MANIFEST = {"tokenizer_sha256": "a" * 64, "sequence_tokens": SEQUENCE_TOKENS, "vocabulary": 64}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_mds(tmp_path / "corpus", manifest=MANIFEST)


def shards_of(corpus: Path) -> list[Path]:
    return sorted(corpus.glob("*.mds"))


def numbers(store: ShardStore) -> list[int]:
    return [int(store.columns(number)["tokens"][0]) for number in range(len(store))]


def edit_index(corpus: Path, edit) -> None:
    index = json.loads((corpus / "index.json").read_text())
    edit(index["shards"][0])
    (corpus / "index.json").write_text(json.dumps(index))


def test_every_sample_comes_back(corpus: Path) -> None:
    store = ShardStore(str(corpus))
    assert len(store) == 30
    assert len(store.shard_sizes) > 2
    assert sum(store.shard_sizes) == 30
    for number in [29, *range(30), 3]:
        [(name, tokens)] = store.columns(number).items()
        assert name == "tokens"
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == [number] * (SEQUENCE_TOKENS + 1)
    for number in (30, -1):
        with pytest.raises(IndexError, match="samples 0 to 29"):
            store.columns(number)
    assert numbers(store) == list(range(30))
    store.close()
    assert store.columns(5)["tokens"][0] == 5


def test_few_shards_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ShardStore(str(write_mds(tmp_path / "mds", num_samples=60, size_limit=120)))
    monkeypatch.setattr("train.data.store.shards._MAX_OPEN_SHARDS", 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert numbers(store) == list(range(60))
    assert len(store.shard_sizes) > 10
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_threads_may_share_a_store(corpus: Path) -> None:
    store, wrong = ShardStore(str(corpus)), []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 30, 300):
            if store.columns(int(number))["tokens"][0] != number:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_a_missing_shard_is_named_when_it_is_read(corpus: Path) -> None:
    shard = shards_of(corpus)[1]
    shard.unlink()
    store = ShardStore(str(corpus))
    assert store.columns(0)["tokens"][0] == 0
    with pytest.raises(DataError, match=rf"Shard {shard} is missing; copy it again"):
        numbers(store)


def test_a_truncated_shard_is_named(corpus: Path) -> None:
    shard = shards_of(corpus)[1]
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(DataError, match=rf"Shard {shard} has .* bytes where the index says"):
        numbers(ShardStore(str(corpus)))


def test_a_damaged_shard_is_named(corpus: Path) -> None:
    shard = shards_of(corpus)[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    store = ShardStore(str(corpus))
    with pytest.raises(DataError, match=rf"Shard {shard} is damaged: its xxh64 hash"):
        store.columns(29)
    # Not remembered as good by the first refusal.
    with pytest.raises(DataError, match="is damaged"):
        store.columns(29)


def test_any_recorded_hash_is_checked(tmp_path: Path) -> None:
    corpus = write_mds(tmp_path / "mds", hashes=["sha1"])
    shard = shards_of(corpus)[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DataError, match="its sha1 hash"):
        ShardStore(str(corpus)).columns(0)


def test_without_hashes_nothing_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index.json is damaged: .*no hash of shard.00000.mds"):
        ShardStore(str(write_mds(tmp_path / "mds", hashes=[])))


def test_a_shard_cut_short_while_open_is_an_error(corpus: Path) -> None:
    store = ShardStore(str(corpus))
    assert store.columns(0)["tokens"][0] == 0
    with shards_of(corpus)[0].open("r+b") as file:
        file.truncate(20)
    with pytest.raises(DataError, match="became shorter while it was read"):
        store.columns(1)


def test_a_shard_with_other_samples_than_promised_is_an_error(corpus: Path) -> None:
    edit_index(corpus, lambda entry: entry.update(samples=entry["samples"] - 1))
    with pytest.raises(DataError, match=r"does not hold the .* samples that its index promises"):
        ShardStore(str(corpus)).columns(0)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no data directory .*none; build one with"):
        ShardStore(str(tmp_path / "none"))


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; give the directory"):
        ShardStore(str(tmp_path / "file"))


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty; build a corpus with"):
        ShardStore(str(tmp_path))


def test_not_an_mds_directory(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    with pytest.raises(
        DataError,
        match=r"is not an MDS directory: it has no index.json\. Correct the path, or build one "
        r"with `python -m tools.corpus build`",
    ):
        ShardStore(str(tmp_path))


def test_the_directory_above_points_to_the_right_one(tmp_path: Path) -> None:
    write_mds(tmp_path / "train")
    with pytest.raises(DataError, match=r"did you mean .*/train\?"):
        ShardStore(str(tmp_path))


def test_an_index_that_is_not_one(corpus: Path) -> None:
    for content in ("", "[]", '{"shards": [{}]}', '{"shards": 3}', '{"shards": [{"format": 1}]}'):
        (corpus / "index.json").write_text(content)
        with pytest.raises(DataError, match=r"index\.json"):
            ShardStore(str(corpus))


def test_an_index_without_samples(tmp_path: Path) -> None:
    write_mds(tmp_path / "mds", num_samples=1)
    (tmp_path / "mds/index.json").write_text('{"version": 2, "shards": []}')
    with pytest.raises(DataError, match="lists no samples"):
        ShardStore(str(tmp_path / "mds"))


@pytest.mark.parametrize("name", ["../outside.mds", "/etc/passwd", "a/../../b", "a\\..\\b", ""])
def test_a_path_that_leaves_the_directory_is_refused(corpus: Path, name: str) -> None:
    edit_index(corpus, lambda entry: entry["raw_data"].update(basename=name))
    with pytest.raises(DataError, match="leaves the corpus directory"):
        ShardStore(str(corpus))


def test_a_pickled_column_is_refused(corpus: Path) -> None:
    edit_index(corpus, lambda entry: entry.update(column_encodings=["pkl"]))
    with pytest.raises(DataError, match="column tokens is pickled"):
        ShardStore(str(corpus))


def test_a_corpus_without_tokens_is_refused(corpus: Path) -> None:
    edit_index(corpus, lambda entry: entry.update(column_names=["text"]))
    with pytest.raises(DataError, match="columns text but no `tokens`"):
        ShardStore(str(corpus))


def test_compressed_shards_are_refused(corpus: Path) -> None:
    edit_index(corpus, lambda entry: entry.update(compression="zstd"))
    with pytest.raises(DataError, match="compressed shards"):
        ShardStore(str(corpus))


def test_other_formats_are_refused(corpus: Path) -> None:
    edit_index(corpus, lambda entry: entry.update(format="csv"))
    with pytest.raises(DataError, match="lists csv shards"):
        ShardStore(str(corpus))


def test_requirements(corpus: Path, tmp_path: Path) -> None:
    store = ShardStore(str(corpus))
    require_vocabulary(store.manifest, place=store.root, wanted=64)
    with pytest.raises(DataError, match="vocabulary has 64 entries and the model's 65"):
        require_vocabulary(store.manifest, place=store.root, wanted=65)
    bare = ShardStore(str(write_mds(tmp_path / "mds")))
    assert bare.manifest == Manifest()
    with pytest.raises(DataError, match=r"no manifest.json that states its vocabulary"):
        require_vocabulary(bare.manifest, place=bare.root, wanted=64)


def test_a_manifest_that_is_not_json(corpus: Path) -> None:
    (corpus / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is damaged: it is not JSON"):
        ShardStore(str(corpus))


def test_the_fingerprint_tells_corpora_apart(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "copy")
    other = write_mds(tmp_path / "other", num_samples=29)
    prints = [ShardStore(str(path)).index.sha256 for path in (corpus, tmp_path / "copy", other)]
    assert prints[0] == prints[1] != prints[2]
