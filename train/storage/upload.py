"""Files on their way into a store: at once, or in parts."""

import contextlib
import hashlib
import io
import re
from base64 import b64encode
from typing import Any, Final

from train.errors import StorageError
from train.storage.bucket import StorePlace
from train.storage.diagnosis import TRANSFER_ERRORS, error_code
from train.storage.patience import Patience, Tell

PART_BYTES: Final = 1 << 26
"""What is sent at a time."""
_MD5: Final = re.compile("[0-9a-f]{32}")


def send(place: StorePlace, method: str, data: bytes, **options: Any) -> Any:
    """Upload one body; the deadline is for the progress of its bytes.

    Its digest goes with it: of a connection that ends behind the head some stores (SeaweedFS
    4.48) else make an empty file, which may come after the one of the next attempt.

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
    digest = b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()

    def attempt(patience: Patience) -> Any:
        def speak(tell: Tell) -> None:
            request = getattr(place.client(), method)
            body = _Watched(data, tell)
            where = {"Bucket": place.bucket, "Key": place.path}
            tell(request(**where, Body=body, ContentMD5=digest, **options))

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
            self._id = self._place.ask("write", _begin)
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
            if not self._is_sent(client.head_object(**key)):
                raise

    def _is_sent(self, head: dict[str, Any]) -> bool:
        """Whether a file is what was sent, as far as its store tells."""
        if int(head["ContentLength"]) != self._num_bytes:
            return False
        parts = [part["ETag"].strip('"') for part in self._parts]
        whole = head["ETag"].strip('"')
        # Where a key of KMS or of the customer encrypts, and in stores whose ETags are not MD5,
        # parts do not tell that of the file.
        is_told = head.keys().isdisjoint(("SSEKMSKeyId", "SSECustomerAlgorithm"))
        if not is_told or not all(map(_MD5.fullmatch, [*parts, whole.partition("-")[0]])):
            return True
        joined = hashlib.md5(bytes.fromhex("".join(parts)), usedforsecurity=False).hexdigest()
        return whole == f"{joined}-{len(parts)}"


def _begin(client: Any, key: dict[str, str]) -> str:
    """Begin an upload; its id."""
    begun = client.create_multipart_upload(**key)
    if "UploadId" not in begun:  # cut after its head, an answer looks whole
        raise ConnectionError("the store's answer names no upload")
    return begun["UploadId"]


class _Watched(io.BytesIO):
    """A body to send, which tells when some of it is taken."""

    def __init__(self, data: bytes, tell: Tell) -> None:
        super().__init__(data)
        self._told = tell

    def read(self, size: int | None = -1, /) -> bytes:
        self._told(None)
        return super().read(size)
