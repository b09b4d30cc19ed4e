"""What we decode, hash and parse equals what mosaicml-streaming does."""

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from train.data.store.listing import read_listing
from train.data.store.mds import SampleDecoder, decoder_of
from train.storage.stored_file import is_known_hash, new_hasher

from streaming.base.format.mds.encodings import (  # isort: skip
    get_mds_encoded_size,
    mds_decode,
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
    kind = draw(st.sampled_from(["ndarray", "scalar", "str", "bytes", "int", "str_int", "json"]))
    if kind == "ndarray":
        shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=300)
        array = draw(hnp.arrays(np.dtype(draw(st.sampled_from(DTYPES))), shapes, fill=st.just(3)))
        shape = ",".join(map(str, array.shape))
        detail = draw(st.sampled_from(["", f":{array.dtype.name}", f":{array.dtype.name}:{shape}"]))
        return f"ndarray{detail}", array
    if kind == "scalar":
        name = draw(st.sampled_from(DTYPES))
        return name, draw(hnp.from_dtype(np.dtype(name)))
    values: dict[str, st.SearchStrategy[Any]] = {
        "str": st.text(max_size=20),
        "bytes": st.binary(max_size=20),
        "int": st.integers(-(2**63), 2**63 - 1),
        "str_int": st.integers(),
        "json": st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    }
    return kind, draw(values[kind])


def same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, np.ndarray | np.generic):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()
    else:
        assert ours == theirs


@given(st.lists(columns(), min_size=1, max_size=5))
def test_samples_decode_as_by_streaming(parts: list[tuple[str, Any]]) -> None:
    names = [f"column{number}" for number in range(len(parts))]
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
    ours = SampleDecoder.of(names, encodings, sizes)(data)
    assert list(ours) == list(theirs)
    for name in names:
        same(ours[name], theirs[name])


def test_rare_encodings_are_left_to_streaming() -> None:
    from decimal import Decimal

    data = mds_encode("str_decimal", Decimal("1.50"))
    assert decoder_of("str_decimal")(data) == mds_decode("str_decimal", data) == Decimal("1.50")


@pytest.mark.parametrize("encoding", ["pkl", "pkl:x"])
def test_pickle_is_refused(encoding: str) -> None:
    with pytest.raises(ValueError, match="could run any code"):
        decoder_of(encoding)


@given(st.binary(max_size=64))
def test_garbage_is_an_error_or_a_sample(data: bytes) -> None:
    decode = SampleDecoder.of(["id", "tokens"], ["str", "ndarray:uint16"], [None, None])
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        assert decode(data)["tokens"].dtype == np.uint16


@pytest.mark.parametrize("name", sorted(get_hashes()))
@given(st.binary(max_size=100))
def test_hashes_are_those_of_streaming(name: str, data: bytes) -> None:
    assert is_known_hash(name)
    hasher = new_hasher(name)
    hasher.update(data[:7])
    hasher.update(data[7:])
    assert hasher.hexdigest() == get_hash(name, data)


def test_unknown_hashes_are_not_known() -> None:
    for name in ("crc32", "shake_128", "new", "md5-sha1", "__name__"):
        assert not is_known_hash(name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=3), JSON), st.lists(JSON), st.sampled_from([None, 2]))
def test_listings_parse_as_json(
    rest: dict[str, Any], entries: list[Any], indent: int | None
) -> None:
    rest.pop("shards", None)
    items = [*rest.items()]
    items.insert(len(items) // 2, ("shards", entries))
    taken: list[Any] = []
    data = json.dumps(dict(items), indent=indent).encode()
    assert read_listing(data, key="shards", take=taken.append) == {**rest, "shards": []}
    assert taken == entries


@given(st.text(alphabet='{}[]:,"ashrd1 \n', max_size=30))
def test_what_is_no_json_is_no_listing(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    try:
        found: Any = read_listing(text.encode(), key="shards", take=lambda _: None)
    except ValueError:
        # Keys that come twice are refused here, and lists are not objects.
        assert not isinstance(expected, dict) or text.count('"') > 2
    else:
        assert isinstance(expected, dict)
        assert set(found) == set(expected)


@pytest.mark.parametrize("data", [b"[]", b"", b"\xff", b'{"shards": {}}', b'{"a": 1} x', b"{1: 2}"])
def test_what_is_no_listing_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_listing(data, key="shards", take=lambda _: None)
