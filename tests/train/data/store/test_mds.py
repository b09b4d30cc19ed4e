"""What we decode, hash and parse equals what mosaicml-streaming does."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from train.data.store.mds import document_decoder
from train.storage.stored_file import HASHERS

from streaming.base.format.mds.encodings import (  # isort: skip
    get_mds_encoded_size,
    mds_encode,
)
from streaming.base.format.mds.reader import MDSReader  # isort: skip
from streaming.base.format.base.reader import FileInfo  # isort: skip
from streaming.base.hashing import get_hash, get_hashes  # isort: skip

DTYPES = [
    "uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64",
    "float64",
]  # fmt: skip


@st.composite
def columns(draw: st.DrawFn) -> tuple[str, Any]:
    """An encoding and a value that it can hold."""
    kind = draw(st.sampled_from(["ndarray", "str", "bytes"]))
    if kind == "ndarray":
        shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=300)
        array = draw(hnp.arrays(np.dtype(draw(st.sampled_from(DTYPES))), shapes, fill=st.just(3)))
        return f"ndarray:{array.dtype.name}", array
    return kind, draw(st.text(max_size=20) if kind == "str" else st.binary(max_size=20))


def same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, np.ndarray | np.generic):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()
    else:
        assert ours == theirs


@given(st.lists(columns(), min_size=1, max_size=4))
def test_samples_decode_as_by_streaming(parts: list[tuple[str, Any]]) -> None:
    names = ["tokens", "id", "segments", "payload"][: len(parts)]
    encodings = [encoding for encoding, _ in parts]
    sizes = [get_mds_encoded_size(encoding) for encoding in encodings]
    encoded = [mds_encode(encoding, value) for encoding, value in parts]
    counts = [len(data) for data, size in zip(encoded, sizes, strict=True) if size is None]
    data = np.array(counts, np.uint32).tobytes() + b"".join(encoded)
    theirs = MDSReader(
        dirname="", split=None, column_encodings=encodings, column_names=names, column_sizes=sizes,
        compression=None, hashes=[], raw_data=FileInfo("", 0, {}), samples=1, size_limit=None,
        zip_data=None,
    ).decode_sample(data)  # fmt: skip
    ours = document_decoder(names, encodings, sizes)(data)
    assert list(ours) == list(theirs)
    for name in names:
        same(ours[name], theirs[name])


def test_other_columns_are_passed_over() -> None:
    decode = document_decoder(["size", "id", "tokens"], ["int", "str", "bytes"], [8, None, None])
    assert decode(b"\x02\0\0\0" + bytes(12) + b"hi") == {"id": "hi", "tokens": b""}


@pytest.mark.parametrize("encoding", ["pkl", "json", "ndarray", "ndarray:object", "ndarray:int8:2"])
def test_other_encodings_of_documents_are_refused(encoding: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        document_decoder(["tokens"], [encoding], [None])


@given(st.binary(max_size=64))
def test_garbage_is_an_error_or_a_sample(data: bytes) -> None:
    decode = document_decoder(["id", "tokens"], ["str", "ndarray:uint16"], [None, None])
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        assert decode(data)["tokens"].dtype == np.uint16


@pytest.mark.parametrize("name", sorted(get_hashes()))
@given(st.binary(max_size=100))
def test_hashes_are_those_of_streaming(name: str, data: bytes) -> None:
    hasher = HASHERS[name]()
    hasher.update(data[:7])
    hasher.update(data[7:])
    assert hasher.hexdigest() == get_hash(name, data)


def test_unknown_hashes_are_not_known() -> None:
    for name in ("crc32", "shake_128", "new", "md5-sha1", "__name__"):
        assert name not in HASHERS
