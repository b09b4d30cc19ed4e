"""Fetches single files from object storage, with a deadline, and says plainly what went wrong."""

import os
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from model import torchvision_free
from train.errors import DataError

torchvision_free.install()

from streaming.base.storage import CloudDownloader  # noqa: E402  # after install()

Result = TypeVar("Result")

_DENIED: Final = {"403", "AccessDenied", "Forbidden"}
_BAD_CREDENTIALS: Final = {
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not match the access key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is not valid",
}
_MISSING: Final = {"404", "NoSuchKey", "NotFound"}


class MissingObjectError(DataError):
    """The storage answered, and says that there is no such file."""


class ObjectStore:
    """A directory in object storage, read file by file.

    The transfer is mosaicml-streaming's own downloader for the URL's scheme, so credentials come
    from where that looks for them: for `s3://` the usual AWS variables and files, and
    `S3_ENDPOINT_URL`. What is added is the deadline (its timeout is one socket's, and it retries
    inside, so storage that freezes would hold a rank for minutes) and errors that a user can act
    on (a missing object, bucket or permission all look alike to it).
    """

    def __init__(self, root: str, *, timeout_seconds: float, retries: int) -> None:
        """Describe the directory; nothing is fetched yet.

        Args:
            root: URL of the directory.
            timeout_seconds: deadline of one attempt to fetch one file.
            retries: attempts after the first that fails for no lasting reason.

        Raises:
            DataError: the URL's scheme is not one that mosaicml-streaming reads.
        """
        self.root = root.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._attempts = retries + 1
        try:
            CloudDownloader.get(self.root)
        except ValueError as error:
            raise DataError(
                f"{root} is not a place that data can be read from; give a directory or an s3:// "
                "URL."
            ) from error

    def fetch(self, name: str, destination: Path) -> None:
        """Download one file of the directory.

        Args:
            name: path of the file below the root.
            destination: where to put it; must not exist. Whole or absent afterwards.

        Raises:
            MissingObjectError: there is no such file.
            DataError: it could not be fetched before the deadline.
        """
        url = f"{self.root}/{name}"
        destination.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(self._attempts):
            # A new name each time: an attempt that outlived its deadline may still be writing.
            partial = destination.with_name(f"{destination.name}.{os.getpid()}-{attempt}.part")
            partial.unlink(missing_ok=True)
            try:
                within_deadline(
                    lambda partial=partial: self._download(url, partial), self._timeout_seconds
                )
                os.replace(partial, destination)
                return
            except TimeoutError as error:
                reason: BaseException = error
                text = f"no answer within {self._timeout_seconds:g} s"
            except Exception as error:
                lasting = self._diagnose(url, error)
                if lasting is not None:
                    raise lasting from error
                reason, text = error, f"{type(error).__name__}: {error}"
            finally:
                partial.unlink(missing_ok=True)
            if attempt + 1 == self._attempts:
                raise DataError(
                    f"Could not read {url} ({self._attempts} attempts; {text}). Check that "
                    f"{self._endpoint()} can be reached, or raise the data timeout."
                ) from reason
            time.sleep(min(2.0**attempt, self._timeout_seconds) / 4)

    def _download(self, url: str, destination: Path) -> None:
        downloader = CloudDownloader.get(self.root)
        downloader.download(url, str(destination), self._timeout_seconds)
        downloader.clean_up()

    def _endpoint(self) -> str:
        return os.environ.get("S3_ENDPOINT_URL") or urllib.parse.urlsplit(self.root).netloc

    def _diagnose(self, url: str, error: Exception) -> DataError | None:
        """The error to raise at once, or None if trying again may help."""
        bucket = urllib.parse.urlsplit(self.root).netloc
        code = error_code(error)
        if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
            return DataError(
                f"No credentials to read {url}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE."
            )
        if code not in _DENIED | _MISSING | set(_BAD_CREDENTIALS) | {"NoSuchBucket"}:
            return None
        # A download begins by asking for the object's head, whose answer has no body and so no
        # reason: ask again in a way that brings one.
        code = self._bucket_answer(bucket) or code
        if code in _BAD_CREDENTIALS:
            return DataError(
                f"{self._endpoint()} refuses the credentials for {url}: {_BAD_CREDENTIALS[code]}. "
                "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and S3_ENDPOINT_URL."
            )
        if code == "NoSuchBucket":
            return DataError(
                f"There is no bucket {bucket} at {self._endpoint()}; check the URL {self.root} and "
                "S3_ENDPOINT_URL."
            )
        if code in _DENIED:
            return DataError(
                f"{self._endpoint()} knows the credentials but does not let them read {url}; grant "
                "them GetObject and ListBucket there, or check the name."
            )
        return MissingObjectError(f"{url} does not exist.")

    def _bucket_answer(self, bucket: str) -> str | None:
        """The error code for listing the bucket; None if the listing works or tells nothing."""
        parts = urllib.parse.urlsplit(self.root)
        if parts.scheme != "s3":
            return None

        def ask() -> None:
            from boto3.session import Session
            from botocore.config import Config

            client: Any = Session().client(
                "s3",
                endpoint_url=os.environ.get("S3_ENDPOINT_URL"),
                config=Config(
                    connect_timeout=10, read_timeout=10, retries={"total_max_attempts": 1}
                ),
            )
            client.list_objects_v2(Bucket=bucket, Prefix=parts.path.lstrip("/"), MaxKeys=1)

        try:
            within_deadline(ask, min(self._timeout_seconds, 20.0))
        except Exception as error:
            return error_code(error)
        return None


def error_code(error: BaseException) -> str | None:
    """The storage's own code in an error of boto3, such as `NoSuchBucket`; None without one."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    code = response.get("Error", {}).get("Code")
    return None if code is None else str(code)


def within_deadline(action: Callable[[], Result], timeout_seconds: float) -> Result:
    """Run an action that may block for ever, in a thread that can be left behind.

    Raises:
        TimeoutError: it did not end in time; its thread goes on, and dies with the process.
        Exception: whatever the action raised, in the calling thread.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="object-store", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"no answer within {timeout_seconds:g} s")
    return results[0]
