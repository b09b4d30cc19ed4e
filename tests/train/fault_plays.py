"""The faults themselves: each function makes one and lets the tiny run meet it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streaming import MDSWriter

from tests.corpora import write_lengths
from tests.train.fault_lab import (
    RANKS,
    SAMPLES,
    STEPS,
    Lab,
    Played,
    finish,
    losses_of,
    wait_for_step,
)
from tests.train.proxy import slow_proxy
from tests.train.storage.disks import small_disk
from tests.train.storage.relay import SLOW_DOWN, Fault, relay
from tools.lab import daemons
from train.data.store.shards import ShardStore

Play = Callable[[Lab, Path], Played]

FREEZE_SECONDS = 60.0
DISK_PAGES = 48
"""Of the disk that is too small: a page a shard."""
BALLAST_BYTES = 40_000
"""With which a sample lies in large shards."""


def victim(corpus: Path) -> Path:
    """A shard in the middle."""
    return sorted((corpus / "train").glob("*.mds"))[30]


def flip(path: Path) -> None:
    """One bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def add_ballast(source: Path, directory: Path) -> None:
    """Write a split again, in large shards, with a column that is nothing but heavy."""
    shutil.rmtree(directory)
    store = ShardStore(str(source))
    documents = [store.columns(number) for number in range(len(store))]
    columns = {"id": "str", "tokens": "ndarray:uint16", "segments": "ndarray:int32"}
    columns["ballast"] = "bytes"
    out = str(directory)
    with MDSWriter(out=out, columns=columns, hashes=["xxh64"], size_limit=2_500_000) as writer:
        for document in documents:
            writer.write(document | {"ballast": bytes(BALLAST_BYTES)})
    write_lengths(directory, documents)
    for name in ("manifest.json", "tokenizer.json", "token_counts.npy"):
        shutil.copyfile(source / name, directory / name)


def spoiled_in_store(spoil: Callable[[Path], object]) -> Callable[[Lab, Path], Played]:
    def play(lab: Lab, place: Path) -> Played:
        corpus = lab.copy(f"{place.name}-spoiled")
        spoil(corpus)
        url = lab.upload(lab.shared, place.name, corpus=corpus)
        return lab.run(url, place, record=lab.shared)

    return play


def hostile(change: Callable[[dict[str, Any]], object], *, name: str = "index.json"):
    def play(lab: Lab, place: Path) -> Played:
        corpus = lab.copy(f"{place.name}-spoiled")
        path = corpus / "train" / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return lab.run(corpus, place)

    return play


def flipped_in_cache(lab: Lab, place: Path) -> Played:
    url = lab.upload(lab.shared, place.name)
    cache = place.with_name(place.name + "-cache")
    shutil.copytree(lab.corpus / "train", cache / "train")
    flip(victim(cache))
    return lab.run(url, place, record=lab.shared)


def wrong_secret(lab: Lab, place: Path) -> Played:
    url = lab.upload(lab.shared, place.name)
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    return lab.run(url, place, record=lab.shared, environment=wrong)


def missing_bucket(lab: Lab, place: Path) -> Played:
    return lab.run("s3://no-such-bucket/corpus", place, record=lab.shared)


def frozen(lab: Lab, place: Path) -> Played:
    record = lab.server()
    run = lab.start(lab.upload(record, place.name), place, record=record)
    wait_for_step(run, place, 3)
    since = time.monotonic()
    with daemons.frozen(record):
        time.sleep(FREEZE_SECONDS / 2)
        frozen_at = losses_of(place)[-1][0]
        time.sleep(FREEZE_SECONDS / 2)
    wrong: list[str] = []
    if not 3 <= frozen_at < STEPS:
        wrong.append(f"the run was at step {frozen_at} while the store was frozen")
    played = finish(run, place, since=since)
    played.wrong += wrong
    return played


def killed_for_good(lab: Lab, place: Path) -> Played:
    record = lab.server()
    overrides = ("storage.timeout_seconds=2", "storage.retry_budget_seconds=5")
    run = lab.start(lab.upload(record, place.name), place, *overrides, record=record)
    wait_for_step(run, place, 3)
    since = time.monotonic()
    os.kill(record.daemons[0].process_id, signal.SIGKILL)
    return finish(run, place, since=since)


def throttled(lab: Lab, place: Path) -> Played:
    """Each shard takes longer than the timeout, and nothing may be tried again."""
    heavy = lab.copy(f"{place.name}-heavy")
    add_ballast(lab.corpus / "train", heavy / "train")
    lab.losses(heavy)
    url = lab.upload(lab.shared, place.name, corpus=heavy)
    endpoint = lab.shared.environment["S3_ENDPOINT_URL"]
    with slow_proxy(lab.directory / "nginx", endpoint, bytes_per_second=1_000_000) as proxy:
        played = lab.run(
            url,
            place,
            "storage.timeout_seconds=1",
            "storage.retry_budget_seconds=0",
            f"storage.endpoint_url={proxy}",
            record=lab.shared,
        )
    played.corpus = heavy
    if played.seconds < SAMPLES * BALLAST_BYTES / 2e6:
        played.wrong.append("nothing was slow")
    return played


def saved_to(place: Path) -> str:
    """Where a run keeps its checkpoints: in the store, while it reads from the disk."""
    return f"run_mirror=s3://faults/{place.name}-saved"


