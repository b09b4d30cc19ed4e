"""A cache that is limited, full, damaged and shared, in front of a real S3 server."""

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab_fixtures import S3Lab
from tests.train.data.store.mds import write_mds
from tests.train.storage.disks import make_read_only, small_disk
from tests.train.storage.relay import Fault, relay
from tools.lab import s3
from train.data.store.shards import ShardStore
from train.errors import ConfigError, DataError, StorageError
from train.storage import notices
from train.storage.bucket import StorePlace
from train.storage.cache import CheckedFiles, require_working_set
from train.storage.config import StorageConfig
from train.storage.place import Place
from train.storage.stored_file import StoredFile

SHARDS = 30
"""Of one sample each, SHARD_BYTES long."""
NUM_READ = 12
"""By tests of a disk that holds four or five: a full one takes no more than that in a second."""
SHARD_BYTES = 50_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    return write_mds(
        directory, num_samples=SHARDS, size_limit=SHARD_BYTES, tokens=SHARD_BYTES // 2 - 200
    )


@pytest.fixture(scope="module")
def uploaded(corpus: Path, s3_lab: S3Lab) -> str:
    client = s3.client(s3_lab.environment)
    for file in corpus.iterdir():
        client.upload_file(str(file), s3_lab.bucket, f"cache/{file.name}")
    return f"s3://{s3_lab.bucket}/cache"


