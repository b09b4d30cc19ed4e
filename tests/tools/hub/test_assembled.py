"""Bring your own decoder: import it, give it an encoder, tune by LoRA in any layout, export."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model.adapters.layer import is_adapter, plain_name
from model.layers import initialize
from model.semicausal import SemiCausal
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from tests.corpora import VOCABULARY, write_corpus
from tests.tools.hub.exported import LOGITS_WITHIN, compare
from tests.tools.hub.kinds import IMPORTED, random_instance
from tests.train.runs import TINY_RUN, kill_at, run, start
from tools.assemble import main as assemble
from tools.generate import main as generate
from tools.hub.folder import write_folder
from tools.merge import main as merge
from train import adapter
from train.build import build_model
from train.checkpoint.weights import read_values
from train.config import RunConfig
from train.config_files import load
from train.errors import CheckpointError
from train.storage.place import Place
from train.watch.metrics import Metrics

import_main: Any = importlib.import_module("tools.import").main

TASK = (
    *("data.pack=fit", "spans={text: {kind: stored}}", "steps=6", "optim.lr=1e-3"),
    *("checkpoint.every_steps=1000", "validation.every_steps=1000", "batch.micro_sequences=2"),
)
LORA = "lora={rank: 4, alpha: 32, targets: [decoder.blocks]}"
LAYOUTS = {
    "tp2": ("layout.tensor=2", "layout.sequence_parallel=true", "zero.stage=1"),
    "pp2": ("layout.pipeline=2", "zero.stage=1"),
    "zero3": ("zero.stage=3", "zero.persist_parameters_below=0"),
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("task") / "corpus", with_spans=True)


def brought(kind: str, task: Path, place: Path) -> Path:
    """A random instance of a class, imported, with the tokenizer of the task."""
    class_name, options = IMPORTED[kind]
    theirs = random_instance(class_name, options | {"vocab_size": VOCABULARY})
    theirs.save_pretrained(place / "theirs")
    shutil.copyfile(task / "tokenizer.json", place / "theirs/tokenizer.json")
    assert import_main([str(place / "theirs"), str(place / "part"), "--start-token=2"]) == 0
    return place / "part"


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen2", marks=pytest.mark.long)])
def decoder(
    request: pytest.FixtureRequest, task: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return brought(request.param, task, tmp_path_factory.mktemp("decoder"))


def given(task: Path, *parts: Path) -> list[str]:
    files = [str(part / "model.yaml") for part in parts]
    return [str(TINY_RUN), *files, f"data.corpus={task}", "run_directory=none", *TASK]


def check_same(here: Metrics, there: Metrics) -> None:
    assert [mine.step for mine in here.train] == [theirs.step for theirs in there.train]
    for mine, theirs in zip(here.train, there.train, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)


def test_what_is_new_is_told_and_drawn_as_by_a_run(
    task: Path, decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    capsys.readouterr()
    assert assemble([str(base), *given(task, decoder), "seed=7", LORA]) == 0
    told = capsys.readouterr().out
    for part in ("encoders.text", "connectors.text"):
        assert f"{part} is new, drawn from seed 7: it has to train" in told
    drawn = {"seed": 7, "parts": ["encoders.text", "connectors.text"]}
    assert json.loads((base / "state.json").read_text())["drawn"] == drawn
    config = load(RunConfig, given(task, decoder))
    whole = SemiCausal(config.built_model)
    initialize(whole, seed=7)
    found, supplied = read_values(base), read_values(decoder)
    assert list(found) == sorted(dict(whole.named_parameters()))
    for name, value in whole.named_parameters():
        assert torch.equal(found[name], supplied.get(name, value.detach())), name
    assert (base / "tokenizer.json").read_bytes() == (task / "tokenizer.json").read_bytes()
    card = (write_folder(base, tmp_path / "folder") / "README.md").read_text()
    assert "encoders.text, connectors.text are as drawn from seed 7" in card
    assert generate([str(base), "--prompt", "a [[b]]", "--max-new-tokens", "2"]) == 0
    assert "connectors.text are as drawn from seed 7, and answers mean" in capsys.readouterr().err
    assert assemble([str(base), *given(task, decoder)]) == 2
    assert "exists: choose another place" in capsys.readouterr().err


def test_nothing_stays_random(task: Path, decoder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    assert assemble([str(base), *given(task, decoder)]) == 0

    def build(*overrides: str) -> None:
        arguments = [*given(task), str(base / "model.yaml"), *overrides]
        mesh = build_mesh(LayoutConfig(), World.here(torch.device("cpu")))
        build_model(load(RunConfig, arguments), mesh)

    build(LORA, "trainable=[encoders, connectors]")
    build()
    told = r"base has encoders.text, connectors.text as drawn from seed 1, and \d+ parameters such "
    for tuned in (
        (LORA,),
        (LORA, "trainable=[connectors]"),
        ("trainable=[decoder, encoders]",),
        ("lora={rank: 2, targets: [encoders]}", "trainable=[connectors]"),
        ("bottleneck={width: 4}", "trainable=[connectors]"),
    ):
        with pytest.raises(CheckpointError, match=told):
            build(*tuned)
    encoder = f"model.encoders.text.encoder.init_from={base}"
    with pytest.raises(CheckpointError, match=r"as encoders.text.embedding.* would stay random"):
        build("init_from=null", encoder, "model.encoders.text.encoder.trainable_layers=1")


def test_nothing_to_assemble(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assemble([str(tmp_path / "base"), *given(task)]) == 2
    assert "model.decoder.init_from: names no checkpoint" in capsys.readouterr().err
    decoder = brought("llama", task, tmp_path)
    other = "model.decoder.rope_theta=9"
    assert assemble([str(tmp_path / "base"), *given(task, decoder), other]) == 2
    assert "model.decoder.rope_theta" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    "layout", ["alone", *(pytest.param(name, marks=pytest.mark.long) for name in LAYOUTS)]
)
def test_tuned_and_exported(task: Path, decoder: Path, tmp_path: Path, layout: str) -> None:
    base = tmp_path / "base"
    assert assemble([str(base), *given(task, decoder)]) == 0
    alone = (
        *(f"init_from={base}", f"model={model_of(base)}", LORA, *TASK),
        "trainable=[encoders, connectors]",
    )
    arguments, ranks = (*alone, *LAYOUTS.get(layout, ())), 1 + (layout in LAYOUTS)
    found = run(task, tmp_path / "run", *arguments, ranks=ranks)
    if layout in LAYOUTS:
        check_same(found, run(task, tmp_path / "alone", *alone))
        again = (*arguments, "checkpoint.every_steps=2")
        kill_at(start(task, tmp_path / "killed", *again, ranks=ranks), tmp_path / "killed", step=4)
        check_same(run(task, tmp_path / "killed", *again, ranks=ranks), found)
    assert found.train[-1].loss < found.train[0].loss
    before, after = read_values(base), read_values(tmp_path / "run")
    fixed = {plain_name(n): v for n, v in after.items() if not is_adapter(n) and "decoder." in n}
    assert fixed.keys() == {name for name in before if name.startswith("decoder.")}
    assert all(torch.equal(value, before[name]) for name, value in fixed.items())
    # By way of the run, and of its adapter beside the base: the same weights, all of them trained.
    assert merge([str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    file = ["--adapter", str(tmp_path / "run/adapter")]
    assert merge([str(base), str(tmp_path / "beside"), *file]) == 0
    merged, beside = read_values(tmp_path / "merged"), read_values(tmp_path / "beside")
    assert merged.keys() == beside.keys()
    assert all(torch.equal(value, beside[name]) for name, value in merged.items())
    assert "drawn" not in json.loads((tmp_path / "beside/state.json").read_text())
    adapter.refuse_other_base(adapter.read(tmp_path / "run/adapter"), base, base)
    if layout not in LAYOUTS:  # a judge takes longer than all of this
        return
    row = compare("brought", tmp_path / "merged", tmp_path / "export", peft=False)
    assert row.logit_difference is not None
    assert row.logit_difference <= LOGITS_WITHIN
    assert row.tokens_equal
    assert row.round_trip_equal


def model_of(base: Path) -> str:
    """The model of a checkpoint, as one override."""
    model = yaml.safe_load((base / "model.yaml").read_text())["model"]
    return yaml.safe_dump(model, default_flow_style=True, width=10**6).strip()


@pytest.mark.long
def test_encoder_from_elsewhere_stays(task: Path, decoder: Path, tmp_path: Path) -> None:
    """Both parts brought: the connector alone is new, and the encoder may stay as it is."""
    encoder = brought("bert", task, tmp_path)
    base = tmp_path / "base"
    small = "model.encoders.text.encoder.max_tokens=40"
    assert assemble([str(base), *given(task, encoder, decoder), small]) == 0
    drawn = {"seed": 1, "parts": ["connectors.text"]}
    assert json.loads((base / "state.json").read_text())["drawn"] == drawn
    arguments = (f"init_from={base}", f"model={model_of(base)}", LORA, *TASK)
    run(task, tmp_path / "run", *arguments, "trainable=[connectors]")
    before, after = read_values(base), read_values(Place.of(tmp_path / "run"))
    for name, value in before.items():
        assert torch.equal(value, after.get(name, value)) == (not name.startswith("connectors."))
