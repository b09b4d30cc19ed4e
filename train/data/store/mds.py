"""Decodes documents of MDS shards, as mosaicml-streaming encodes them.

Importing it costs every rank two seconds, and its decoder takes more than twice as long for a
document.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

_DOCUMENT: Final = ("id", "tokens", "segments", "payload")
"""Columns of a document; others are passed over."""
_SHAPE_DTYPES: Final = tuple(np.dtype(name) for name in ("u1", "u2", "u4", "u8"))
_COUNT_BYTES: Final = 4

Decode = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class DocumentDecoder:
    """Takes the bytes of a document apart into its columns.

    Attributes:
        columns: of each column its name, its size in bytes where all documents have the same, else
            0, and what decodes it.
    """

    columns: tuple[tuple[str, int, Decode | None], ...]

    @classmethod
    def of(
        cls, names: Sequence[str], encodings: Sequence[str], sizes: Sequence[int | None]
    ) -> Self:
        """The decoder for a shard with these columns.

        Raises:
            ValueError: a column has no name, no encoding or no size, or a negative one; or one of
                a document's is encoded otherwise than we do.
        """
        columns = [
            (name, size or 0, _decoder_of(encoding) if name in _DOCUMENT else None)
            for name, encoding, size in zip(names, encodings, sizes, strict=True)
        ]
        if any(size < 0 for _, size, _ in columns):
            raise ValueError("a column has a negative size")
        return cls(tuple(columns))

    def __call__(self, data: bytes) -> dict[str, Any]:
        """The columns of a document.

        Raises:
            ValueError: the bytes are no document.
            IndexError: likewise.
        """
        begin = _COUNT_BYTES * sum(not size for _, size, _ in self.columns)
        count = 0
        document: dict[str, Any] = {}
        for name, size, decode in self.columns:
            if not size:
                size = int.from_bytes(data[count : count + _COUNT_BYTES], "little")
                count += _COUNT_BYTES
            if decode is not None:
                document[name] = decode(data[begin : begin + size])
            begin += size
        if begin != len(data):
            raise ValueError(f"its columns take {begin} bytes of {len(data)}")
        return document


def _decoder_of(encoding: str) -> Decode:
    if encoding == "str":
        return bytes.decode
    if encoding == "bytes":
        return bytes
    kind, _, name = encoding.partition(":")
    if kind != "ndarray" or not name:
        raise ValueError(f"a column is encoded as {encoding}, which is not known")
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise ValueError(f"arrays of {name} are not known")

    def decode(data: bytes) -> Any:
        # The number of axes and the size of what tells their lengths, the lengths, the values.
        num_axes, shape_code = divmod(data[0], 4)
        end = 1 + num_axes * (1 << shape_code)
        values = np.frombuffer(data[end:], dtype)
        if num_axes == 1:
            # By far the most frequent; an array for one number costs more than all the rest.
            if len(values) != int.from_bytes(data[1:end], "little"):
                raise ValueError("an array is not as long as it says")
            return values
        return values.reshape(np.frombuffer(data[1:end], _SHAPE_DTYPES[shape_code]))

    return decode