@pytest.fixture
def url(uploaded: str, s3_lab: S3Lab, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3_lab.environment.items():
        monkeypatch.setenv(name, value)
    return uploaded


@pytest.fixture
def endpoint(s3_lab: S3Lab) -> str:
    return s3_lab.environment["S3_ENDPOINT_URL"]


def read(store: ShardStore, *numbers: int) -> None:
    for number in numbers:
        assert (store.columns(number)["tokens"] == number).all()


def cached(directory: Path) -> list[int]:
    return sorted(int(path.name.split(".")[1]) for path in directory.rglob("*.mds"))


def shards(number: float, **options: Any) -> StorageConfig:
    """A cache that has room for so many shards."""
    return StorageConfig(cache_gib=number * SHARD_BYTES / 2**30, **options)


def test_one_sample_a_shard(corpus: Path) -> None:
    store = ShardStore(str(corpus))
    assert store.shard_sizes == [1] * SHARDS
    assert 0.99 * SHARD_BYTES < min(store.shard_bytes) <= max(store.shard_bytes) <= SHARD_BYTES


def test_the_least_recently_used_go(url: str, tmp_path: Path) -> None:
    store = ShardStore(url, cache=tmp_path, storage=shards(3))
    read(store, 0, 1, 2)
    store.close()
    read(store, 0, 3)
    assert cached(tmp_path) == [0, 2, 3]
    read(store, 4, 5)
    assert cached(tmp_path) == [3, 4, 5]


def test_an_evicted_shard_that_is_open_is_read_on(url: str, tmp_path: Path) -> None:
    store = ShardStore(url, cache=tmp_path, storage=shards(1))
    read(store, 0, 1)
    assert cached(tmp_path) == [1]
    read(store, 0)
    assert cached(tmp_path) == [1]


def test_evicted_shards_do_not_stay_open_for_ever(url: str, tmp_path: Path) -> None:
    store = ShardStore(url, cache=tmp_path, storage=shards(1))
    before = len(os.listdir("/proc/self/fd"))
    read(store, *range(SHARDS))
    # Those that are unlinked, the one that is not, and connections.
    assert len(os.listdir("/proc/self/fd")) - before <= 8 + 1 + 4


def test_the_limit_is_for_all_splits(url: str, tmp_path: Path) -> None:
    storage = shards(3, cache=str(tmp_path))
    one = ShardStore(url, cache=tmp_path / "one", storage=storage)
    two = ShardStore(url, cache=tmp_path / "two", storage=storage)
    read(one, 0, 1)
    read(two, 2, 3)
    assert cached(tmp_path / "one") == [1]
    assert cached(tmp_path / "two") == [2, 3]


def test_what_the_user_keeps_there_stays(url: str, tmp_path: Path) -> None:
    mine = tmp_path / "shard.99999.mds"
    mine.write_bytes(b"x" * 10 * SHARD_BYTES)
    read(ShardStore(url, cache=tmp_path, storage=shards(1)), 0, 1, 2)
    assert cached(tmp_path) == [2, 99999]


def test_a_limit_below_the_working_set_is_refused() -> None:
    gib = 1 << 30
    require_working_set(None, working_set_bytes=10 * gib)
    require_working_set(2 * gib, working_set_bytes=2 * gib)
    with pytest.raises(ConfigError, match=r"cache_gib: 2 GiB do not .* raise it to 2.51, or"):
        require_working_set(2 * gib, working_set_bytes=int(2.501 * gib))


HAMMER = """
import sys
from pathlib import Path
import numpy as np
from train.storage.config import StorageConfig
from train.storage.bucket import StorePlace
from train.data.store.shards import ShardStore

url, cache, limit, seed, shards = sys.argv[1:]
fetched = []
fetch = StorePlace.fetch
def counted(self, *arguments, **keywords):
    fetch(self, *arguments, **keywords)
    fetched.append(self.name)
StorePlace.fetch = counted
store = ShardStore(url, cache=Path(cache), storage=StorageConfig(cache_gib=int(limit) / 2**30))
random = np.random.default_rng(int(seed))
for number in random.integers(0, int(shards), 150).tolist():
    if not number % 5:
        store.prefetch(random.integers(0, int(shards), 2).tolist())
    if not number % 3:
        store.close()
    assert (store.columns(number)["tokens"] == number).all()
store.close()
print(sum(name.endswith(".mds") for name in fetched))
"""


def hammer(url: str, cache: Path, *, limit_bytes: int, num_shards: int) -> tuple[int, int]:
    """What four processes fetched in all, and the most that the cache held meanwhile."""
    command = [sys.executable, "-c", HAMMER, url, cache, str(limit_bytes)]
    readers = [
        subprocess.Popen(
            [*command, str(seed), str(num_shards)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    most = 0
    deadline = time.monotonic() + 60
    while any(reader.poll() is None for reader in readers) and time.monotonic() < deadline:
        most = max(most, sum(path_bytes(path) for path in cache.rglob("*.mds")))
        time.sleep(0.01)
    answers = [reader.communicate(timeout=60) for reader in readers]
    assert [reader.returncode for reader in readers] == [0] * 4, answers
    return sum(int(out) for out, _ in answers), most


def path_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_processes_in_a_cache_that_is_too_small(url: str, tmp_path: Path) -> None:
    limit = 3 * SHARD_BYTES
    fetched, most = hammer(url, tmp_path, limit_bytes=limit, num_shards=12)
    assert fetched > 12
    # Counted file by file while others come and go, so one may be counted too much.
    assert 2 * SHARD_BYTES <= most <= limit + SHARD_BYTES
    assert not list(tmp_path.rglob("*.part"))


def test_processes_in_a_cache_that_is_large_enough(url: str, tmp_path: Path) -> None:
    fetched, most = hammer(url, tmp_path, limit_bytes=12 * SHARD_BYTES, num_shards=12)
    assert fetched == 12
    assert 11 * SHARD_BYTES < most <= 12 * SHARD_BYTES


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", num_bytes=5 * SHARD_BYTES) as place:
        yield place


def test_a_full_disk_is_made_room_on(
    url: str, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notices._last_seconds.clear()
    store = ShardStore(url, cache=disk)
    read(store, *range(NUM_READ), *range(NUM_READ))
    assert 3 <= len(cached(disk)) <= 5
    assert [record for record in caplog.records if "is full: files that were not used" in
            record.message]  # fmt: skip
    assert not list(disk.rglob("*.part"))


def test_two_readers_on_a_full_disk(url: str, disk: Path) -> None:
    """What one has open, the other evicts: its room is there at once."""
    stores = [ShardStore(url, cache=disk) for _ in range(2)]
    for number in range(0, NUM_READ, 2):
        read(stores[0], number, 0)
        read(stores[1], number + 1, 1)
    assert len(cached(disk)) <= 5


def test_a_full_disk_and_reading_ahead(url: str, disk: Path) -> None:
    store = ShardStore(url, cache=disk)
    for first in range(0, NUM_READ, 3):
        store.prefetch(range(first, SHARDS))
        read(store, *range(first, first + 3))
    store.close()


def test_a_disk_that_stays_full_is_given_up(url: str, disk: Path) -> None:
    (disk / "mine").write_bytes(bytes(5 * SHARD_BYTES - 3 * 4096))
    store = ShardStore(url, cache=disk, storage=StorageConfig(retry_budget_seconds=1.5))
    with pytest.raises(
        DataError, match=r"disk of the data cache .* is full, and nothing .* for 2 s"
    ):
        read(store, 0)
    assert not list(disk.rglob("*.part"))


def test_room_that_comes_in_time(url: str, disk: Path) -> None:
    notices._last_seconds.clear()
    mine = disk / "mine"
    mine.write_bytes(bytes(5 * SHARD_BYTES - 3 * 4096))

    class MakesRoom(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for room: the disk of the data cache" in record.getMessage():
                mine.unlink()

    handler = MakesRoom()
    notices.logger.addHandler(handler)
    try:
        read(ShardStore(url, cache=disk, storage=StorageConfig(retry_budget_seconds=60)), 0)
    finally:
        notices.logger.removeHandler(handler)
    assert not mine.exists()


def test_a_disk_that_cannot_be_written(url: str, disk: Path) -> None:
    store = ShardStore(url, cache=disk)
    make_read_only(disk)
    with pytest.raises(DataError, match=r"Cannot write to the data cache .*Read-only.*another dir"):
        read(store, 0)
    with pytest.raises(DataError, match=r"Cannot create the data cache .*Read-only.*another dir"):
        ShardStore(url, cache=disk)


def test_a_disk_that_does_not_give_back_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(StorePlace, "fetch", lambda _, landing, **__: landing.write(b"content"))
    monkeypatch.setattr(StoredFile, "fault", fail)
    files = CheckedFiles(Place.parse("s3://bucket/corpus"), tmp_path)
    told = (
        rf"Cannot read a.mds back from the data cache {tmp_path} \(Input/output error\); set stor"
    )
    with pytest.raises(StorageError, match=told):
        files.open(StoredFile("a.mds", 7, ("sha256", "0" * 64)))


DIES = """
import os, signal, sys, threading
from pathlib import Path
from train.storage.config import StorageConfig
from train.data.store.shards import ShardStore

url, cache, endpoint = sys.argv[1:]
store = ShardStore(url, cache=Path(cache), storage=StorageConfig(endpoint_url=endpoint))
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
store.columns(0)
"""


def test_leftovers_of_the_dead_are_removed_and_the_living_stay(
    url: str, endpoint: str, tmp_path: Path
) -> None:
    def stall(number: int) -> Fault:
        # The index and the manifest come through; the shard begins.
        return Fault(bytes_per_second=20_000)

    with relay(endpoint, stall) as wire:
        command = [sys.executable, "-c", DIES, url, tmp_path, wire.url]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        [partial] = tmp_path.rglob("*.part")
        assert str(process.pid) in partial.name
        ShardStore(url, cache=tmp_path)
        assert partial.exists(), "its process lives"
        assert process.wait(60) == -9
    assert partial.exists()
    store = ShardStore(url, cache=tmp_path)
    assert not partial.exists()
    read(store, 0)


def test_reading_ahead_brings_several_at_once(url: str, endpoint: str, tmp_path: Path) -> None:
    may_come = threading.Event()
    may_come.set()
    with relay(endpoint, lambda _: Fault(held=may_come)) as wire:
        store = ShardStore(
            url, cache=tmp_path, storage=StorageConfig(endpoint_url=wire.url, read_ahead_files=4)
        )
        may_come.clear()
        store.prefetch(range(SHARDS))  # and goes on, though nothing comes

        def num_asked() -> int:
            return b"".join(wire.requests).count(b"GET /lab/cache/shard.")

        deadline = time.monotonic() + 60
        while num_asked() < 4:
            assert time.monotonic() < deadline, "all are asked for at once"
            time.sleep(0.01)
        may_come.set()
        read(store, 0, 1, 2, 3)
        assert cached(tmp_path) == [0, 1, 2, 3], "no more than four ahead"
        assert num_asked() == 4
        read(store, 4)
        assert num_asked() == 5
        store.prefetch([0, 1, 2, 3, 4, 5])
        assert [thread.name for thread in threading.enumerate()].count("read-ahead") == 1
        store.close()


def test_reading_ahead_ends_with_the_store(url: str, endpoint: str, tmp_path: Path) -> None:
    with relay(endpoint, lambda _: Fault(bytes_per_second=20_000)) as wire:
        store = ShardStore(url, cache=tmp_path, storage=StorageConfig(endpoint_url=wire.url))
        store.prefetch(range(4))
        time.sleep(0.2)
        store.close()  # which waits for none: it would be there then
        assert "read-ahead" not in [thread.name for thread in threading.enumerate()]
    assert not list(tmp_path.rglob("*.part"))
    assert cached(tmp_path) == []


def test_what_goes_wrong_ahead_shows_where_it_is_read(
    url: str, s3_lab: S3Lab, corpus: Path, tmp_path: Path
) -> None:
    client = s3.client(s3_lab.environment)
    client.delete_object(Bucket=s3_lab.bucket, Key="cache/shard.00007.mds")
    try:
        store = ShardStore(url, cache=tmp_path)
        store.prefetch([6, 7, 8])
        read(store, 6, 8)
        with pytest.raises(DataError, match=rf"Shard {url}/shard.00007.mds is missing"):
            read(store, 7)
    finally:
        shard = corpus / "shard.00007.mds"
        client.upload_file(str(shard), s3_lab.bucket, "cache/shard.00007.mds")
    read(store, 7)


def test_one_process_fetches_and_the_others_wait(
    url: str, endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Longer than any patience, since there is progress."""
    with relay(endpoint, lambda _: Fault(bytes_per_second=15_000)) as wire:
        command = [sys.executable, "-c", DIES.replace("Timer(1.0", "Timer(30"), url, tmp_path]
        other = subprocess.Popen([*command, wire.url])
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        store = ShardStore(url, cache=tmp_path)
        assert store._files.directory is not None
        store._files.directory.patience_seconds = 1.8
        started = time.monotonic()
        with caplog.at_level(logging.WARNING):
            read(store, 0)
        assert time.monotonic() - started > 2
        other.kill()
        other.wait()
