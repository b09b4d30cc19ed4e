"""Masters of a run in bf16 begin with the very values of the checkpoint that it starts from."""

from pathlib import Path

import pytest
import torch

from tests.corpora import write_corpus
from tests.distributed.checkpoint.runs import save_now, tensors_of
from tests.distributed.toy import Toy, engine_of, train_step
from tests.train.runs import run
from tools.ranks import RankPool
from train.checkpoint.restore import load_masters, load_weights

STILL = ("steps=1", "optim.lr=1.0e-38", "optim.warmup_steps=1", "validation.every_steps=100")
"""A step too small to move anything, so that what is saved is what a run began with."""


def save_trained(directory: Path) -> None:
    engine = engine_of(Toy(frozen=True), stage=0)
    for step in range(2):
        train_step(engine, step)
    save_now(directory, engine, step=2)
    engine.close()


def save_begun(source: Path, directory: Path, stage: int) -> None:
    model = Toy(frozen=True)
    load_weights(source, model)
    engine = engine_of(model, stage=stage, precision="bf16")
    load_masters(source, engine)
    save_now(directory, engine, step=0)
    train_step(engine, 0)
    engine.close()


@pytest.mark.parametrize(
    ("num_ranks", "stages"), [pytest.param(1, (0, 3), marks=pytest.mark.long), (2, (1, 2, 3))]
)
def test_masters_of_any_sharding(
    rank_pools: dict[int, RankPool], tmp_path: Path, num_ranks: int, stages: tuple[int, ...]
) -> None:
    rank_pools[1].run(save_trained, tmp_path / "source")
    expected = tensors_of(tmp_path / "source")
    for stage in stages:
        target = tmp_path / str(stage)
        rank_pools[num_ranks].run(save_begun, tmp_path / "source", target, stage)
        begun = tensors_of(target)
        for name in ("embedding.weight", "mix.bias", "norm.weight"):
            value = expected[f"{name}/value"]
            assert not torch.equal(value.bfloat16().float(), value), "it says nothing"
            assert torch.equal(begun[f"{name}/value"], value), (stage, name)
        frozen = expected["mix.weight/value"].bfloat16()
        assert torch.equal(begun["mix.weight/value"].bfloat16(), frozen)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    corpus = write_corpus(directory / "corpus")
    run(corpus, directory / "run", "steps=2", "validation.every_steps=100")
    return directory


@pytest.mark.parametrize(
    ("key", "more", "prefix"),
    [
        ("init_from", ("zero.stage=3",), ""),
        ("model.encoders.text.encoder.init_from", ("zero.stage=1",), "encoders."),
        pytest.param(
            "init_from", ("lora={rank: 2}", "zero.stage=2"), "frozen", marks=pytest.mark.long
        ),
    ],
    ids=["whole", "encoder", "lora"],
)
def test_runs_that_start_from_a_checkpoint(
    source: Path, tmp_path: Path, key: str, more: tuple[str, ...], prefix: str
) -> None:
    origin = f"{key}={source / 'run'}"
    run(source / "corpus", tmp_path, *STILL, "precision=bf16", origin, *more, ranks=2)
    expected, begun = tensors_of(source / "run"), tensors_of(tmp_path)
    values = {name: value for name, value in expected.items() if name.endswith("/value")}
    if prefix == "frozen":  # the base of adapters has no masters
        shared = values.keys() & begun.keys()
        assert len(shared) > 5
        assert all(torch.equal(begun[name], values[name].bfloat16().float()) for name in shared)
        return
    checked = [name for name in values if name.startswith(prefix)]
    assert checked
    for name in checked:
        assert torch.equal(begun[name], values[name]), name
