"""One S3 client a process, and the endpoint that it speaks to."""

import os
import re
from http.client import HTTPResponse
from typing import Any, Final

from typing_extensions import override

from train.errors import StorageError

_ENDPOINT_VARIABLES: Final = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_MAX_CONNECTIONS: Final = 64

_Key = tuple[int, str | None, float, tuple[tuple[str, str], ...]]
_clients: dict[_Key, Any] = {}


def endpoint_of(configured: str | None) -> str | None:
    """The endpoint to speak to: as configured, else from the environment; None is Amazon's own."""
    return configured or next(
        (os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name)), None
    )


def client(endpoint: str | None, *, timeout_seconds: float) -> Any:
    """The process's client for an endpoint, with credentials from the AWS environment or profile.

    It is made when first asked for, and anew after a fork or a change of the environment. Making
    it may block, as may its first request, where credentials come from a service or a command.

    Args:
        endpoint: from `endpoint_of`.
        timeout_seconds: of a connection attempt, and of each wait for bytes.
    """
    key = _key(endpoint, timeout_seconds)
    found = _clients.get(key)
    if found is None:
        # No lock: a thread that blocks in here must not keep others from trying again. Of two
        # clients that are made at once, the first one stays.
        found = _clients.setdefault(key, _make(endpoint, timeout_seconds))
    return found


def discard(endpoint: str | None, *, timeout_seconds: float) -> None:
    """Forget the client, in which a thread may hang for ever and hold locks."""
    _clients.pop(_key(endpoint, timeout_seconds), None)


def without_secrets(text: str) -> str:
    """A text with the user names and passwords of URLs taken out."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def _key(endpoint: str | None, timeout_seconds: float) -> _Key:
    variables = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return os.getpid(), endpoint, timeout_seconds, variables


def _make(endpoint: str | None, timeout_seconds: float) -> Any:
    from botocore.awsrequest import AWSHTTPConnection, AWSHTTPSConnection
    from botocore.config import Config
    from botocore.session import Session

    AWSHTTPConnection.response_class = AWSHTTPSConnection.response_class = _WholeHead
    config = Config(
        connect_timeout=timeout_seconds,
        read_timeout=timeout_seconds,
        # Trying again is ours: a second loop inside would hide how long a store is away.
        retries={"total_max_attempts": 1},
        max_pool_connections=_MAX_CONNECTIONS,
        tcp_keepalive=True,
        # What is read is checked against hashes of ours, and not every store knows these.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        made = Session().create_client("s3", endpoint_url=endpoint, config=config)
    except ValueError as error:
        raise StorageError(
            f"The S3 endpoint {without_secrets(str(endpoint))} cannot be used "
            f"({without_secrets(str(error))}); correct storage.endpoint_url or S3_ENDPOINT_URL"
        ) from error
    return made


class _Head:
    """Lines of an answer's head, the last of which is kept."""

    def __init__(self, lines: Any):
        self._lines = lines
        self.last = b""

    def readline(self, *limit: int) -> bytes:
        self.last = self._lines.readline(*limit)
        return self.last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lines, name)


class _WholeHead(HTTPResponse):
    """An answer whose head ends with an empty line.

    Python's parser takes what came of one for all of it: a listing without its body would be one of
    an empty directory, and half of an ETag that of another file.
    """

    @override
    def begin(self) -> None:
        answer: Any = self
        lines = answer.fp
        answer.fp = head = _Head(lines)
        super().begin()
        if answer.fp is head:  # else there is no body
            answer.fp = lines
        if head.last not in (b"\r\n", b"\n"):
            self.close()
            raise ConnectionError("the connection ended within the head of the answer")
