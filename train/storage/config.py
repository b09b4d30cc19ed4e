"""The section `storage:` of a configuration: how files are read and written, wherever they lie."""

import urllib.parse
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from model.config import Config, PathText
from train.storage.path import local_path, user_cache

MOST_SECONDS = 1e7


class StorageConfig(Config):
    """How object storage is reached; nothing of it changes what is read or written.

    Commands without a configuration take the defaults, and the environment's endpoint.
    """

    endpoint_url: str | None = None
    """Address of an S3-compatible store; default: what the AWS environment or profile says."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=MOST_SECONDS)] = 60.0
    """An attempt to read or write a file fails when no bytes move for so long."""
    retry_budget_seconds: Annotated[float, Field(ge=0, le=MOST_SECONDS)] = 300.0
    """How long to try again, after the first failure without progress, before giving up."""
    cache: PathText | None = None
    """Where remote files of corpora are kept; default below ~/.cache/semicausal."""
    cache_gib: Annotated[float, Field(gt=0, le=2**30)] | None = None
    """What that may hold; the least recently used files go first. Default: no limit."""
    read_ahead_files: Annotated[int, Field(ge=1, le=1024)] = 8
    """Files of a corpus that are fetched at the same time, before they are needed."""

    @field_validator("endpoint_url")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as https://host:port")
        _ = parts.port  # raises for what is no port
        if "@" in parts.netloc:
            raise ValueError(
                "holds a user name or password, which would be stored with the run: put them into "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return url

    @property
    def cache_directory(self) -> Path:
        """What `cache_gib` is for: all cached files of this host, or those of `cache`."""
        if self.cache is not None:
            return local_path(self.cache)
        return user_cache("shards", instead="storage.cache")

    @property
    def cache_limit_bytes(self) -> int | None:
        """`cache_gib` in bytes; None for no limit."""
        return None if self.cache_gib is None else int(self.cache_gib * 2**30)
