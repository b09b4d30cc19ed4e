"""Sequences a second from shards to batches, beside mosaicml-streaming and a plain array.

All read the same files in random order and give batches of 64 on the same processor cores: our feed
in its one thread beside `StreamingDataset` without workers, two ranks of ours beside two workers.
From object storage each round begins with nothing in any cache. Documents of many lengths are
packed by us, and concatenated and cut over theirs.

Source: mosaicml-streaming 0.13, "Fast, accurate streaming of training data from cloud storage".
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from tools.bench.loading.corpora import write_documents, write_sequences, write_vast
from tools.bench.loading.readers import (
    BATCH,
    SEQUENCE_TOKENS,
    Read,
    Reading,
    Streaming,
    gathered,
    shared,
)
from tools.bench.rounds import Effort, Findings, contestants, ratio, spread
from tools.bench.shapes import Plan
from tools.lab import s3
from tools.ranks import RankPool, changed_environment
from train.data.document import Document

NODE_TOKENS_A_SECOND: Final = 450_000
"""What eight H100s train of the 1.3B model in a second."""

DOCUMENTS_A_SHARD: Final = 1_923
BUCKET: Final = "bench"


def from_shards(plan: Plan) -> Findings:
    """The case of `python -m tools.bench`."""
    # A turn is a tenth of an epoch: what was read ahead in others' turns is little beside it.
    batches = max(2, plan.loading_sequences // BATCH // 10 * 2)
    found = Findings(
        settings={
            "sequences": plan.loading_sequences,
            "sequence_tokens": SEQUENCE_TOKENS,
            "batch": BATCH,
            "batches_a_turn": batches,
        }
    )
    with tempfile.TemporaryDirectory(prefix="loading-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        write_sequences(
            place / "rows", num_sequences=plan.loading_sequences, sequence_tokens=SEQUENCE_TOKENS
        )
        write_documents(place / "documents", num_tokens=plan.loading_sequences * SEQUENCE_TOKENS)
        _from_disk(found, place, plan, batches=batches)
        _from_storage(found, place, plan)
        found.settings["where_time_goes"] = _breakdown(place)
        _first_batch(found, place / "vast", num_shards=plan.loading_shards)
    return found


def _from_disk(found: Findings, place: Path, plan: Plan, *, batches: int) -> None:
    rows = Reading(root=str(place / "rows"), pack="stream")
    documents = replace(rows, root=str(place / "documents"), pack="fit")
    # Time on a processor, which other processes do not lengthen much.
    processor: defaultdict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        # Workers are forked while there is no other thread.
        by_two = stack.enter_context(closing(Streaming(rows.root))).endless(workers=2)
        alone, cut = (
            stack.enter_context(closing(Streaming(each.root))) for each in (rows, documents)
        )
        one, two = (stack.enter_context(RankPool(ranks)) for ranks in (1, 2))
        readers: dict[str, Read] = {
            "ours": shared(one, rows),
            "ours, with spans": shared(one, replace(rows, has_spans=True)),
            "ours, packed": shared(one, documents),
            "ours, packed, with spans": shared(one, replace(documents, has_spans=True)),
            "ours, two ranks": shared(two, rows),
            "streaming": alone.endless(workers=0),
            "streaming, 2 workers": by_two,
            "streaming, cut": cut.cut_documents(SEQUENCE_TOKENS),
            "array": gathered(place / "rows" / "tokens.npy"),
        }

        def metered(name: str) -> None:
            processor[name].append(readers[name](batches))

        seconds = found.compare(
            contestants(
                {name: partial(metered, name) for name in readers},
                tokens=batches * BATCH * SEQUENCE_TOKENS,
            ),
            Effort(rounds=min(plan.light.rounds, 8)),
            {
                "loading_vs_streaming": ("streaming", "ours"),
                "loading_two_vs_streaming_two": ("streaming, 2 workers", "ours, two ranks"),
                "loading_packed_vs_streaming_cut": ("streaming, cut", "ours, packed"),
                "loading_vs_array": ("array", "ours"),
            },
        )
    tokens = batches * BATCH * SEQUENCE_TOKENS
    found.ratios |= {
        "loading_processor_vs_streaming": ratio(processor["streaming"], processor["ours"]),
        "loading_vs_node": spread(
            [tokens / taken / NODE_TOKENS_A_SECOND for taken in seconds["ours, packed, with spans"]]
        ),
    }


def _from_storage(found: Findings, place: Path, plan: Plan) -> None:
    """An epoch of the sequences from a store on this machine, opening included."""
    server = s3.up(place / "s3", bucket=BUCKET)
    batches = plan.loading_sequences // BATCH
    epochs: dict[str, Callable[[Path], None]] = {
        "ours, from S3": partial(_our_epoch, batches),
        "streaming, from S3": partial(_their_epoch, batches, workers=0),
        "streaming, from S3, 2 workers": partial(_their_epoch, batches, workers=2),
    }

    def cold(name: str) -> None:
        with tempfile.TemporaryDirectory(dir=place) as cache:
            epochs[name](Path(cache))

    try:
        client = s3.client(server.environment)
        for path in sorted((place / "rows").glob("*/*")):
            client.upload_file(str(path), BUCKET, str(path.relative_to(place)))
        with changed_environment(server.environment):
            found.compare(
                contestants(
                    {name: partial(cold, name) for name in epochs},
                    tokens=batches * BATCH * SEQUENCE_TOKENS,
                ),
                Effort(rounds=min(plan.heavy.rounds, 5)),
                {
                    "loading_s3_vs_streaming": ("streaming, from S3", "ours, from S3"),
                    "loading_s3_vs_streaming_two": (
                        "streaming, from S3, 2 workers",
                        "ours, from S3",
                    ),
                },
            )
    finally:
        s3.down(place / "s3")


def _our_epoch(batches: int, cache: Path) -> None:
    reading = Reading(root=f"s3://{BUCKET}/rows", pack="stream", cache=cache, steps=batches)
    with reading.feed() as feed:
        for step in range(1, batches + 1):
            feed.step(step)


def _their_epoch(batches: int, cache: Path, *, workers: int) -> None:
    with closing(Streaming(f"s3://{BUCKET}/rows", local=cache)) as streaming:
        given = sum(1 for _ in streaming.loader(workers=workers))
    assert given >= batches, f"{given} of {batches} batches"


def _breakdown(place: Path) -> str:
    """Microseconds a sequence of each part of our way, measured apart."""
    reading = Reading(root=str(place / "documents"))
    plan = reading.plan()
    source = plan.sources.all[0]
    store = source.corpus.train
    parts: list[str] = []
    steps = range(1, 13)

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        taken = (time.perf_counter() - started) * 1e6 / (len(steps) * BATCH)
        parts.append(f"{name} {taken:.0f}")
        return result

    timed("plan, window included", lambda: [plan.step(step) for step in steps])
    entries = timed("plan", lambda: [s for step in steps for s in plan.step(step)])
    numbers = [number for entry in entries for number in entry.sequence.parts[:, 0].tolist()]
    for number in numbers:
        store.columns(number)  # every shard is open and checked
    columns = timed("pread and decode", lambda: [store.columns(number) for number in numbers])
    timed("documents", lambda: [Document.from_columns(each) for each in columns])
    samples = timed(
        "rows, all of the above", lambda: [source.read(entry.sequence) for entry in entries]
    )
    pairs = [(0, sample) for sample in samples]
    batches = [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
    plain, whole = (replace(reading, has_spans=has).collator() for has in (False, True))
    timed("spans", lambda: [whole.readers["text"].choose(s, epoch=0) for s in samples])
    timed("collate", lambda: [plain(batch) for batch in batches])
    timed("collate, spans chosen and packed", lambda: [whole(batch) for batch in batches])
    return f"µs a sequence: {'; '.join(parts)}"


def _first_batch(found: Findings, root: Path, *, num_shards: int) -> None:
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
    found.ratios["loading_first_batch_gib"] = spread([gib])
