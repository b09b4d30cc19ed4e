"""Decodes documents of MDS shards, as mosaicml-streaming encodes them.

Importing it costs every rank two seconds, and its decoder takes more than twice as long for a
document.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

_DOCUMENT: Final = ("id", "tokens", "segments", "payload", "sizes")
"""Columns of a document; others are passed over."""
_WHOLE_NUMBERS: Final = ("tokens", "segments")
_SHAPE_DTYPES: Final = tuple(np.dtype(name) for name in ("u1", "u2", "u4", "u8"))

Decode = Callable[[bytes], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """The columns of a shard, as an index tells them.

    Attributes:
        described: names, encodings and sizes, as the shard itself has them, where its hash vouches
            for them.
        decode: takes the bytes of a document apart.
    """

    described: dict[str, Any]
    decode: Decode

    def are_those_of(self, header: bytes) -> bool:
        """Whether a shard with this header has these very columns."""
        try:
            found = json.loads(header)
            return {name: found[name] for name in self.described} == self.described
        except (ValueError, KeyError, TypeError, RecursionError):
            return False


@lru_cache(maxsize=64)
def columns_of(
    names: tuple[str, ...], encodings: tuple[str, ...], sizes: tuple[int | None, ...]
) -> Columns:
    """The columns of a shard of documents.

    Raises:
        ValueError: as `document_decoder`; or tokens are encoded as something else than numbers.
    """
    decode = document_decoder(names, encodings, sizes)
    for name, encoding in zip(names, encodings, strict=True):
        if name in _WHOLE_NUMBERS and not _is_whole(encoding, signed=name != "tokens"):
            raise ValueError(f"{name} are encoded as {encoding}, which no corpus of ours has")
    lists = (list(names), list(encodings), list(sizes))
    keys = ("column_names", "column_encodings", "column_sizes")
    return Columns(described=dict(zip(keys, lists, strict=True)), decode=decode)


def _is_whole(encoding: str, *, signed: bool) -> bool:
    kind, _, name = encoding.partition(":")
    return kind == "ndarray" and name in {"uint8", "uint16", "uint32"} | (
        {"int8", "int16", "int32", "int64"} if signed else set[str]()
    )


def document_decoder(
    names: Sequence[str], encodings: Sequence[str], sizes: Sequence[int | None]
) -> Decode:
    """What takes the bytes of a document in a shard with these columns apart into its columns.

    It raises ValueError or IndexError where the bytes are no document.

    Args:
        names: of the columns.
        encodings: of the columns.
        sizes: in bytes, of columns that have the same in all documents.

    Raises:
        ValueError: there is no column `tokens`; one has no name, no encoding or no size, or a
            negative one, or is pickled; or one of a document's is encoded otherwise than we do.
    """
    for name, encoding in zip(names, encodings, strict=True):
        if encoding.partition(":")[0] == "pkl":
            raise ValueError(f"column {name} is pickled, and reading it could run any code")
    if "tokens" not in names:
        raise ValueError(f"it has the columns {', '.join(names)} but no `tokens`")
    columns = [
        (name, size or 0, _decoder_of(encoding) if name in _DOCUMENT else None)
        for name, encoding, size in zip(names, encodings, sizes, strict=True)
    ]
    if any(size < 0 for _, size, _ in columns):
        raise ValueError("a column has a negative size")
    num_sizes = sum(not size for _, size, _ in columns)

    def decode_document(data: bytes) -> dict[str, Any]:
        found = iter(np.frombuffer(data, np.uint32, num_sizes).tolist())
        begin = 4 * num_sizes
        document: dict[str, Any] = {}
        for name, size, decode in columns:
            end = begin + (size or next(found))
            if decode is not None:
                document[name] = decode(data[begin:end])
            begin = end
        if begin != len(data):
            raise ValueError(f"its columns take {begin} bytes of {len(data)}")
        return document

    return decode_document


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
        lengths = np.frombuffer(data[1:end], _SHAPE_DTYPES[shape_code]).tolist()
        return values.reshape(lengths)

    return decode
