"""Decodes samples of MDS shards, as mosaicml-streaming encodes them.

Importing it costs every rank two seconds, and its decoder takes more than twice as long for a
sample of tokens. The encodings that a corpus of text has are decoded here; the others are left to
it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

_SHAPE_DTYPES: Final = tuple(np.dtype(name) for name in ("u1", "u2", "u4", "u8"))
_VALUE_DTYPES: Final = {
    code: np.dtype(name)
    for code, name in {
        8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32",
        33: "int32", 34: "float32", 64: "uint64", 65: "int64", 66: "float64",
    }.items()
}  # fmt: skip
_SCALARS: Final = {dtype.name: dtype for dtype in _VALUE_DTYPES.values()}
_COUNT_BYTES: Final = 4

Decode = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class SampleDecoder:
    """Takes the bytes of a sample apart into its columns.

    Attributes:
        columns: of each column its name, its size in bytes where all samples have the same, else 0,
            and what decodes it.
    """

    columns: tuple[tuple[str, int, Decode], ...]

    @classmethod
    def of(
        cls, names: Sequence[str], encodings: Sequence[str], sizes: Sequence[int | None]
    ) -> Self:
        """The decoder for a shard with these columns.

        Raises:
            ValueError: a column has no name, no encoding or no size, or a negative one.
        """
        columns = [
            (name, size or 0, decoder_of(encoding))
            for name, encoding, size in zip(names, encodings, sizes, strict=True)
        ]
        if any(size < 0 for _, size, _ in columns):
            raise ValueError("a column has a negative size")
        return cls(tuple(columns))

    def __call__(self, data: bytes) -> dict[str, Any]:
        """The columns of a sample.

        Raises:
            ValueError: the bytes are no such sample.
            KeyError, IndexError, TypeError: likewise.
        """
        begin = _COUNT_BYTES * sum(not size for _, size, _ in self.columns)
        count = 0
        sample: dict[str, Any] = {}
        for name, size, decode in self.columns:
            if not size:
                size = int.from_bytes(data[count : count + _COUNT_BYTES], "little")
                count += _COUNT_BYTES
            sample[name] = decode(data[begin : begin + size])
            begin += size
        if begin != len(data):
            raise ValueError(f"its columns take {begin} bytes of {len(data)}")
        return sample


def decoder_of(encoding: str) -> Decode:
    """What decodes a column of this MDS encoding.

    Raises:
        ValueError: the encoding is pickle, which could run any code, or is malformed.
    """
    kind, _, details = encoding.partition(":")
    if kind == "pkl":
        raise ValueError("is pickled, and reading it could run any code")
    if kind == "ndarray":
        return _array_decoder(details)
    if encoding in _SCALARS:
        dtype = _SCALARS[encoding]
        return lambda data: np.frombuffer(data, dtype)[0]
    return _SIMPLE.get(encoding) or _by_streaming(encoding)


def _array_decoder(details: str) -> Decode:
    dtype_name, _, shape_text = details.partition(":")
    if dtype_name and dtype_name not in _SCALARS:
        raise ValueError(f"arrays of {dtype_name} are not known")
    fixed_dtype = _SCALARS[dtype_name] if dtype_name else None
    fixed_shape = tuple(int(length) for length in shape_text.split(",")) if shape_text else None

    def decode(data: bytes) -> Any:
        begin = 0
        dtype = fixed_dtype
        if dtype is None:
            dtype = _VALUE_DTYPES[data[0]]
            begin = 1
        if fixed_shape is not None:
            return np.frombuffer(data[begin:], dtype).reshape(fixed_shape)
        num_axes, shape_code = divmod(data[begin], 4)
        begin += 1
        end = begin + num_axes * (1 << shape_code)
        values = np.frombuffer(data[end:], dtype)
        if num_axes == 1:
            # By far the most frequent; an array for one number costs more than all the rest.
            if len(values) != int.from_bytes(data[begin:end], "little"):
                raise ValueError("an array is not as long as it says")
            return values
        return values.reshape(np.frombuffer(data[begin:end], _SHAPE_DTYPES[shape_code]))

    return decode


def _by_streaming(encoding: str) -> Decode:
    def decode(data: bytes) -> Any:
        from model import torchvision_free

        torchvision_free.install()
        from streaming.base.format.mds.encodings import mds_decode

        return mds_decode(encoding, data)

    return decode


_SIMPLE: Final[dict[str, Decode]] = {
    "bytes": lambda data: data,
    "str": lambda data: data.decode("utf-8"),
    "int": lambda data: int(np.frombuffer(data, np.int64)[0]),
    "str_int": lambda data: int(data.decode("utf-8")),
    "str_float": lambda data: float(data.decode("utf-8")),
    "json": lambda data: json.loads(data.decode("utf-8")),
}
