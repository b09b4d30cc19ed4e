"""LoRA under ZeRO-3: the task's loss falls, plain peft reads the adapter, merging keeps it."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from model.adapters import peft_format
from model.adapters.layer import is_adapter
from model.adapters.tuning import Names
from model.layers import initialize
from model.semicausal import SemiCausal
from tests.corpora import write_corpus
from tests.train.runs import TINY_RUN, kill_at, run, start
from tools.generate import main as generate
from tools.merge import main as merge
from train import adapter
from train.build import build_collator, open_sources
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.checkpoint.weights import read_values, write_values
from train.config import RunConfig
from train.config_files import load
from train.loading import load_config, load_model
from train.watch.metrics import Metrics

CPU = torch.device("cpu")
CALM = ("checkpoint.every_steps=1000", "validation.every_steps=1000")
"""Saved and looked at in the end alone: tiny runs otherwise do so every few steps."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    corpus = write_corpus(directory / "corpus")
    # Long enough for the embedding to grow: adapters cannot, and it bounds their logits.
    run(corpus, directory / "run", "steps=150", "zero.stage=1", *CALM, "batch.micro_sequences=8")
    return directory / "run"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("task") / "corpus", with_spans=True, seed=1)


@pytest.fixture(scope="module")
def finetuned(
    base: Path, task: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Metrics]:
    directory = tmp_path_factory.mktemp("lora") / "run"
    metrics = run(
        task,
        directory,
        "steps=80",
        "optim.lr=0.01",
        f"init_from={base}",
        "lora={rank: 8, alpha: 64.0}",
        "spans={text: {kind: stored}}",
        "data.pack=fit",
        "zero.stage=3",
        "zero.persist_parameters_below=0",
        *CALM,
        "batch.micro_sequences=4",
        ranks=2,
    )
    return directory, metrics


def test_loss_falls_and_the_base_stays(base: Path, finetuned: tuple[Path, Metrics]) -> None:
    directory, metrics = finetuned
    assert metrics.validation[-1].loss < metrics.validation[0].loss - 0.5
    before = dict(load_model(base, device=CPU).named_parameters())
    state = resolve(directory)
    after = read_values(state)
    for name, value in before.items():
        adapted = name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        assert torch.equal(after[adapted if adapted in after else name], value.detach()), name
    ups = [value for name, value in after.items() if ".lora_B." in name]
    assert ups
    assert all(up.abs().max() > 0 for up in ups), "an adapter never trained"


def batch_of(config: RunConfig, task: Path):
    sources = open_sources(config)
    validation = sources.all[0].validation
    return build_collator(config, sources.special)([(0, validation[i]) for i in range(4)])


@torch.no_grad()
def test_plain_peft_reads_the_adapter(
    base: Path, task: Path, finetuned: tuple[Path, Metrics]
) -> None:
    directory, _ = finetuned
    batch = batch_of(load_config(directory), task)
    plain = load_model(base, device=CPU)
    plain_loss = plain(batch).total
    settings = json.loads((directory / "adapter/adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"]), "equal bytes each time"
    adapted = PeftModel.from_pretrained(plain, str(directory / "adapter"))
    ours = load_model(directory, device=CPU)
    inner = cast(SemiCausal, adapted.base_model.model)
    peft_loss = inner(batch).total
    torch.testing.assert_close(peft_loss, ours(batch).total, rtol=1e-5, atol=1e-5)
    assert (peft_loss - plain_loss).abs() > 1


@torch.no_grad()
def test_merged_checkpoint_is_plain(
    task: Path, finetuned: tuple[Path, Metrics], tmp_path: Path
) -> None:
    directory, _ = finetuned
    assert merge([str(directory), str(tmp_path / "merged")]) == 0
    merged = load_model(tmp_path / "merged", device=CPU)
    assert load_config(tmp_path / "merged").lora is None
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert isinstance(merged, SemiCausal)
    batch = batch_of(load_config(directory), task)
    ours = load_model(directory, device=CPU)
    np.testing.assert_allclose(merged(batch).total, ours(batch).total, rtol=1e-6)
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_an_adapter_beside_its_base_says_what_the_run_does(
    base: Path, finetuned: tuple[Path, Metrics], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, _ = finetuned
    prompt = ["--prompt", "the kernel [[maps a page]] of", "--max-new-tokens", "12"]
    assert generate([str(directory), *prompt]) == 0
    wanted = capsys.readouterr().out
    adapter = ["--adapter", str(directory / "adapter")]
    assert generate([str(base), *prompt, *adapter]) == 0
    assert capsys.readouterr().out == wanted
    assert generate([str(base), *prompt]) == 0
    assert capsys.readouterr().out != wanted
    assert generate([str(directory), *prompt, *adapter]) == 2
    assert "is an adapter for another base: its base has the hash" in capsys.readouterr().err


def test_merge_refuses(
    base: Path,
    finetuned: tuple[Path, Metrics],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert merge([str(base), str(tmp_path / "merged")]) == 2
    assert "has no adapters to merge" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    assert merge([str(finetuned[0]), str(tmp_path / "taken")]) == 2
    assert "exists: choose another place" in capsys.readouterr().err


def test_merge_tells_what_it_wrote(
    finetuned: tuple[Path, Metrics], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run in bf16 that goes on, and one with bottlenecks."""
    path = resolve(finetuned[0])
    values = read_values(path)
    narrow = {n: v if is_adapter(n) else v.bfloat16() for n, v in values.items()}
    state = read_state(path).model_dump()
    out = tmp_path / "merged"
    assert merge([str(path), str(out)]) == 0
    told = capsys.readouterr().out
    assert "written in float32\n" in told
    assert "not finished" not in told
    write_values(tmp_path / "narrow", narrow, state | {"step": 40})
    assert merge([str(tmp_path / "narrow"), str(tmp_path / "whole")]) == 0
    told = capsys.readouterr().out
    assert "the run is not finished: these are 40 of its 80 steps" in told
    assert "written in bfloat16 and float32" in told
    exact = read_values(out)
    for name, value in read_values(tmp_path / "whole").items():
        # What bf16 has rounded off the base, and no more.
        most = values.get(name, values.get(name.replace(".weight", ".base_layer.weight")))
        assert most is not None or name.endswith("bias")
        rounded = 0.0 if most is None else 2**-8 * float(most.abs().max())
        torch.testing.assert_close(value.float(), exact[name], rtol=2**-8, atol=rounded)
    state["config"]["bottleneck"] = {}
    write_values(tmp_path / "narrowed", values, state)
    assert merge([str(tmp_path / "narrowed"), str(tmp_path / "none")]) == 2
    assert "has bottlenecks, which no weight can hold: tools.generate" in capsys.readouterr().err


def test_killed_and_resumed(
    base: Path, task: Path, finetuned: tuple[Path, Metrics], tmp_path: Path
) -> None:
    """A LoRA run continues as if it had never stopped, on bf16's own path too."""
    arguments = (
        *("steps=12", f"init_from={base}", "lora={rank: 4, dropout: 0.1}", "precision=bf16"),
        *(
            "spans={text: {kind: stored}}",
            "data.pack=fit",
            "zero.stage=2",
            "checkpoint.every_steps=4",
        ),
    )
    whole = run(task, tmp_path / "whole", *arguments)
    attempt = start(task, tmp_path / "run", *arguments)
    kill_at(attempt, tmp_path / "run", step=6)
    resumed = run(task, tmp_path / "run", *arguments)
    assert [(r.step, r.loss) for r in resumed.train] == [(r.step, r.loss) for r in whole.train]


def test_an_adapter_from_a_file_is_where_a_run_starts(task: Path, tmp_path: Path) -> None:
    """Whole layers beside it too, in a layout that splits and pads them; a step too small to see
    leaves the file as it was."""
    given = [
        *(f"init_from={tmp_path / 'base'}", "precision=bf16", "layout.tensor=2"),
        *("spans={text: {kind: stored}}", "data.pack=fit"),
        *("steps=1", "optim.lr=1e-30", "optim.warmup_steps=0"),
        "trainable=[connectors, decoder.embedding]",
    ]
    lora = "lora={rank: 3, alpha: 6, targets: [decoder.blocks.1], init_from: %s}"
    given.append(lora % (tmp_path / "first"))
    config = load(RunConfig, [str(TINY_RUN), *given, f"data.corpus={task}", "run_directory=none"])
    assert config.lora is not None
    model = SemiCausal(config.built_model)
    initialize(model, seed=1)
    plain = load(RunConfig, [str(TINY_RUN), "data.corpus=none", "run_directory=none"])
    state = {"step": 0, "config": plain.model_dump(mode="json")}  # as tools.import writes it
    write_values(tmp_path / "base", {n: p.detach() for n, p in model.named_parameters()}, state)
    shapes = config.tuning.saved_shapes(Names.of(config.built_model))
    stream = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=stream) / 30 for name, shape in shapes.items()}
    layers = sorted(config.tuning.low_rank(Names.of(config.built_model)))
    (tmp_path / "first").mkdir()
    settings = peft_format.settings(config.lora, layers=layers, whole=(), base=None)
    (tmp_path / "first" / peft_format.SETTINGS_NAME).write_text(json.dumps(settings))
    named = {peft_format.peft_name(name): value for name, value in values.items()}
    save_file(named, tmp_path / "first" / peft_format.TENSORS_NAME)
    run(task, tmp_path / "run", *given, *CALM, ranks=2)
    found = adapter.read(tmp_path / "run/adapter").values
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(found[name], value), name
    batch = batch_of(load_config(tmp_path / "run"), task)
    with torch.no_grad():
        ours = load_model(tmp_path / "run", device=CPU)(batch).total
        plain = load_model(tmp_path / "base", device=CPU)
        theirs = PeftModel.from_pretrained(cast(Any, plain), str(tmp_path / "run/adapter"))
        # The run keeps its fixed weights in bf16; the base's head would be off by 1e-2.
        torch.testing.assert_close(theirs(batch).total, ours, rtol=1e-4, atol=0)


def test_pretrained_encoder_trains_its_last_layers_alone(
    base: Path, task: Path, tmp_path: Path
) -> None:
    encoder = "model.encoders.text.encoder"
    run(
        task,
        tmp_path / "run",
        *("steps=3", f"{encoder}.init_from={base}", f"{encoder}.trainable_layers=1"),
        *("spans={text: {kind: stored}}", "data.pack=fit", "zero.stage=3", "seed=9"),
    )
    before, after = read_values(base), read_values(tmp_path / "run")
    prefix = "encoders.text."
    frozen = {n for n in before if n.startswith(prefix) and not n.startswith(prefix + "blocks.1.")}
    assert frozen
    for name in before:
        same = torch.equal(before[name], after[name])
        if name in frozen:
            assert same, f"{name} is frozen and came from the checkpoint"
        elif name.endswith("weight") and "norm" not in name:
            assert not same, f"{name} should have trained"


def test_adapters_are_not_first_weights(
    finetuned: tuple[Path, Metrics], task: Path, tmp_path: Path
) -> None:
    ended = start(task, tmp_path / "run", f"init_from={finetuned[0]}").wait()
    assert ended.code == 2
    assert "is a LoRA run: merge it first" in ended.output
