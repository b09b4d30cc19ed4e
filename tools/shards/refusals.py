"""What it means that an S3 store refuses, and what the user can change."""

from typing import Final

import botocore.exceptions

from train.errors import DataError
from train.storage import s3_client
from train.storage.s3_faults import TRANSFER_ERRORS, error_code, lasting_fault

_ASK_SECONDS: Final = 10.0


def refusal(error: BaseException, path: str, *, is_written: bool = False) -> DataError | None:
    """The error to raise for what a store's client raised; None if that tells nothing lasting.

    Args:
        error: of fsspec, or what was made of it.
        path: what was asked for.
        is_written: whether the place is written to as well as read.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(
        cause, botocore.exceptions.BotoCoreError | botocore.exceptions.ClientError
    ):
        cause = cause.__cause__
    if cause is None or not path.startswith("s3://"):
        return None
    endpoint = s3_client.endpoint_of(None)
    called = s3_client.without_secrets(endpoint or "Amazon S3")

    def ask_bucket() -> str | None:
        try:
            s3_client.client(endpoint, timeout_seconds=_ASK_SECONDS).list_objects_v2(
                Bucket=path.split("/")[2], MaxKeys=1
            )
        except TRANSFER_ERRORS as answer:
            return error_code(answer)
        return None

    if is_written and isinstance(error, PermissionError) and ask_bucket() is None:
        return DataError(
            f"{called} knows the credentials but does not let them build in {path}; grant them "
            "GetObject, PutObject, DeleteObject and ListBucket there, or choose another place."
        )
    return lasting_fault(cause, url=path, endpoint=called, ask_bucket=ask_bucket)
