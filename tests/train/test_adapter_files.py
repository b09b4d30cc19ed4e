"""Adapters in files: merged and taken out as plain peft does it, and what is wrong with them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import torchvision_free
from model.adapters.kinds import LoraConfig
from model.adapters.peft_format import SETTINGS_NAME, TENSORS_NAME
from model.adapters.tuning import Names, Tuning
from model.layers import initialize
from model.semicausal import SemiCausal
from tests.train.runs import TINY_RUN
from tools.merge import main as merge
from train import adapter
from train.checkpoint.weights import read_values, write_values
from train.config import RunConfig
from train.config_files import load
from train.errors import CheckpointError, ConfigError

BASE = ["data.corpus=none", "run_directory=run"]
FROM_DECODER = "model.decoder.init_from=decoder"
ADAPTERS = [*BASE, "init_from=base"]


def faults(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, [str(TINY_RUN), *overrides])
    return str(caught.value)


@pytest.fixture(scope="module")
def model() -> SemiCausal:
    model = SemiCausal(load(RunConfig, [str(TINY_RUN), *BASE]).built_model)
    initialize(model, seed=1)
    return model


@pytest.fixture(scope="module")
def base(model: SemiCausal, tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {
        "step": 0,
        "config": load(RunConfig, [str(TINY_RUN), *BASE]).model_dump(mode="json"),
    }
    place = tmp_path_factory.mktemp("base") / "step_00000000"
    write_values(place, {n: p.detach() for n, p in model.named_parameters()}, state)
    return place


@pytest.fixture
def given(model: SemiCausal, base: Path, tmp_path: Path) -> Path:
    """An adapter that plain peft has written, for this base."""
    torchvision_free.install()
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    settings = PeftConfig(
        r=3, lora_alpha=12, target_modules=["qkv", "down"], init_lora_weights=False
    )
    get_peft_model(cast(Any, copy.deepcopy(model)), settings).save_pretrained(str(tmp_path / "a"))
    change(tmp_path / "a", lambda values: values, base=adapter.base_hash(base))
    return tmp_path / "a"


def change(
    place: Path, work: Callable[[dict[str, Tensor]], dict[str, Tensor]], *, base: str = ""
) -> None:
    values = work(load_file(place / TENSORS_NAME))
    save_file(values, place / TENSORS_NAME, {"format": "pt"} | ({adapter.BASE_KEY: base}))


def test_merged_as_by_peft_and_taken_out_again(
    model: SemiCausal, base: Path, given: Path, tmp_path: Path
) -> None:
    torchvision_free.install()
    from peft import PeftModel

    theirs: Any = PeftModel.from_pretrained(cast(Any, copy.deepcopy(model)), str(given))
    expected = dict(theirs.merge_and_unload().named_parameters())
    whole, back = tmp_path / "whole", tmp_path / "back"
    assert merge([str(base), str(whole), "--adapter", str(given)]) == 0
    found = read_values(whole)
    before = read_values(base)
    assert set(found) == set(expected) == set(before)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-6, atol=1e-6)
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    lora = LoraConfig(rank=3, targets=["qkv", "down"])
    assert changed == {
        f"{name}.weight" for name in Tuning(lora=lora).low_rank(Names.of(model.config))
    }
    assert merge([str(whole), str(back), "--adapter", str(given), "--unmerge"]) == 0
    for name, value in read_values(back).items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)


ELSEWHERE: dict[str, dict[str, Any]] = {
    "an expression": {"target_modules": r".*blocks\.[0-9]+\.attention\.(qkv|out)"},
    "all linear layers": {"target_modules": "all-linear"},
    "some left out": {"target_modules": ["qkv", "down"], "exclude_modules": ["encoders"]},
    "some left out by one": {"target_modules": ["qkv"], "exclude_modules": r"encoders\..*"},
    "one left out": {"target_modules": ["up"], "exclude_modules": ["blocks.0.feed_forward.up"]},
    "layers": {"target_modules": ["qkv", "up"], "layers_to_transform": [1]},
    "a layer of a list": {
        **{"target_modules": ["qkv", "layers.0", "decoder.blocks.0.attention.out"]},
        **{"layers_to_transform": 0, "layers_pattern": ["blocks", "layers"]},
    },
    "whole ones beside": {"target_modules": ["qkv"], "modules_to_save": ["text.layers.0"]},
    "whole ones among": {"target_modules": "all-linear", "modules_to_save": ["0.attention"]},
    "by root": {"target_modules": ["down"], "use_rslora": True, "lora_dropout": 0.1},
}
"""Settings of peft that people have elsewhere."""


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_made_elsewhere(
    kind: str, model: SemiCausal, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What plain peft makes of its settings is what is read, and a layer that they name must be
    there."""
    torchvision_free.install()
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    settings = PeftConfig(r=2, lora_alpha=6, init_lora_weights=False, **ELSEWHERE[kind])
    torch.manual_seed(0)
    theirs: Any = get_peft_model(cast(Any, copy.deepcopy(model)), settings)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.5)
    place, out = tmp_path / "a", tmp_path / "out"
    theirs.save_pretrained(str(place))
    assert (place / "README.md").is_file()
    expected = dict(theirs.merge_and_unload().named_parameters())
    assert merge([str(base), str(out), "--adapter", str(place)]) == 0
    found = read_values(out)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-6, atol=1e-6)
    for begin in ("base_model.model.decoder", "base_model.model.connectors.text.layers.0.bias"):
        kept = load_file(place / TENSORS_NAME)
        gone = [n for n in sorted(kept) if n.startswith(begin)][:2]
        if not gone:
            continue
        save_file({n: v for n, v in kept.items() if n not in gone}, place / TENSORS_NAME)
        assert merge([str(base), str(tmp_path / "none"), "--adapter", str(place)]) == 2
        assert "does not fit: it lacks " in capsys.readouterr().err
        save_file(kept, place / TENSORS_NAME)


