"""Writes small MDS directories."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model import torchvision_free

torchvision_free.install()

from streaming import MDSWriter  # noqa: E402  # after install()

SEQUENCE_TOKENS = 8


def write_mds(
    directory: Path,
    *,
    num_samples: int = 30,
    size_limit: int = 400,
    hashes: Sequence[str] = ("sha1", "xxh64"),
    manifest: dict[str, Any] | None = None,
    tokens: int = SEQUENCE_TOKENS + 1,
) -> Path:
    """Sample i holds copies of i, over several shards."""
    with MDSWriter(
        out=str(directory),
        columns={"tokens": "ndarray:uint16"},
        hashes=list(hashes),
        size_limit=size_limit,
    ) as writer:
        for number in range(num_samples):
            writer.write({"tokens": np.full(tokens, number, np.uint16)})
    if manifest is not None:
        (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory
