"""What one layout saved, any other continues; what is damaged or foreign is refused by name."""

import contextlib
import importlib
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel import zero_state
from parallel.zero import Precision
from tests.distributed.harness import RankPool
from tests.distributed.toy import Toy, engine_of, evaluate, train_step
from train import checkpoint
from train.checkpoint_format import ChunkReader, FileRecord, Index
from train.errors import CheckpointError

Layout = tuple[int, int]
"""ZeRO stage, number of ranks."""
LAYOUTS: tuple[Layout, ...] = ((0, 1), (1, 2), (2, 2), (3, 2), (3, 1))
Steps = list[tuple[float, float]]
CONFIG = {"model": {"width": 13, "depth": 1, "head": {"tied": True}}}


def _state(step: int) -> dict[str, Any]:
    return {"config": CONFIG, "samples": 8 * step, "rate": 0.1 * step, "run_id": "ab12"}


def _train_and_save(
    stage: int, precision: Precision, directory: Path, num_steps: int, save_at: int
) -> tuple[Steps, list[float]]:
    """Trains from the beginning without a stop; losses, norms, evaluations after each step."""
    engine = engine_of(Toy(frozen=True), stage=stage, precision=precision)
    curve: Steps = []
    evaluations: list[float] = []
    for step in range(num_steps):
        curve.append(train_step(engine, step))
        evaluations.append(evaluate(engine))
        if step + 1 == save_at:
            checkpoint.save(directory, engine, _state(save_at), step=save_at, keep=1)
    engine.close()
    return curve, evaluations


def _resume_twice(
    stage: int, precision: Precision, source: Path, directory: Path, num_steps: int
) -> tuple[Steps, list[float]]:
    """From a checkpoint: saves it again as it is, trains two steps, stops, resumes, trains on."""
    curve: Steps = []
    evaluations: list[float] = []
    path = source
    for resumption in range(2):
        engine = engine_of(Toy(frozen=True), stage=stage, precision=precision)
        state = checkpoint.restore(path, engine, expect_model=CONFIG["model"])
        begin = state["step"]
        assert state == {**_state(begin), "step": begin, "optimizer_steps": begin}
        evaluations.append(evaluate(engine))
        if resumption == 0:
            checkpoint.save(directory / "again", engine, _state(begin), step=begin, keep=1)
        end = begin + 2 if resumption == 0 else num_steps
        curve += [train_step(engine, step) for step in range(begin, end)]
        path = checkpoint.save(directory, engine, _state(end), step=end, keep=2)
        engine.close()
    return curve, evaluations


def _tensors(path: Path) -> dict[str, Tensor]:
    """Everything in a checkpoint, put together."""
    path = checkpoint.resolve(path)
    index = Index.read(path)
    reader = ChunkReader(path, index)
    tensors: dict[str, Tensor] = {}
    for name, record in index.parameters.items():
        for kind in record.tensors:
            tensor = torch.full((record.num_elements,), math.nan)
            reader.fill(tensor, name=name, kind=kind, start=0)
            tensors[f"{name}/{kind}"] = tensor
    return tensors


