"""What one layout saved, any other continues; what is foreign is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.zero.config import Precision
from parallel.zero.state import local_slices
from tests.distributed.checkpoint.runs import (
    Steps,
    save_now,
    state_of,
    tensors_of,
    train_and_save,
)
from tests.distributed.toy import Toy, engine_of, evaluate, train_step
from tools.ranks import RankPool
from train.checkpoint.restore import load_module, restore
from train.errors import CheckpointError

Layout = tuple[int, int]
"""ZeRO stage, number of ranks."""
LAYOUTS: tuple[Layout, ...] = ((0, 1), (1, 2), (2, 2), (3, 2), (3, 1))


def _resume_twice(
    stage: int, precision: Precision, source: Path, directory: Path, num_steps: int
) -> tuple[Steps, list[float]]:
    """From a checkpoint: saves it again as it is, trains two steps, stops, resumes, trains on."""
    curve: Steps = []
    evaluations: list[float] = []
    path = source
    for resumption in range(2):
        engine = engine_of(Toy(frozen=True), stage=stage, precision=precision)
        state = restore(path, engine)
        begin = state.step
        kept = state.model_dump(exclude_none=True)
        assert kept == {**state_of(begin), "step": begin, "optimizer_steps": begin}
        evaluations.append(evaluate(engine))
        if resumption == 0:
            save_now(directory / "again", engine, step=begin)
        end = begin + 2 if resumption == 0 else num_steps
        curve += [train_step(engine, step) for step in range(begin, end)]
        path = save_now(directory, engine, step=end)
        engine.close()
    return curve, evaluations


@pytest.mark.parametrize(
    ("precision", "layouts"),
    # In bf16 stages 0 and 1 are one and the same.
    [
        # Daily in test_checkpoint_layouts, with the real model.
        pytest.param("fp32", LAYOUTS, marks=pytest.mark.long),
        ("bf16", ((1, 2), (2, 2), (3, 1))),
    ],
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
        curve, evaluations = rank_pools[num_ranks].run(train_and_save, *arguments)[0]
        saved = tensors_of(source)
        assert saved["embedding.weight/exp_avg"].any()
        assert "mix.weight/value" in saved
        assert "mix.weight/exp_avg" not in saved, "a frozen parameter has no moments"
        assert "head.weight/value" not in saved, "a tied parameter is stored once"
        for layout in layouts:
            stage, num_ranks = layout
            target = tmp_path / f"{source.name}-to-{stage}-{num_ranks}"
            arguments = (stage, precision, source, target, 6)
            resumed, at_resumption = rank_pools[num_ranks].run(_resume_twice, *arguments)[0]
            again = tensors_of(target / "again")
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


def test_weights_alone_go_into_plain_modules(
    rank_pools: dict[int, RankPool], tmp_path: Path
) -> None:
    rank_pools[2].run(train_and_save, 3, "fp32", tmp_path, 2, 2)
    # Whether a parameter trains does not matter to weights.
    model = Toy()
    state = load_module(tmp_path, model)
    assert state.model_extra == {"samples": 16, "rate": 0.2, "run_id": "ab12", "optimizer_steps": 2}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.flatten(), tensors_of(tmp_path)[f"{name}/value"])
    with pytest.raises(CheckpointError, match=r"embedding.weight has shape \[31, 13\] there"):
        load_module(tmp_path, Toy(width=12))


def _refused(stage: int, path: Path, width: int, frozen: bool) -> tuple[str, bool]:
    engine = engine_of(Toy(width=width, frozen=frozen), stage=stage)
    before = [part.tensor.clone() for part in local_slices(engine)]
    with pytest.raises(CheckpointError) as caught:
        restore(path, engine)
    after = [part.tensor for part in local_slices(engine)]
    engine.close()
    return str(caught.value), all(map(torch.equal, before, after))


def _refusal(
    pool: RankPool, path: Path, *, stage: int = 1, width: int = 13, frozen: bool = True
) -> str:
    answers = pool.run(_refused, stage, path, width, frozen)
    assert all(answer == answers[0] for answer in answers), "every rank must say the same"
    message, untouched = answers[0]
    assert untouched
    assert str(path) in message
    return message


def test_another_model_is_refused_by_name(rank_pools: dict[int, RankPool], tmp_path: Path) -> None:
    pool = rank_pools[2]
    pool.run(train_and_save, 1, "fp32", tmp_path, 2, 2)
    saved = tmp_path / "step_00000002"
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


def _nothing() -> dict[str, Any]:
    return {"shape": [0], "dtype": "float32", "trainable": False, "tensors": {"value": []}}


def _edit(saved: Path, change: Any) -> None:
    file = saved / "index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
