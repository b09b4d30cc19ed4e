import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.train.data.store.mds import SEQUENCE_TOKENS, write_mds
from train.data.store.shards import ShardStore
from train.errors import DataError

from streaming import MDSWriter  # isort: skip

MANIFEST = {"tokenizer_sha256": "a" * 64, "sequence_tokens": SEQUENCE_TOKENS, "vocabulary": 64}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_mds(tmp_path / "corpus", manifest=MANIFEST)


def shards_of(corpus: Path) -> list[Path]:
    return sorted(corpus.glob("*.mds"))


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
        sample = store[number]
        assert sample.id == number
        assert sample.tokens.dtype == np.int64
        assert sample.tokens.tolist() == [number] * (SEQUENCE_TOKENS + 1)
        assert sample.spans is None
        assert sample.scored is None
    for number in (30, -1):
        with pytest.raises(IndexError, match="samples 0 to 29"):
            store[number]
    assert [sample.id for sample in store] == list(range(30))
    store.close()
    assert store[5].id == 5


def test_spans_and_scores_come_back(tmp_path: Path) -> None:
    columns = {"tokens": "ndarray:uint16", "spans": "ndarray:int32", "scored": "ndarray:uint8"}
    with MDSWriter(out=str(tmp_path / "mds"), columns=columns, hashes=["xxh64"]) as writer:
        writer.write(
            {
                "tokens": np.arange(5, dtype=np.uint16),
                "spans": np.array([[1, 3]], np.int32),
                "scored": np.array([0, 0, 0, 1, 1], np.uint8),
            }
        )
    sample = ShardStore(str(tmp_path / "mds"))[0]
    assert sample.spans is not None
    assert sample.spans.tolist() == [[1, 3]]
    assert sample.scored is not None
    assert sample.scored.tolist() == [False, False, False, True, True]


def test_few_shards_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ShardStore(str(write_mds(tmp_path / "mds", num_samples=60, size_limit=120)))
    monkeypatch.setattr("train.data.store.shards._MAX_OPEN_SHARDS", 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [sample.id for sample in store] == list(range(60))
    assert len(store.shard_sizes) > 10
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_threads_may_share_a_store(corpus: Path) -> None:
    store, wrong = ShardStore(str(corpus)), []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 30, 300):
            if store[int(number)].tokens[0] != number:
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
    assert store[0].id == 0
    with pytest.raises(DataError, match=rf"Shard {shard} is missing; copy it again"):
        list(store)


def test_a_truncated_shard_is_named(corpus: Path) -> None:
    shard = shards_of(corpus)[1]
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(DataError, match=rf"Shard {shard} has .* bytes where the index says"):
        list(ShardStore(str(corpus)))


def test_a_damaged_shard_is_named(corpus: Path) -> None:
    shard = shards_of(corpus)[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    store = ShardStore(str(corpus))
    with pytest.raises(DataError, match=rf"Shard {shard} is damaged: its xxh64 hash"):
        store[29]
    # Not remembered as good by the first refusal.
    with pytest.raises(DataError, match="is damaged"):
        store[29]


def test_any_recorded_hash_is_checked(tmp_path: Path) -> None:
    corpus = write_mds(tmp_path / "mds", hashes=["sha1"])
    shard = shards_of(corpus)[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DataError, match="its sha1 hash"):
        ShardStore(str(corpus))[0]


def test_without_hashes_a_warning_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ShardStore(str(write_mds(tmp_path / "mds", hashes=[])))
    assert store[0].id == 0
    assert "records no hash" in caplog.text


def test_a_shard_cut_short_while_open_is_an_error(corpus: Path) -> None:
    store = ShardStore(str(corpus))
    assert store[0].id == 0
    with shards_of(corpus)[0].open("r+b") as file:
        file.truncate(20)
    with pytest.raises(DataError, match="became shorter while it was read"):
        store[1]


def test_a_shard_with_other_samples_than_promised_is_an_error(corpus: Path) -> None:
    edit_index(corpus, lambda entry: entry.update(samples=entry["samples"] - 1))
    with pytest.raises(DataError, match=r"does not hold the .* samples that its index promises"):
        ShardStore(str(corpus))[0]


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


def test_columns_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    with MDSWriter(out=str(tmp_path / "mds"), columns={"tokens": "ndarray"}) as writer:
        writer.write({"tokens": np.zeros((2, 2), np.int32)})
    with pytest.raises(DataError, match=r"Sample 0 of .*shard.00000.mds cannot be decoded"):
        ShardStore(str(tmp_path / "mds"))[0]


def test_requirements(corpus: Path) -> None:
    store = ShardStore(str(corpus))
    store.require(tokenizer_sha256="a" * 64, vocabulary=64)
    store.require()
    with pytest.raises(DataError, match=r"another tokenizer \(SHA-256 aaaaaaaaaaaa…, expected bb"):
        store.require(tokenizer_sha256="b" * 64)
    with pytest.raises(DataError, match="vocabulary has 64 entries and the model's 65"):
        store.require(vocabulary=65)
    with pytest.raises(DataError, match=r"another tokenizer.*; its vocabulary"):
        store.require(tokenizer_sha256="b" * 64, vocabulary=65)


def test_requirements_need_a_manifest(tmp_path: Path) -> None:
    store = ShardStore(str(write_mds(tmp_path / "mds")))
    assert store.manifest == {}
    with pytest.raises(DataError, match=r"no manifest.json that states its vocabulary"):
        store.require(vocabulary=64)


def test_a_manifest_that_is_not_json(corpus: Path) -> None:
    (corpus / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is not JSON"):
        ShardStore(str(corpus))


def test_the_fingerprint_tells_corpora_apart(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "copy")
    other = write_mds(tmp_path / "other", num_samples=29)
    prints = [ShardStore(str(path)).fingerprint for path in (corpus, tmp_path / "copy", other)]
    assert prints[0] == prints[1] != prints[2]
