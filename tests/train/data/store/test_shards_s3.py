"""Reading from a real S3 server, and what is said when that does not work."""

import fcntl
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab_fixtures import S3Lab
from tests.train.data.store.mds import write_mds
from tools.lab import s3
from train.data.store.shards import ShardStore
from train.errors import DataError
from train.storage.cache import default_cache
from train.storage.config import StorageConfig


@pytest.fixture
def environment(s3_lab: S3Lab, monkeypatch: pytest.MonkeyPatch) -> S3Lab:
    for name, value in s3_lab.environment.items():
        monkeypatch.setenv(name, value)
    return s3_lab


@pytest.fixture
def url(environment: S3Lab, tmp_path: Path) -> str:
    corpus = write_mds(tmp_path / "corpus", manifest={"vocabulary": 64})
    return upload(environment, corpus, f"{tmp_path.name}/train")


def numbers(store: ShardStore) -> list[int]:
    return [int(store.columns(number)["tokens"][0]) for number in range(len(store))]


def upload(lab: S3Lab, corpus: Path, prefix: str) -> str:
    client = s3.client(dict(lab.environment))
    for file in corpus.iterdir():
        client.put_object(Bucket=lab.bucket, Key=f"{prefix}/{file.name}", Body=file.read_bytes())
    return f"s3://{lab.bucket}/{prefix}"


def test_remote_samples_equal_local_ones(url: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    remote = ShardStore(url, cache=cache)
    local = ShardStore(str(tmp_path / "corpus"))
    assert remote.manifest.vocabulary == 64
    assert remote.index.sha256 == local.index.sha256
    assert remote.shard_sizes == local.shard_sizes
    assert not list(cache.glob("*.mds")), "shards are fetched when they are read"
    assert remote.columns(0)["tokens"][0] == 0
    assert len(list(cache.glob("*.mds"))) == 1
    for number in range(len(local)):
        here, there = local.columns(number), remote.columns(number)
        assert here["tokens"].tolist() == there["tokens"].tolist()
    assert not list(cache.rglob("*.part"))


def test_the_cache_is_used_checked_and_renewed(
    url: str, environment: S3Lab, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    numbers(ShardStore(url, cache=cache))
    shards = sorted(cache.glob("*.mds"))
    touched = shards[0].stat().st_mtime_ns
    shards[1].write_bytes(b"damaged")
    assert numbers(ShardStore(url, cache=cache)) == list(range(30))
    assert shards[0].stat().st_mtime_ns == touched
    upload(environment, write_mds(tmp_path / "other", num_samples=7), f"{tmp_path.name}/train")
    assert len(numbers(ShardStore(url, cache=cache))) == 7


def test_processes_share_a_cache(url: str, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from train.data.store.shards import ShardStore\n"
        "store = ShardStore(sys.argv[1], cache=Path(sys.argv[2]))\n"
        "print(sum(int(store.columns(number)['tokens'][0]) for number in range(len(store))))"
    )
    command = [sys.executable, "-c", script, url, str(tmp_path / "cache")]
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [reader.communicate(timeout=90) for reader in readers]
    assert [out.strip() for out, _ in answers] == ["435"] * 2, answers


def test_a_missing_remote_shard(url: str, environment: S3Lab, tmp_path: Path) -> None:
    key = f"{tmp_path.name}/train/shard.00001.mds"
    s3.client(dict(environment.environment)).delete_object(Bucket=environment.bucket, Key=key)
    with pytest.raises(DataError, match=rf"Shard {url}/shard.00001.mds is missing; upload it"):
        numbers(ShardStore(url, cache=tmp_path / "cache"))


def test_a_damaged_remote_shard(url: str, environment: S3Lab, tmp_path: Path) -> None:
    shard = tmp_path / "corpus/shard.00001.mds"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    upload(environment, shard.parent, f"{tmp_path.name}/train")
    with pytest.raises(DataError, match=rf"Shard {url}/shard.00001.mds is damaged"):
        numbers(ShardStore(url, cache=tmp_path / "cache"))
    assert not (tmp_path / "cache/shard.00001.mds").exists()


def test_nothing_at_the_url(environment: S3Lab, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="s3://lab/none is not an MDS directory"):
        ShardStore("s3://lab/none", cache=tmp_path)


def test_a_missing_bucket(environment: S3Lab, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no bucket no-such-bucket at http"):
        ShardStore("s3://no-such-bucket/x", cache=tmp_path)


def test_a_wrong_secret(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DataError, match=r"refuses the credentials .* secret key does not match"):
        ShardStore(url, cache=tmp_path / "cache")


def test_an_unknown_key(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(DataError, match=r"refuses the credentials .* key is not known"):
        ShardStore(url, cache=tmp_path / "cache")


def test_no_credentials(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"No credentials to read .* set AWS_ACCESS_KEY_ID"):
        ShardStore(url, cache=tmp_path / "cache")


@pytest.fixture
def frozen_endpoint() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_storage_that_never_answers(
    environment: S3Lab, frozen_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", frozen_endpoint)
    storage = StorageConfig(timeout_seconds=1.0, retry_budget_seconds=2.0)
    message = (
        rf"Could not read s3://lab/x/index.json from {frozen_endpoint}: [2-5] attempts, and "
        r"nothing for [23] s since the first failure; the last: no answer within .* s; check"
    )
    with pytest.raises(DataError, match=message):
        ShardStore("s3://lab/x", cache=tmp_path, storage=storage)


def test_storage_that_is_not_there(
    environment: S3Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    storage = StorageConfig(timeout_seconds=3.0, retry_budget_seconds=0.0)
    message = r"read s3://lab/x/index.json from .*127.0.0.1:9: 1 attempt, .*Connection refused"
    with pytest.raises(DataError, match=message):
        ShardStore("s3://lab/x", cache=tmp_path, storage=storage)


def test_a_process_that_holds_the_lock_for_ever(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ShardStore(url, cache=tmp_path / "cache")
    assert store._files.directory is not None
    store._files.directory.patience_seconds = 0.5
    message = r"Waited 0.5 s for another process to fetch .*00000.mds"
    with (tmp_path / "cache/shard.00000.mds.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=message):
            store.columns(0)


def test_an_unknown_scheme(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ftp://x is not a place that files can be read from"):
        ShardStore("ftp://x", cache=tmp_path)


def test_a_cache_that_cannot_be_made(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Cannot create the data cache .*to another directory"):
        ShardStore(url, cache=tmp_path / "file/cache")


def test_the_default_cache_is_of_the_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache("s3://a").parent == tmp_path / "semicausal/shards"
    assert default_cache("s3://a") != default_cache("s3://b")
