"""What W&B's service writes where no server is: read here as its authors document it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

# Looked up by name: the module picks its classes at run time, by the version of protobuf.
WandbRecord: Any = vars(wandb_internal_pb2)["Record"]


def history(run_directory: Path) -> list[dict[str, object]]:
    """The logged rows of every offline file of a run, oldest first."""
    rows = []
    for path in sorted(run_directory.glob("wandb/offline-run-*/*.wandb")):
        for payload in records(path.read_bytes()):
            record = WandbRecord.FromString(payload)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
    return rows


def records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB, fragments with a header of 7 bytes."""
    header, fragments, offset = 7, b"", header_of_file(content)
    while offset + header <= len(content):
        left_in_block = 32768 - offset % 32768
        if left_in_block < header:
            offset += left_in_block
            continue
        length = int.from_bytes(content[offset + 4 : offset + 6], "little")
        kind = content[offset + 6]
        fragments += content[offset + header : offset + header + length]
        offset += header + length
        if kind in (1, 4):  # A whole record, or the last fragment of one.
            yield fragments
            fragments = b""


def header_of_file(content: bytes) -> int:
    assert content[:4] == b":W&B"
    return 7