@pytest.mark.parametrize(
    ("precision", "layouts"),
    # In bf16 stages 0 and 1 are one and the same.
    [("fp32", LAYOUTS), ("bf16", ((1, 2), (2, 2), (3, 1)))],
)
def test_any_layout_continues_any_other(
    rank_pools: dict[int, RankPool],
    tmp_path: Path,
    precision: Precision,
    layouts: tuple[Layout, ...],
) -> None:
    for source_layout in layouts:
        stage, num_ranks = source_layout
        source = tmp_path / f"{stage}-{num_ranks}"
        arguments = (stage, precision, source, 6, 2)
        curve, evaluations = rank_pools[num_ranks].run(_train_and_save, *arguments)[0]
        saved = _tensors(source)
        assert saved["embedding.weight/exp_avg"].any()
        assert "mix.weight/value" in saved
        assert "mix.weight/exp_avg" not in saved, "a frozen parameter has no moments"
        assert "head.weight/value" not in saved, "a tied parameter is stored once"
        for layout in layouts:
            stage, num_ranks = layout
            target = tmp_path / f"{source.name}-to-{stage}-{num_ranks}"
            arguments = (stage, precision, source, target, 6)
            resumed, at_resumption = rank_pools[num_ranks].run(_resume_twice, *arguments)[0]
            again = _tensors(target / "again")
            assert again.keys() == saved.keys()
            for name, tensor in saved.items():
                assert torch.equal(tensor, again[name]), (source_layout, layout, name)
            # Evaluation runs the whole batch on every rank: the same weights, the same loss.
            assert at_resumption[0] == evaluations[1], (source_layout, layout)
            if layout == source_layout:
                assert resumed == curve[2:]
                assert at_resumption[1] == evaluations[3]
            elif precision == "fp32":
                assert resumed == [pytest.approx(one, rel=1e-6) for one in curve[2:]]
            else:
                assert resumed == [pytest.approx(one, rel=1e-2) for one in curve[2:]]
            shutil.rmtree(target)


def _adopt_weights(stage: int, precision: Precision, source: Path) -> tuple[float, int]:
    engine = engine_of(Toy(), stage=stage, precision=precision)
    checkpoint.restore_weights(source, engine)
    result = evaluate(engine), zero_state.optimizer_steps(engine)
    train_step(engine, 0)
    engine.close()
    return result


def test_weights_alone_go_into_engines_and_plain_modules(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    _, evaluations = rank_pools[2].run(_train_and_save, 3, "fp32", tmp_path, 2, 2)[0]
    for stage, num_ranks in LAYOUTS:
        # Whether a parameter trains does not matter to weights.
        loss, num_steps = rank_pools[num_ranks].run(_adopt_weights, stage, "fp32", tmp_path)[0]
        assert loss == evaluations[1]
        assert num_steps == 0
    model = Toy()
    state = checkpoint.load_module(tmp_path, model)
    assert state["samples"] == 16
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.flatten(), _tensors(tmp_path)[f"{name}/value"])


def _restore_error(stage: int, path: Path, options: dict[str, Any], width: int) -> list[Any]:
    engine = engine_of(Toy(width=width, **options), stage=stage)
    before = [part.value.clone() for part in zero_state.local_slices(engine)]
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(path, engine, expect_model=CONFIG["model"])
    after = [part.value for part in zero_state.local_slices(engine)]
    engine.close()
    untouched = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return [str(caught.value), untouched]


@pytest.fixture
def saved(rank_pools: dict[int, RankPool], tmp_path: Path) -> Path:
    rank_pools[2].run(_train_and_save, 1, "fp32", tmp_path, 2, 2)
    return tmp_path / "step_00000002"


def _refusal(pool: RankPool, path: Path, *, stage: int = 1, width: int = 13, **options: Any) -> str:
    answers = pool.run(_restore_error, stage, path, {"frozen": True, **options}, width)
    assert all(answer == answers[0] for answer in answers), "every rank must say the same"
    message, untouched = answers[0]
    assert untouched
    assert str(path) in message
    return message


