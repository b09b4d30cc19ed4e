"""Diagnosis of S3 errors: what one means, and whether trying again may help."""

import socket
from collections.abc import Callable
from typing import Any, Final

import botocore.exceptions
import botocore.parsers
import urllib3.exceptions

from train.errors import StorageError
from train.storage.client import without_secrets

_DENIED: Final = {"403", "AccessDenied", "Forbidden"}
_BAD_CREDENTIALS: Final = {
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not match the access key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is not valid",
}
_RIGHTS: Final = {
    "read": "GetObject and ListBucket",
    "write": "GetObject, PutObject, DeleteObject and ListBucket",
}
_MISSING: Final = {"404", "NoSuchKey", "NotFound"}
_PASSING: Final = {
    *("RequestTimeout", "SlowDown", "Throttling", "TooManyRequests", "Throttled"),
    *("BadDigest", "IncompleteBody"),  # what came was not what was sent
}
_PASSING_STATUS: Final = {408, 409, 425, 429, 499}
REPLACED: Final = {"PreconditionFailed", "412"}
UNKNOWN_TO_STORE: Final = "NotImplemented"
BEYOND_END: Final = {"InvalidRange", "416"}

TRANSFER_ERRORS: Final = (
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    botocore.parsers.ResponseParserError,
    urllib3.exceptions.HTTPError,
    # Of an answer whose head was cut: within a date or a number, or before a field.
    ValueError,
    KeyError,
    OSError,
)
"""What a transfer raises where the store, the network or the credentials are to blame."""


class MissingError(StorageError, FileNotFoundError):
    """The storage answered, and says that there is no such file."""


class DeniedError(StorageError, PermissionError):
    """The storage knows who asks, and does not let them."""


def lasting_fault(
    error: BaseException, *, url: str, verb: str, store: str, ask_bucket: Callable[[], str | None]
) -> StorageError | None:
    """The error to raise at once, or None if trying again may help.

    Args:
        error: one of `TRANSFER_ERRORS`.
        url: of the file.
        verb: read or write.
        store: what to call the store.
        ask_bucket: lists the bucket, and gives the code of the error or None.
    """
    if isinstance(error, _NO_CREDENTIALS):
        return StorageError(
            f"No credentials to {verb} {url} ({cause_of(error)}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, botocore.exceptions.BotoCoreError) and not isinstance(error, _NETWORK):
        return StorageError(
            f"{url} cannot be asked for at {store}: {cause_of(error)}; check the URL and the "
            "AWS configuration"
        )
    code = error_code(error)
    if code in _DENIED | _MISSING:
        # Not every store says at once that the bucket is missing or the secret wrong.
        answer = ask_bucket()
        if answer in _BAD_CREDENTIALS or answer == "NoSuchBucket":
            code = answer
    if code in _BAD_CREDENTIALS:
        return StorageError(
            f"{store} refuses the credentials for {url}: {_BAD_CREDENTIALS[code]}; "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and S3_ENDPOINT_URL"
        )
    if code == "NoSuchBucket":
        return StorageError(
            f"There is no bucket {url.split('/')[2]} at {store}; check the URL "
            f"{url.rpartition('/')[0]} and storage.endpoint_url or S3_ENDPOINT_URL"
        )
    if code in _DENIED:
        rights = _RIGHTS[verb]
        return DeniedError(
            f"{store} knows the credentials but does not let them {verb} {url}; grant them "
            f"{rights} there, or check the name"
        )
    if code in _MISSING:
        return MissingError(f"{url} does not exist")
    if code == "RequestTimeTooSkewed":
        return StorageError(
            f"{store} refuses to {verb} {url}, because this host's clock is wrong: set it"
        )
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    may_pass = code in _PASSING or status in _PASSING_STATUS or not 300 <= (status or 0) < 500
    if may_pass and code != UNKNOWN_TO_STORE:
        return None
    return StorageError(
        f"{store} refuses to {verb} {url} ({cause_of(error)}); check the URL, the region in "
        "AWS_REGION, and storage.endpoint_url or S3_ENDPOINT_URL"
    )


def error_code(error: BaseException) -> str | None:
    """The storage's own code in an error of boto3, such as `NoSuchBucket`; None without one."""
    code = _response(error).get("Error", {}).get("Code")
    return None if code is None else str(code)


def cause_of(error: BaseException) -> str:
    """An error of a transfer in a few words, without secrets."""
    if isinstance(error, _TIMEOUTS):
        return "no answer in time"
    if isinstance(error, KeyError):
        return f"the answer lacks {error}"
    text = str(error)
    inner: BaseException | None = error
    while inner is not None:
        reason = getattr(inner, "strerror", None)
        if isinstance(reason, str) and reason not in text:
            text = f"{text} ({reason})"
        inner = inner.__cause__ or inner.__context__
    return without_secrets(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def is_timeout(error: BaseException) -> bool:
    """Whether nothing came in time, as far as the socket noticed."""
    return isinstance(error, _TIMEOUTS)


def _response(error: BaseException) -> dict[str, Any]:
    response: Any = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


_NO_CREDENTIALS: Final = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.SSOError,
)
_NETWORK: Final = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    # The service that hands out credentials may be away like the store itself.
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.MetadataRetrievalError,
)
_TIMEOUTS: Final = (
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ConnectTimeoutError,
    urllib3.exceptions.TimeoutError,
    socket.timeout,
)
