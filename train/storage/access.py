"""How a corpus in object storage is read."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a run says about reading from object storage; nothing of it changes what is read.

    Attributes:
        timeout_seconds: an attempt to fetch a file fails when no bytes arrive for so long.
        retry_budget_seconds: how long to go on trying after the first failure without progress.
        endpoint_url: of the store; None leaves it to the environment, see `ObjectStore`.
        cache_root: `cache_limit_bytes` is for all cached files below this directory; None is each
            store's own cache directory.
        cache_limit_bytes: what the cache may hold; None is no limit.
        read_ahead_shards: files that are brought into the cache at the same time.
    """

    timeout_seconds: float = 60.0
    retry_budget_seconds: float = 300.0
    endpoint_url: str | None = None
    cache_root: Path | None = None
    cache_limit_bytes: int | None = None
    read_ahead_shards: int = 8


def default_cache_root() -> Path:
    """Where remote corpora are kept on this host unless a place is named."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "semicausal" / "shards"