@pytest.mark.parametrize("stage", [0, 3])
def test_damage_is_named_on_every_rank(
    rank_pools: dict[int, RankPool], saved: Path, stage: int
) -> None:
    pool = rank_pools[2]
    for name in ("chunks-00001.safetensors", "state.json"):
        file = saved / name
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        file.write_bytes(flipped)
        assert f"{name} is damaged: its checksum differs" in _refusal(pool, saved, stage=stage)
        file.write_bytes(whole[:-1])
        assert f"{name} is damaged: it has" in _refusal(pool, saved, stage=stage)
        file.unlink()
        assert f"{name} cannot be read (No such file" in _refusal(pool, saved, stage=stage)
        file.write_bytes(whole)
    index = json.loads((saved / "index.json").read_text())
    whole = json.dumps(index)
    chunks = index["parameters"]["embedding.weight"]["tensors"]["exp_avg"]
    chunks[0]["flat_range"][1] -= 1
    (saved / "index.json").write_text(json.dumps(index))
    assert "embedding.weight (exp_avg) are not there exactly once" in _refusal(pool, saved)
    (saved / "index.json").write_text(whole.replace('"format_version": 1', '"format_version": 7'))
    assert "has format version 7 and this program reads 1" in _refusal(pool, saved)
    (saved / "index.json").write_text(whole.replace("chunks-00000", "../chunks-00000"))
    assert "index.json is damaged" in _refusal(pool, saved)
    (saved / "index.json").write_text(whole[:-9])
    assert "index.json is damaged" in _refusal(pool, saved)


def test_another_model_is_refused_by_name(rank_pools: dict[int, RankPool], saved: Path) -> None:
    pool = rank_pools[2]
    message = _refusal(pool, saved, width=12)
    assert (
        "of another model: embedding.weight has shape [31, 13] there and [31, 12] here" in message
    )
    message = _refusal(pool, saved, stage=3, frozen=False)
    assert "mix.weight is frozen there and trains here; freeze the same" in message
    _edit(saved, lambda index: index["parameters"].pop("norm.weight"))
    assert "it has no parameter norm.weight; set the config's" in _refusal(pool, saved)
    _edit(saved, lambda index: index["parameters"].update(extra=_nothing()))
    _edit(saved, lambda index: index["parameters"].update({"norm.weight": _nothing()}))
    assert "it has a parameter extra, which is not in this one" in _refusal(pool, saved)
    state = json.loads((saved / "state.json").read_text())
    state["config"]["model"]["head"]["tied"] = False
    (saved / "state.json").write_text(json.dumps(state))
    record = FileRecord.of(saved / "state.json").model_dump()
    _edit(saved, lambda index: index["files"].update({"state.json": record}))
    assert "model.head.tied is False there and True here" in _refusal(pool, saved)


def _nothing() -> dict[str, Any]:
    return {"shape": [0], "dtype": "float32", "trainable": False, "tensors": {"value": []}}


def _edit(saved: Path, change: Any) -> None:
    file = saved / "index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