def store_frozen_while_saving(lab: Lab, place: Path) -> Played:
    record = lab.server()
    run = lab.start(lab.corpus, place, saved_to(place), record=record)
    wait_for_step(run, place, 5)
    since = time.monotonic()
    with daemons.frozen(record):
        time.sleep(FREEZE_SECONDS)
        frozen_at = losses_of(place)[-1][0]
    played = finish(run, place, since=since)
    played.environment = record.environment
    if not 10 <= frozen_at < STEPS:
        played.wrong.append(f"the run was at step {frozen_at} while the store was frozen")
    return played


def store_gone_while_saving(lab: Lab, place: Path) -> Played:
    """All connections end after the first checkpoint, and none is taken any more."""
    patience = ("storage.timeout_seconds=2", "storage.retry_budget_seconds=5")
    endpoint = lab.shared.environment["S3_ENDPOINT_URL"]
    with slow_proxy(place.with_name("proxy"), endpoint, bytes_per_second=10**9) as proxy:
        run = lab.start(
            lab.corpus,
            place,
            saved_to(place),
            *patience,
            record=lab.shared,
            environment={"S3_ENDPOINT_URL": proxy},
        )
        wait_for_step(run, place, 12)
        since = time.monotonic()
    played = finish(run, place, since=since)
    played.environment = lab.shared.environment
    return played


def wrong_secret_while_saving(lab: Lab, place: Path) -> Played:
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    return lab.run(lab.corpus, place, saved_to(place), record=lab.shared, environment=wrong)


def store_throttled_while_saving(lab: Lab, place: Path) -> Played:
    """Every other connection is told to come back later, and the others are slow."""

    def plan(number: int) -> Fault:
        slow = Fault(taken_per_second=200_000, cut_after_bytes=6000)
        return Fault(answer=SLOW_DOWN) if number % 2 else slow

    with relay(lab.shared.environment["S3_ENDPOINT_URL"], plan) as wire:
        played = lab.run(
            lab.corpus,
            place,
            saved_to(place),
            record=lab.shared,
            environment={"S3_ENDPOINT_URL": wire.url},
        )
        if len(wire.requests) < 4:
            played.wrong.append("nothing was throttled")
    played.environment = lab.shared.environment
    return played


def full_disk_while_saving(lab: Lab, place: Path) -> Played:
    with small_disk(place.with_name("saving"), num_bytes=8192) as disk:
        return lab.run(lab.corpus, place, f"checkpoint.directory={disk / 'saved'}")


def full_disk(lab: Lab, place: Path) -> Played:
    url = lab.upload(lab.shared, place.name)
    with small_disk(lab.directory / "disk", num_bytes=4096 * DISK_PAGES) as disk:
        played = lab.run(url, place, f"storage.cache={disk}", record=lab.shared)
        cached = len(list(disk.rglob("*.mds")))
        if not 0 < cached <= DISK_PAGES:
            played.wrong.append(f"the disk held {cached} shards")
    return played


def killed_rank(lab: Lab, place: Path) -> Played:
    url = lab.upload(lab.shared, place.name)
    run = lab.start(url, place, record=lab.shared)
    wait_for_step(run, place, STEPS // 2)
    since = time.monotonic()
    run.ranks[1].send_signal(signal.SIGKILL)
    first = finish(run, place, since=since)
    played = lab.run(url, place, record=lab.shared)
    if first.seconds > 15 or 0 in first.codes:
        played.wrong.append(f"the other rank: {first.codes} after {first.seconds:.0f} s")
    return played


STREAMING = """
import os, signal, sys
from model import torchvision_free
torchvision_free.install()
from streaming import StreamingDataset
dataset = StreamingDataset(remote=sys.argv[1], local=sys.argv[2], batch_size=1)
next(iter(dataset))
# With the helper that would tidy up, as a scheduler or a full memory kills.
os.killpg(0, signal.SIGKILL)
"""


def stale_shared_memory(lab: Lab, place: Path) -> Played:
    before = shared_memory()
    command = [sys.executable, "-c", STREAMING, lab.corpus / "train", place.with_name("streaming")]
    subprocess.run(command, timeout=60, check=False, capture_output=True, start_new_session=True)
    stale = shared_memory() - before
    url = lab.upload(lab.shared, place.name)
    run = lab.start(url, place, record=lab.shared)
    wait_for_step(run, place, STEPS // 2)
    run.signal(signal.SIGKILL)
    killed = finish(run, place, since=time.monotonic())
    played = lab.run(url, place, record=lab.shared)
    ours = abandoned(shared_memory() - before - stale)
    try:
        if not stale:
            played.wrong.append("mosaicml-streaming left nothing behind")
        if killed.codes != [-9] * RANKS:
            played.wrong.append(f"the killed run ended with {killed.codes}")
        if ours:
            played.wrong.append(f"left in /dev/shm: {sorted(ours)}")
    finally:
        for name in stale:
            Path("/dev/shm", name).unlink(missing_ok=True)
    return played


def shared_memory() -> set[str]:
    """What lies in /dev/shm."""
    return set(os.listdir("/dev/shm"))


def abandoned(names: set[str]) -> set[str]:
    """Those that lie there and that nobody uses; what others use or pass on is none of ours."""
    deadline = time.monotonic() + 5
    while names and time.monotonic() < deadline:
        names = {name for name in names & shared_memory() if not is_open(name)}
        time.sleep(0.2)
    return names


def is_open(name: str) -> bool:
    """Whether a process has a piece of shared memory open or mapped."""
    place = f"/dev/shm/{name}"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if place in (process / "maps").read_text():
                return True
            if place in {os.readlink(each) for each in (process / "fd").iterdir()}:
                return True
        except OSError:
            continue
    return False
