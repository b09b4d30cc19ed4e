"""A file on a real S3 server, and places that reach it over a wire with faults."""

from collections.abc import Callable

import pytest

from tests.lab_fixtures import S3Lab
from tests.train.storage.relay import Fault
from tools.lab import s3
from train.storage import notices
from train.storage.bucket import StorePlace
from train.storage.config import StorageConfig

SIZE = 3 << 20
CONTENT = bytes(range(256)) * (SIZE // 256)
OTHER = CONTENT[::-1] + b"!"


@pytest.fixture
def lab(s3_lab: S3Lab, monkeypatch: pytest.MonkeyPatch) -> S3Lab:
    for name, value in s3_lab.environment.items():
        monkeypatch.setenv(name, value)
    put(s3_lab, CONTENT)
    # So that a test sees the first notice, whatever ran before.
    notices._last_seconds.clear()
    return s3_lab


def put(lab: S3Lab, content: bytes) -> None:
    s3.client(lab.environment).put_object(Bucket=lab.bucket, Key="wire/file", Body=content)


def store(
    url: str, name: str = "file", *, timeout_seconds: float = 10.0, budget_seconds: float = 60.0
) -> StorePlace:
    storage = StorageConfig.model_construct(
        endpoint_url=url, timeout_seconds=timeout_seconds, retry_budget_seconds=budget_seconds
    )
    return StorePlace(f"s3://lab/wire/{name}", f"wire/{name}", storage, "lab")


def first(*faults: Fault) -> Callable[[int], Fault]:
    """These for the first connections, and none for the others."""
    return lambda number: faults[number] if number < len(faults) else Fault()


def heads(requests: list[bytes]) -> list[str]:
    return [bytes(each).partition(b"\r\n\r\n")[0].decode().lower() for each in requests]