def test_unmerge_needs_an_adapter(base: Path, tmp_path: Path, capsys: Any) -> None:
    assert merge([str(base), str(tmp_path / "out"), "--unmerge"]) == 2
    assert "say with --adapter DIRECTORY" in capsys.readouterr().err


def test_another_base_names_both_hashes(base: Path, given: Path) -> None:
    adapter.refuse_other_base(adapter.read(given), given, base)
    change(given, lambda values: values, base="0" * 32)
    with pytest.raises(CheckpointError, match=rf"0{{32}}.* has {adapter.base_hash(base)}"):
        adapter.refuse_other_base(adapter.read(given), given, base)


def _without_one(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v for n, v in values.items() if n != min(values)}


def _without_a_layer(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v for n, v in values.items() if not n.startswith(min(values).rpartition(".lora")[0])}


def _one_more(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return values | {"base_model.model.decoder.nothing.lora_A.weight": torch.zeros(3, 8)}


def _of_another_shape(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return values | {min(values): torch.zeros(3, 7)}


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (_without_one, "does not fit: it lacks .*lora_A.default.weight"),
        (_without_a_layer, r"it lacks decoder.blocks.0.attention.qkv.lora_A.* and 1 more"),
        (_one_more, "does not fit: it has besides decoder.nothing"),
        (_of_another_shape, r"has shape \[3, 7\] \(rank 3\) and \[3, "),
    ],
)
def test_other_tensors(
    model: SemiCausal, given: Path, work: Callable[..., Any], message: str
) -> None:
    change(given, work)
    with pytest.raises(CheckpointError, match=message):
        adapter.refuse_unfitting(adapter.read(given), given, Names.of(model.config))


def test_another_rank_or_factor(model: SemiCausal, given: Path) -> None:
    names, found = Names.of(model.config), adapter.read(given)
    for config, message in (
        (LoraConfig(rank=4, alpha=16.0, targets=["qkv", "down"]), r"\(rank 3\) and \[4, "),
        (LoraConfig(rank=3, alpha=6.0, targets=["qkv", "down"]), "multiplied by 4.0 and here by 2"),
        (LoraConfig(rank=3, alpha=12.0, targets=["qkv"]), "it has besides .*down"),
    ):
        with pytest.raises(CheckpointError, match=message):
            adapter.refuse_unfitting(found, given, names, tuning=Tuning(lora=config))


