"""Damage is named, file and parameter, on every rank; and nothing is ever unpickled."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.zero.state import TensorKind, local_slices
from tests.distributed.checkpoint.runs import train_and_save
from tests.distributed.toy import Toy, engine_of
from tools.checkpoint import faults
from tools.ranks import RankPool
from train.checkpoint.format import Index, record_of
from train.checkpoint.restore import load_module, restore
from train.errors import CheckpointError

CHUNKS = "chunks-00001.safetensors"


def _refused(stage: int, path: Path) -> tuple[str, bool]:
    engine = engine_of(Toy(frozen=True), stage=stage)
    before = [part.tensor.clone() for part in local_slices(engine)]
    with pytest.raises(CheckpointError) as caught:
        restore(path, engine)
    after = [part.tensor for part in local_slices(engine)]
    engine.close()
    return str(caught.value), all(map(torch.equal, before, after))


def _refusal(pool: RankPool, path: Path, *, stage: int = 1, untouched: bool = True) -> str:
    answers = pool.run(_refused, stage, path)
    assert len({message for message, _ in answers}) == 1, "every rank must say the same"
    assert not untouched or all(whole for _, whole in answers)
    assert str(path) in answers[0][0]
    return answers[0][0]


@pytest.fixture(scope="module")
def whole(rank_pools: dict[int, RankPool], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    rank_pools[2].run(train_and_save, 1, "fp32", directory, 2, 2)
    return directory / "step_00000002"


@pytest.fixture
def saved(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / whole.name)


def _flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _position(file: Path, key: str) -> int:
    """Where in a file the last byte of a piece lies."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return 8 + length + json.loads(data[8 : 8 + length])[key]["data_offsets"][1] - 1


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("kind", ["value", "exp_avg_sq"])
def test_a_flipped_byte_is_named_with_its_parameter(
    rank_pools: dict[int, RankPool], saved: Path, stage: int, kind: TensorKind
) -> None:
    (chunk,) = Index.read(saved).parameters["norm.weight"].tensors[kind][-1:]
    _flip(saved / chunk.file, _position(saved / chunk.file, chunk.key))
    message = _refusal(rank_pools[2], saved, stage=stage, untouched=False)
    fault = f"{chunk.file} is damaged: the checksum of its slice {chunk.key} of norm.weight differs"
    assert fault in message
    assert [fault in found for found in faults(saved)] == [True]
    if kind == "value":
        with pytest.raises(CheckpointError, match=r"of norm\.weight differs"):
            load_module(saved, Toy())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: _truncate(file), "chunks-00001.safetensors is damaged: it has"),
        (
            lambda file: file.unlink(),
            "chunks-00001.safetensors, which holds {name}, cannot be read (No such file",
        ),
        (lambda file: _flip(file, 7), "its header is no safetensors header"),
        (lambda file: _flip(file, 8), "its header is no safetensors header"),
        (lambda file: file.write_bytes(b""), "is damaged: it has 0 bytes and should have"),
    ],
)
def test_a_file_that_is_not_whole_is_named_before_anything_is_touched(
    rank_pools: dict[int, RankPool],
    saved: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(saved / CHUNKS)
    names = {name for name, _ in Index.read(saved).chunks_by_file()[CHUNKS]}
    told = _refusal(rank_pools[2], saved)
    assert any(message.format(name=name) in told and name in told for name in names), told
    assert any(CHUNKS in fault for fault in faults(saved))


def _rewrite_header(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    assert old in header
    changed = header.replace(old, new, 1)
    file.write_bytes(data[:8] + changed.strip().ljust(length) + data[8 + length :])


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b'"F32"', b'"I32"', "is not as the index says"),
        (b'"data_offsets":[0,', b'"data_offsets":[0.0,', "its header is no safetensors header"),
        (b'{"__metadata__":{"format":"pt"}', b'{"a":' + 9 * b"[", "its header is no safetensors"),
    ],
)
def test_a_header_that_says_otherwise_is_named_before_anything_is_touched(
    rank_pools: dict[int, RankPool], saved: Path, old: bytes, new: bytes, fault: str
) -> None:
    data = (saved / CHUNKS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    # There is room for it: only the header changes, and what it says.
    padded = (length + 64).to_bytes(8, "little") + data[8 : 8 + length].ljust(length + 64)
    (saved / CHUNKS).write_bytes(padded + data[8 + length :])
    index = json.loads((saved / "index.json").read_text())
    index["files"][CHUNKS]["bytes"] += 64
    (saved / "index.json").write_text(json.dumps(index))
    assert not list(faults(saved))
    _rewrite_header(saved / CHUNKS, old, new)
    told = _refusal(rank_pools[2], saved)
    assert f"{CHUNKS} is damaged" in told
    assert fault in told
    assert any(fault in found for found in faults(saved))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"step": 10**30}, "step: Input should be less than 9007199254740992"),
        ({"step": 3}, "step: it is 3, in a directory named step_00000002"),
        ({"step": None}, "step: Input should be a valid integer"),
        ({"optimizer_steps": "word"}, "optimizer_steps: Input should be a valid integer"),
        ({"optimizer_steps": 0.5}, "optimizer_steps: Input should be a valid integer"),
        ({"config": []}, "config: Input should be an object"),
    ],
)
def test_a_state_is_not_believed_for_its_checksum(
    rank_pools: dict[int, RankPool], saved: Path, change: dict[str, Any], fault: str
) -> None:
    state = json.loads((saved / "state.json").read_text()) | change
    content = json.dumps(state).encode()
    (saved / "state.json").write_bytes(content)
    index = json.loads((saved / "index.json").read_text())
    index["files"]["state.json"] = record_of(content).model_dump()
    (saved / "index.json").write_text(json.dumps(index))
    assert f"state.json is damaged: {fault}; use another checkpoint" in _refusal(
        rank_pools[2], saved
    )


