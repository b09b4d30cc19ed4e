"""Files on their way into a store: at once, or in parts."""

import contextlib
import hashlib
import io
from typing import Any, Final

from train.errors import StorageError
from train.storage.bucket import StorePlace
from train.storage.diagnosis import TRANSFER_ERRORS, error_code
from train.storage.patience import Patience, Tell

PART_BYTES: Final = 1 << 26
"""What is sent at a time."""


def send(place: StorePlace, method: str, data: bytes, **options: Any) -> Any:
    """Upload one body; the deadline is for the progress of its bytes.

    Args:
        place: where to.
        method: of the client, that takes it.
        data: all of it.
        options: further arguments.

    Returns:
        What the store answers.

    Raises:
        StorageError: it could not be sent within the budget.
    """

    def attempt(patience: Patience) -> Any:
        def speak(tell: Tell) -> None:
            request = getattr(place.client(), method)
            body = _Watched(data, tell)
            tell(request(Bucket=place.bucket, Key=place.path, Body=body, **options))

        *_, answer = patience.listen(speak)
        return answer

    return place.patience("write").run(attempt)


class Upload:
    """A file that is sent in parts of one size, or at once if it is small.

    Parts of a process that was killed stay in the store, unseen, until the bucket's rule removes
    them (`AbortIncompleteMultipartUpload`).
    """

    def __init__(self, place: StorePlace) -> None:
        self._place = place
        self._held = bytearray()
        self._id: str | None = None
        self._parts: list[dict[str, Any]] = []
        self._num_bytes = 0

    def write(self, data: Any, /) -> None:
        """Append a buffer."""
        self._held += memoryview(data).cast("B")
        while len(self._held) >= PART_BYTES:
            self._send(bytes(memoryview(self._held)[:PART_BYTES]))
            del self._held[:PART_BYTES]

    def complete(self) -> None:
        """Make what was written a file."""
        if self._id is None:
            send(self._place, "put_object", bytes(self._held))
            return
        if self._held:
            self._send(bytes(self._held))
        self._place.ask("write", self._join)

    def abandon(self) -> None:
        """Remove what was sent; asked once, for the store may have failed before."""
        if self._id is not None:
            with contextlib.suppress(StorageError):
                self._place.in_haste.ask(
                    "write",
                    lambda client, key: client.abort_multipart_upload(**key, UploadId=self._id),
                )

    def _send(self, part: bytes) -> None:
        if self._id is None:
            begun = self._place.ask(
                "write", lambda client, key: client.create_multipart_upload(**key)
            )
            self._id = begun["UploadId"]
        number = len(self._parts) + 1
        answer = send(self._place, "upload_part", part, UploadId=self._id, PartNumber=number)
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self._num_bytes += len(part)

    def _join(self, client: Any, key: dict[str, str]) -> None:
        try:
            client.complete_multipart_upload(
                **key, UploadId=self._id, MultipartUpload={"Parts": self._parts}
            )
        except TRANSFER_ERRORS as error:
            # An attempt before may have been heard, though its answer was not.
            if error_code(error) != "NoSuchUpload":
                raise
            head = client.head_object(**key)
            # Where a key of KMS or of the customer encrypts, parts do not tell the ETag.
            is_told = head.keys().isdisjoint(("SSEKMSKeyId", "SSECustomerAlgorithm"))
            same_size = int(head["ContentLength"]) == self._num_bytes
            if not same_size or (is_told and head["ETag"] != self._etag):
                raise

    @property
    def _etag(self) -> str:
        """What a store says of the file when it has joined the parts."""
        digests = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in self._parts)
        return f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._parts)}"'


class _Watched(io.BytesIO):
    """A body to send, which tells when some of it is taken."""

    def __init__(self, data: bytes, tell: Tell) -> None:
        super().__init__(data)
        self._told = tell

    def read(self, size: int | None = -1, /) -> bytes:
        self._told(None)
        return super().read(size)