def test_files_that_are_none(given: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no adapter: it needs adapter_config.json"):
        adapter.read(tmp_path)
    settings = given / SETTINGS_NAME
    stored = json.loads(settings.read_text())
    for other, message in (
        (stored | {"use_dora": True}, "use_dora is True, and False alone is known"),
        (stored | {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        (stored | {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which moves the"),
        (stored | {"alora_invocation_tokens": [3]}, r"alora_invocation_tokens is \[3\], and None"),
        (stored | {"rank_pattern": {"qkv": 4}}, r"rank_pattern is \{'qkv': 4\}, and \{\} alone is"),
        (stored | {"alpha_pattern": {"qkv": 4}}, "alpha_pattern is"),
        (stored | {"lora_bias": True}, "lora_bias is True, and False alone is known"),
        (stored | {"bias": "all"}, "bias is 'all', and 'none' alone is known"),
        (stored | {"trainable_token_indices": [5]}, r"trainable_token_indices is \[5\]"),
        (stored | {"target_parameters": ["x"]}, r"target_parameters is \['x'\], and None alone"),
        (stored | {"of_tomorrow": True}, "of_tomorrow is True, and None alone is known"),
        (stored | {"exclude_modules": [3]}, r"exclude_modules is \[3\], which names no layers"),
        ([], "the settings are no table"),
        ({"peft_type": "LORA"}, "it lacks 'r'"),
    ):
        settings.write_text(json.dumps(other))
        with pytest.raises(CheckpointError, match=message):
            adapter.read(given)
    settings.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        adapter.read(given)
    settings.write_text(json.dumps(stored))
    change(given, lambda values: values | {min(values): values[min(values)] / 0})
    with pytest.raises(CheckpointError, match=r"is broken: NaN or infinity is in decoder.bl"):
        adapter.read(given)
    (given / TENSORS_NAME).write_bytes(b"no tensors at all")
    settings.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="cannot be read"):
        adapter.read(given)


def test_of_another_class_or_pickled(model: SemiCausal, given: Path) -> None:
    names, settings = Names.of(model.config), given / SETTINGS_NAME
    stored = json.loads(settings.read_text())
    settings.write_text(json.dumps(stored | {"target_modules": "("}))
    with pytest.raises(CheckpointError, match="is not understood: an expression in it is none"):
        adapter.refuse_unfitting(adapter.read(given), given, names)
    settings.write_text(json.dumps(stored))
    change(given, lambda v: {n.replace("decoder.blocks", "model.layers"): t for n, t in v.items()})
    change(given, lambda v: {n: t for n, t in v.items() if "encoders" not in n})
    with pytest.raises(CheckpointError, match=r"no layer of this model is called model.la"):
        adapter.refuse_unfitting(adapter.read(given), given, names)
    (given / TENSORS_NAME).rename(given / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"nothing is unpickled here; in .* weights_only=Tr"):
        adapter.read(given)


def test_patterns_that_are_wrong() -> None:
    told = faults(*ADAPTERS, "lora={targets: [qvk]}", "bottleneck={targets: [qkv]}")
    assert "lora.targets: no linear layer is called qvk; the nearest are qkv" in told
    assert "bottleneck.targets: no linear layer that ends a sublayer is called qkv" in told
    told = faults(*ADAPTERS, "trainable=[decoder.blocks.7]")
    assert "trainable: no parameter is called decoder.blocks.7; the nearest are" in told


def test_what_would_stay_random() -> None:
    told = faults(*BASE, "trainable=[encoders]")
    assert "would stay random: name a checkpoint in init_from" in told
    part = "model.encoders.text.encoder.init_from=encoder"
    load(RunConfig, [str(TINY_RUN), *BASE, part, "trainable=[decoder, connectors]"])
    load(RunConfig, [str(TINY_RUN), *BASE, FROM_DECODER, "trainable=[encoders, connectors]"])
    assert "such as connectors" in faults(*BASE, FROM_DECODER, "trainable=[encoders]")
    assert "bottleneck: needs init_from" in faults(*BASE, "bottleneck={}")


def test_what_no_file_of_adapters_can_hold() -> None:
    told = faults(*ADAPTERS, "lora={targets: [qkv]}", "trainable=[decoder.blocks.0.attention]")
    assert "decoder.blocks.0.attention.qkv has an adapter, beside which it stays as it is" in told
    told = faults(*ADAPTERS, "lora={targets: [qkv]}", "trainable=[connectors.text.layers.0.bias]")
    assert "of connectors.text.layers.0 connectors.text.layers.0.weight would not" in told


def test_said_twice() -> None:
    told = faults(
        *ADAPTERS, "trainable=[encoders]", "model.encoders.text.encoder.trainable_layers=1"
    )
    assert "encoder.trainable_layers: trainable says what trains: leave one of them out" in told