class _Trap:
    """Unpickling this leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


def test_nothing_is_unpickled(rank_pools: dict[int, RankPool], saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name in ("chunks-00000.safetensors", "state.json"):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(pickle.dumps(_Trap(trace)))
        record = FileRecord.of(saved / name).model_dump()
        _edit(saved, lambda index, key=name, value=record: index["files"].update({key: value}))
        assert f"{name} is damaged" in _refusal(rank_pools[2], saved)
        (saved / name).write_bytes(whole)
        record = FileRecord.of(saved / name).model_dump()
        _edit(saved, lambda index, key=name, value=record: index["files"].update({key: value}))
    assert not trace.exists()
    pickle.loads(pickle.dumps(_Trap(trace)))
    assert trace.exists(), "the trap works"


def _save_with_little_room(directory: Path) -> str:
    engine = engine_of(Toy(), stage=2)
    checkpoint.save(directory, engine, _state(1), step=1, keep=2)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.save(directory, engine, _state(2), step=2, keep=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    dist.barrier()
    left = sorted(path.name for path in directory.iterdir())
    assert left == ["latest", "step_00000001"], left
    dist.barrier()
    checkpoint.save(directory, engine, _state(3), step=3, keep=2)
    engine.close()
    return str(caught.value)


def test_a_rank_that_cannot_write_fails_all(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    for message in rank_pools[2].run(_save_with_little_room, tmp_path):
        assert "File too large" in message
        assert "rank 1 of 2" in message
    assert checkpoint.latest(tmp_path) == tmp_path / "step_00000003"


def _save_steps(directory: Path, steps: list[int]) -> list[list[str]]:
    engine = engine_of(Toy(), stage=0)
    names: list[list[str]] = []
    for step in steps:
        checkpoint.save(directory, engine, _state(step), step=step, keep=2)
        names.append(sorted(path.name for path in directory.iterdir()))
    engine.close()
    return names


def test_retention_and_steps_written_again(rank_pools: dict[int, RankPool], tmp_path: Path) -> None:
    (tmp_path / ".step_00000009.tmp-0a1b").mkdir()
    (tmp_path / ".latest.tmp-0a1b").touch()
    (tmp_path / "notes.txt").touch()
    names = rank_pools[1].run(_save_steps, tmp_path, [10, 20, 30, 20, 20])[0]
    assert names == [
        ["latest", "notes.txt", "step_00000010"],
        ["latest", "notes.txt", "step_00000010", "step_00000020"],
        ["latest", "notes.txt", "step_00000020", "step_00000030"],
        # Gone back to before step 20: step 30 belongs to a future that will not be.
        ["latest", "notes.txt", "step_00000020", "step_00000020.2"],
        ["latest", "notes.txt", "step_00000020.2", "step_00000020.3"],
    ]
    assert checkpoint.latest(tmp_path) == tmp_path / "step_00000020.3"


def test_paths_are_resolved(rank_pools: dict[int, RankPool], tmp_path: Path) -> None:
    run = tmp_path / "run"
    directory = run / "checkpoints"
    rank_pools[1].run(_save_steps, directory, [10, 20])
    for path in (run, directory, directory / "step_00000020"):
        assert checkpoint.resolve(path) == directory / "step_00000020"
    assert checkpoint.read_state(directory / "step_00000010")["step"] == 10
    (directory / "latest").unlink()
    assert checkpoint.latest(directory) == directory / "step_00000020"
    (directory / "latest").write_text("step_00000030\n")
    with pytest.raises(CheckpointError, match="latest names 'step_00000030', which is no"):
        checkpoint.resolve(run)
    assert checkpoint.latest(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="holds no checkpoint: name a run directory"):
        checkpoint.resolve(tmp_path)
    with pytest.raises(CheckpointError, match="is not there: name a run directory"):
        checkpoint.resolve(tmp_path / "nowhere")


def _train_and_save_for_ever(directory: Path, attempt: int, announce: int) -> None:
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0"
    )
    store = directory.with_name(f"store-{attempt}")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    engine = engine_of(Toy(), stage=1)
    step = 0
    if (found := checkpoint.latest(directory)) is not None:
        step = checkpoint.restore(found, engine)["step"]
    while True:
        train_step(engine, step)
        step += 1
        checkpoint.save(directory, engine, _state(step), step=step, keep=1)
        os.write(announce, f"{step}\n".encode())


def kill_again_and_again(directory: Path) -> None:
    """Kills a process that saves without pause, at random instants; its last commit must load."""
    importlib.import_module("deepspeed")  # once, before the forks
    seed = 7
    instants = random.Random(seed)
    for attempt in range(8):
        receive, announce = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                _train_and_save_for_ever(directory, attempt, announce)
            os._exit(1)
        os.close(announce)
        with os.fdopen(receive) as announced:
            last = int(announced.readline())
            time.sleep(instants.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            for line in announced:
                last = int(line)
        found = checkpoint.latest(directory)
        assert found is not None
        state = checkpoint.load_module(found, Toy())
        # What was announced is there; what was just being committed may be.
        assert state["step"] in (last, last + 1), (attempt, state["step"], last)
        sys.stdout.write(f"attempt {attempt}: step {last}, {len(os.listdir(directory))} names\n")


def test_sigkill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, pathlib, tests.distributed.test_checkpoint as t;"
            "t.kill_again_and_again(pathlib.Path(sys.argv[1]))",
            str(directory),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=Path(__file__).parents[2],
        timeout=100,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