def test_a_tensor_in_more_boxes_than_any_layout_has_is_refused_at_once(saved: Path) -> None:
    index = json.loads((saved / "index.json").read_text())
    parameter = index["parameters"]["embedding.weight"]
    chunk = parameter["tensors"]["value"][0]
    parameter["tensors"]["value"] = [
        chunk | {"box": [[n, n + 1], [0, 1]], "flat_range": [0, 1]} for n in range(30_000)
    ]
    (saved / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lies in more than 1,024 boxes"):
        Index.read(saved)


def test_state_and_index_are_checked(rank_pools: dict[int, RankPool], saved: Path) -> None:
    pool = rank_pools[2]
    state = (saved / "state.json").read_bytes()
    _flip(saved / "state.json", len(state) // 2)
    assert "state.json is damaged: its checksum differs" in _refusal(pool, saved)
    _truncate(saved / "state.json")
    assert "state.json is damaged: it has" in _refusal(pool, saved)
    (saved / "state.json").unlink()
    assert "state.json cannot be read (No such file" in _refusal(pool, saved)
    (saved / "state.json").write_bytes(state)
    index = json.loads((saved / "index.json").read_text())
    whole = json.dumps(index)
    chunks = index["parameters"]["embedding.weight"]["tensors"]["exp_avg"]
    chunks[0]["flat_range"][1] -= 1
    (saved / "index.json").write_text(json.dumps(index))
    assert "of embedding.weight (exp_avg), elements " in _refusal(pool, saved)
    assert "are not there exactly once" in _refusal(pool, saved)
    (saved / "index.json").write_text(whole.replace('"format_version": 1', '"format_version": 7'))
    assert "has format version 7 and this program reads 1" in _refusal(pool, saved)
    (saved / "index.json").write_text(whole.replace("chunks-00000", "../chunks-00000"))
    assert "index.json is damaged" in _refusal(pool, saved)
    (saved / "index.json").write_text(whole.replace('"xxh3_128"', '"ignored"', 1))
    assert "index.json is damaged" in _refusal(pool, saved)
    (saved / "index.json").write_text(whole[:-9])
    assert "index.json is damaged" in _refusal(pool, saved)


class _Trap:
    """Unpickling this leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


def test_nothing_is_unpickled(rank_pools: dict[int, RankPool], saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trap = pickle.dumps(_Trap(trace))
    # Among the files, under names that others unpickle.
    for name in ("model.pt", "chunks-00002.safetensors", "data.pkl", ".metadata"):
        (saved / name).write_bytes(trap)
    load_module(saved, Toy())
    assert not list(faults(saved))
    # Instead of the files, with sizes and checksums to match.
    for name in ("chunks-00000.safetensors", "state.json", "index.json"):
        content = (saved / name).read_bytes()
        index = json.loads((saved / "index.json").read_text())
        record = record_of(trap).model_dump()
        index["files"][name] = record
        (saved / "index.json").write_text(json.dumps(index))
        (saved / name).write_bytes(trap)
        assert f"{name} is damaged" in _refusal(rank_pools[2], saved)
        assert any(f"{name} is damaged" in fault for fault in faults(saved))
        (saved / name).write_bytes(content)
        index["files"][name] = record_of(content).model_dump()
        (saved / "index.json").write_text(json.dumps(index))
    assert not trace.exists()
    pickle.loads(trap)
    assert trace.exists(), "the trap works"
