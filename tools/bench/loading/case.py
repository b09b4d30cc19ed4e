"""Sequences a second from shards to batches, beside mosaicml-streaming and a plain array.

All read the same files in random order and give batches of 64 on the same processor cores: our feed
in its one thread beside `StreamingDataset` without workers, two ranks of ours beside two workers.
From object storage each round begins with nothing in any cache. Documents of many lengths are
packed by us, and concatenated and cut over theirs.

Source: mosaicml-streaming 0.13, "Fast, accurate streaming of training data from cloud storage".
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import boto3

from tools.bench.loading.corpora import write_documents, write_sequences, write_vast
from tools.bench.loading.readers import (
    BATCH,
    Feeds,
    Read,
    Reading,
    Streaming,
    gathered,
    shared,
)
from tools.bench.rounds import Contestant, Effort, Findings, Spread, alternate, ratio, record
from tools.bench.shapes import Plan
from tools.lab import s3
from train.data.document import Document

NODE_TOKENS_A_SECOND: Final = 450_000
"""What eight H100s train of the 1.3B model in a second."""

SEQUENCE_TOKENS: Final = 2048
DOCUMENTS_A_SHARD: Final = 1_923
BUCKET: Final = "bench"


def from_shards(plan: Plan) -> Findings:
    """The case of `python -m tools.bench`."""
    place = Path(tempfile.mkdtemp(prefix="loading-"))
    try:
        write_sequences(
            place / "rows", num_sequences=plan.loading_sequences, sequence_tokens=SEQUENCE_TOKENS
        )
        write_documents(place / "documents", num_tokens=plan.loading_sequences * SEQUENCE_TOKENS)
        found = _from_disk(place, plan)
        _from_storage(found, place, plan)
        found.settings["where_time_goes"] = _breakdown(place)
        _first_batch(found, place, num_shards=plan.loading_shards)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return found


def _from_disk(place: Path, plan: Plan) -> Findings:
    rows = Reading(root=str(place / "rows"), sequence_tokens=SEQUENCE_TOKENS, pack="stream")
    documents = replace(rows, root=str(place / "documents"), pack="fit")
    # A turn is a tenth of an epoch: what was read ahead in others' turns is little beside it.
    batches = max(2, plan.loading_sequences // BATCH // 10 * 2)
    # Workers are forked while there is no other thread.
    pair = Streaming(rows.root + "/.")
    by_two = pair.endless(workers=2)
    alone, cut = Streaming(rows.root), Streaming(documents.root)
    readings = {
        "ours": rows,
        "ours, with spans": replace(rows, has_spans=True),
        "ours, packed": documents,
        "ours, packed, with spans": replace(documents, has_spans=True),
    }
    feeds = Feeds(readings)
    ranks = [Feeds({"": replace(rows, rank=rank, ranks=2)}) for rank in range(2)]
    readers: dict[str, Read] = {
        **{name: shared([feeds], name) for name in readings},
        "ours, two ranks": shared(ranks, ""),
        "streaming": alone.endless(workers=0),
        "streaming, 2 workers": by_two,
        "streaming, cut": cut.cut_documents(SEQUENCE_TOKENS),
        "array": gathered(place / "rows" / "tokens.npy"),
    }
    processor: dict[str, list[float]] = {name: [] for name in readers}
    contestants = [
        _contestant(name, _metered(read, processor[name]), batches=batches)
        for name, read in readers.items()
    ]
    try:
        effort = Effort(rounds=min(plan.light.rounds, 8), steps=1, warmup_steps=1)
        seconds = alternate(contestants, effort)
    finally:
        for each in (feeds, *ranks, alone, pair, cut):
            each.close()
    tokens = batches * BATCH * SEQUENCE_TOKENS
    a_second = [tokens / taken for taken in seconds["ours, packed, with spans"]]
    return Findings(
        case="loading",
        settings={
            "sequences": plan.loading_sequences,
            "sequence_tokens": SEQUENCE_TOKENS,
            "batch": BATCH,
            "batches_a_turn": batches,
        },
        contestants=record(contestants, seconds),
        ratios={
            "loading_vs_streaming": ratio(seconds["streaming"], seconds["ours"]),
            "loading_processor_vs_streaming": ratio(processor["streaming"], processor["ours"]),
            "loading_two_vs_streaming_two": ratio(
                seconds["streaming, 2 workers"], seconds["ours, two ranks"]
            ),
            "loading_packed_vs_streaming_cut": ratio(
                seconds["streaming, cut"], seconds["ours, packed"]
            ),
            "loading_vs_array": ratio(seconds["array"], seconds["ours"]),
            "loading_vs_node": ratio(a_second, [NODE_TOKENS_A_SECOND] * len(a_second)),
        },
    )


def _metered(read: Read, seconds: list[float]) -> Callable[[int], None]:
    """Notes the time on a processor, which other processes do not lengthen much."""
    return lambda batches: seconds.append(read(batches))


def _contestant(name: str, read: Callable[[int], None], *, batches: int) -> Contestant:
    return Contestant(
        name=name,
        step=partial(read, batches),
        tokens=batches * BATCH * SEQUENCE_TOKENS,
        parameters=0,
        precision="",
    )


def _from_storage(found: Findings, place: Path, plan: Plan) -> None:
    """An epoch of the sequences from a store on this machine, opening included."""
    server = s3.up(place / "s3", bucket=BUCKET)
    before = dict(os.environ)
    os.environ.update(server.environment)
    try:
        client: Any = boto3.client("s3", endpoint_url=server.environment["S3_ENDPOINT_URL"])
        for path in sorted((place / "rows").glob("*/*")):
            client.upload_file(str(path), BUCKET, str(path.relative_to(place)))
        batches = plan.loading_sequences // BATCH
        turns = [
            _contestant("ours, from S3", _cold(place, _our_epoch), batches=batches),
            _contestant("streaming, from S3", _cold(place, _their_epoch(0)), batches=batches),
            _contestant(
                "streaming, from S3, 2 workers", _cold(place, _their_epoch(2)), batches=batches
            ),
        ]
        effort = Effort(rounds=min(plan.heavy.rounds, 5), steps=1, warmup_steps=1)
        seconds = alternate(turns, effort)
    finally:
        os.environ.clear()
        os.environ.update(before)
        s3.down(place / "s3")
    found.contestants |= record(turns, seconds)
    mine = seconds["ours, from S3"]
    found.ratios["loading_s3_vs_streaming"] = ratio(seconds["streaming, from S3"], mine)
    found.ratios["loading_s3_vs_streaming_two"] = ratio(
        seconds["streaming, from S3, 2 workers"], mine
    )


Epoch = Callable[[Path, int], None]
"""Reads so many batches with a directory as its cache."""


def _cold(place: Path, epoch: Epoch) -> Callable[[int], None]:
    def read(batches: int) -> None:
        with tempfile.TemporaryDirectory(dir=place) as cache:
            epoch(Path(cache), batches)

    return read


def _our_epoch(cache: Path, batches: int) -> None:
    reading = Reading(
        root=f"s3://{BUCKET}/rows",
        sequence_tokens=SEQUENCE_TOKENS,
        pack="stream",
        cache=cache,
        steps=batches,
    )
    with reading.feed() as feed:
        for step in range(1, batches + 1):
            feed.step(step)


def _their_epoch(workers: int) -> Epoch:
    def read(cache: Path, batches: int) -> None:
        streaming = Streaming(f"s3://{BUCKET}/rows", local=cache)
        try:
            given = sum(1 for _ in streaming.loader(workers=workers))
            assert given >= batches, f"{given} of {batches} batches"
        finally:
            streaming.close()

    return read


def _breakdown(place: Path, *, steps: int = 12) -> str:
    """Microseconds a sequence of each part of our way, measured apart."""
    reading = Reading(
        root=str(place / "documents"), sequence_tokens=SEQUENCE_TOKENS, has_spans=True
    )
    plan = reading.plan()
    source = plan.sources.all[0]
    store = source.corpus.train
    microseconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        taken = (time.perf_counter() - started) * 1e6 / (steps * BATCH)
        microseconds[name] = taken
        return result

    timed("plan, window included", lambda: [plan.step(step) for step in range(1, steps + 1)])
    entries = timed("plan", lambda: [s for step in range(1, steps + 1) for s in plan.step(step)])
    numbers = [number for entry in entries for number in entry.sequence.parts[:, 0].tolist()]
    places = [store._locate(number) for number in numbers]
    for number in numbers:
        store.columns(number)  # every shard is open and checked
    stored = timed("pread", lambda: [store._read(*where) for where in places])
    decoders = [store._index.decoders[shard] for shard, _ in places]
    columns = timed(
        "decode", lambda: [read(data) for read, data in zip(decoders, stored, strict=True)]
    )
    timed("documents", lambda: [Document.from_columns(each) for each in columns])
    samples = timed(
        "rows, all of the above", lambda: [source.read(entry.sequence) for entry in entries]
    )
    pairs = [(0, sample) for sample in samples]
    batches = [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
    reader = reading.collator().readers["text"]
    timed("spans", lambda: [reader.choose(s, epoch=0) for s in samples])
    plain = replace(reading, has_spans=False).collator()
    timed("collate", lambda: [plain(batch) for batch in batches])
    whole = reading.collator()
    timed("collate, spans chosen and packed", lambda: [whole(batch) for batch in batches])
    return "loading, µs a sequence: " + "; ".join(
        f"{name} {taken:.0f}" for name, taken in microseconds.items()
    )


def _first_batch(found: Findings, place: Path, *, num_shards: int) -> None:
    root = place / "vast"
    write_vast(root, num_shards=num_shards, documents_a_shard=DOCUMENTS_A_SHARD)
    answer = subprocess.run(
        [sys.executable, "-m", "tools.bench.loading.first", str(root)],
        capture_output=True,
        text=True,
        check=True,
    )
    first = json.loads(answer.stdout.splitlines()[-1])
    gib = first["peak_bytes"] / 2**30
    found.settings["first_batch"] = (
        f"first batch of {first['documents']:,} documents in {first['shards']:,} shards: "
        f"{first['seconds']:.1f} s, {first['seconds_to_open']:.1f} of them to open; {gib:.2f} GiB "
        f"at most, {first['peak_bytes_before'] / 2**30:.2f} of them before"
    )
    found.settings["first_batch_seconds"] = first["seconds"]
    found.ratios["loading_first_batch_gib"] = Spread(
        median=gib, lower_quartile=gib, upper_quartile=gib
    )
