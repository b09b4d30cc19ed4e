"""Files of slices: readable by the safetensors library, cut, hashed, read back in any boxes."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.region import Range, Region
from parallel.zero.state import StateSlice, TensorKind
from train.checkpoint import chunks as checkpoint_chunks
from train.checkpoint import reader as checkpoint_reader
from train.checkpoint.chunks import cut, write_chunks
from train.checkpoint.format import (
    INDEX_NAME,
    STATE_NAME,
    Index,
    json_bytes,
    record_of,
    seal,
)
from train.checkpoint.reader import ChunkReader
from train.storage.place import Place

KINDS: tuple[TensorKind, ...] = ("value", "exp_avg", "exp_avg_sq")
SHAPES = {"matrix": (24, 18), "row": (30, 10), "bias": (18,), "scale": (), "conv": (8, 4, 3)}


def _whole() -> dict[tuple[str, TensorKind], Tensor]:
    torch.manual_seed(3)
    return {(name, kind): torch.randn(shape) for name, shape in SHAPES.items() for kind in KINDS}


def _boxes(name: str, tensor_size: int) -> list[Sequence[Range]]:
    """As tensor parallelism cuts: by rows, or by columns for `row`; vectors by elements."""
    shape = SHAPES[name]
    if not shape:
        return [()]
    dim = 1 if name == "row" else 0
    ends = [shape[dim] * part // tensor_size for part in range(tensor_size + 1)]
    return [
        [cut if here == dim else (0, size) for here, size in enumerate(shape)]
        for cut in pairwise(ends)
    ]


def _slices(
    whole: dict[tuple[str, TensorKind], Tensor], *, tensor_size: int, data_size: int
) -> list[list[StateSlice]]:
    """What each rank of a layout would write."""
    ranks: list[list[StateSlice]] = [[] for _ in range(tensor_size * data_size)]
    for (name, kind), tensor in whole.items():
        for tensor_rank, box in enumerate(_boxes(name, tensor_size)):
            flat = tensor[tuple(slice(*bounds) for bounds in box)].flatten()
            ends = [flat.numel() * part // data_size for part in range(data_size + 1)]
            for data_rank, (start, stop) in enumerate(pairwise(ends)):
                if start < stop:
                    ranks[data_rank * tensor_size + tensor_rank].append(
                        StateSlice(
                            name=name,
                            kind=kind,
                            region=Region(
                                shape=SHAPES[name], box=tuple(box), start=start, stop=stop
                            ),
                            tensor=flat[start:stop],
                        )
                    )
    return ranks


def _write(path: Path, ranks: list[list[StateSlice]]) -> Index:
    path.mkdir()
    parts = [
        write_chunks(path / f"chunks-{rank:05d}.safetensors", cut(slices))
        for rank, slices in enumerate(ranks)
    ]
    seal(Place.of(path), parts, json_bytes({"step": 1}))
    return Index.read(path)


LAYOUTS = [(1, 1), (2, 1), (1, 3), (3, 2)]
"""Sizes of the tensor group and of the data group."""


@pytest.mark.parametrize("slice_bytes", [64, 1 << 26])
def test_any_boxes_are_read_from_any_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_bytes: int
) -> None:
    monkeypatch.setattr(checkpoint_chunks, "SLICE_BYTES", slice_bytes)
    whole = _whole()
    for tensor_size, data_size in LAYOUTS:
        path = tmp_path / f"{tensor_size}-{data_size}"
        index = _write(path, _slices(whole, tensor_size=tensor_size, data_size=data_size))
        assert all(
            4 * (chunk.flat_range[1] - chunk.flat_range[0]) <= slice_bytes
            for chunks in index.chunks_by_file().values()
            for _, chunk in chunks
        )
        for other in LAYOUTS:
            with ChunkReader(path, index) as reader:
                assert not list(reader.faults())
                for slices in _slices(whole, tensor_size=other[0], data_size=other[1]):
                    for part in slices:
                        reader.check(part)
                        for dtype in (torch.float32, torch.bfloat16):
                            target = torch.zeros_like(part.tensor, dtype=dtype)
                            reader.fill(replace(part, tensor=target))
                            assert torch.equal(target, part.tensor.to(dtype)), (part, other)


def test_every_byte_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _whole()
    index = _write(tmp_path / "step", _slices(whole, tensor_size=2, data_size=2))
    num_bytes: list[int] = []
    source = Place.of(tmp_path / "step" / STATE_NAME).open()
    read_into = type(source).read_into

    def counting(self: object, target: memoryview, *, offset: int) -> None:
        num_bytes.append(len(target))
        read_into(self, target, offset=offset)  # pyright: ignore[reportArgumentType]  # its own

    monkeypatch.setattr(type(source), "read_into", counting)
    with ChunkReader(tmp_path / "step", index) as reader:
        for (name, kind), tensor in whole.items():
            target = torch.empty(tensor.numel())
            region = Region.whole(tuple(tensor.shape))
            reader.fill(StateSlice(name=name, kind=kind, region=region, tensor=target))
            assert torch.equal(target, tensor.flatten())
    assert sum(num_bytes) == sum(
        record.bytes for name, record in index.files.items() if name != STATE_NAME
    )


@pytest.mark.parametrize("byte", [5, 7])
def test_a_damaged_length_of_a_header_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte: int
) -> None:
    index = _write(tmp_path / "step", _slices(_whole(), tensor_size=1, data_size=1))
    file = tmp_path / "step/chunks-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[byte] = 0x7F
    file.write_bytes(content)
    read, lengths = checkpoint_reader._read_bytes, []
    monkeypatch.setattr(
        checkpoint_reader, "_read_bytes", lambda *call: lengths.append(call[-1]) or read(*call)
    )
    with ChunkReader(tmp_path / "step", index) as reader:
        assert "its header is no safetensors header" in next(reader.faults())
    assert lengths == [8]


def test_the_safetensors_library_reads_our_files(tmp_path: Path) -> None:
    chance = random.Random(5)
    dtypes = [torch.bfloat16, torch.float32, torch.uint8, torch.float64, torch.int64]
    slices = [
        StateSlice(
            name=f"part.{number}",
            kind="value",
            region=Region.whole((number,)),
            tensor=(torch.randn(number) * 100).to(chance.choice(dtypes)),
        )
        for number in range(1, 40)
    ]
    file = tmp_path / "chunks-00000.safetensors"
    index = write_chunks(file, cut(slices))
    assert file.stat().st_size == index.files[file.name].bytes
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert len(opened.keys()) == len(slices)
        for part in slices:
            (chunk,) = index.parameters[part.name].tensors["value"]
            assert torch.equal(opened.get_tensor(chunk.key), part.tensor)


def test_checkpoints_without_checksums_of_slices_stay_readable(tmp_path: Path) -> None:
    """As the first writer left them: whole boxes, one checksum a file."""
    whole = _whole()
    path = tmp_path / "step"
    path.mkdir()
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, object] = {}
    for name, shape in SHAPES.items():
        kinds: dict[str, object] = {}
        for kind in KINDS:
            flat = whole[name, kind].flatten()
            half = flat.numel() // 2
            bounds = [part for part in ((0, half), (half, flat.numel())) if part[0] < part[1]]
            tensors |= {f"{name}/{kind}/{a}": flat[a:b].clone() for a, b in bounds}
            kinds[kind] = [
                {
                    "file": "chunks-00000.safetensors",
                    "key": f"{name}/{kind}/{a}",
                    "box": [[0, size] for size in shape],
                    "flat_range": [a, b],
                }
                for a, b in bounds
            ]
        parameters[name] = {
            "shape": list(shape), "dtype": "float32", "trainable": True, "tensors": kinds
        }  # fmt: skip
    file = path / "chunks-00000.safetensors"
    save_file(tensors, file)
    files = {file.name: record_of(file.read_bytes()).model_dump()}
    document = {"format_version": 1, "parameters": parameters, "files": files}
    (path / INDEX_NAME).write_text(json.dumps(document))
    with ChunkReader(path, Index.read(path)) as reader:
        assert not list(reader.faults())
        for slices in _slices(whole, tensor_size=3, data_size=2):
            for part in slices:
                target = torch.zeros_like(part.tensor)
                reader.fill(replace(part, tensor=target))
                assert torch.equal(target, part.tensor)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with ChunkReader(path, Index.read(path)) as reader:
        (fault,) = reader.faults()
    assert f"{file} is damaged: its checksum differs from the index" in fault
