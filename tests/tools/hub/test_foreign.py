"""Llama, Qwen2, Mistral, GPT-2, BERT, RoBERTa and ELECTRA instances become parts of ours."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from model.semicausal import SemiCausal
from tests.tools.hub.__main__ import HIDDEN_WITHIN, TOKENS, import_main
from tests.tools.hub.kinds import (
    IMPORTED,
    encoder_of,
    encoder_states,
    hidden_difference,
    random_instance,
)
from tools.hub.vocabulary import with_special_tokens
from train.checkpoint.weights import read_values
from train.config import RunConfig
from train.config_files import load
from train.data.tokens import SpecialTokens, read_tokenizer
from train.errors import CheckpointError
from train.loading import load_config

TINY_RUN = Path(__file__).parents[2] / "tiny_run.yaml"


@pytest.mark.parametrize("name", IMPORTED)
def test_hidden_states_are_those_of_the_class(name: str, tmp_path: Path) -> None:
    theirs = random_instance(*IMPORTED[name])
    theirs.save_pretrained(tmp_path / "theirs")
    arguments = [str(tmp_path / "theirs"), str(tmp_path / "ours"), "--start-token=2"]
    assert import_main(arguments) == 0
    assert hidden_difference(theirs, tmp_path / "ours", TOKENS) <= HIDDEN_WITHIN
    others = [3, *TOKENS[1:]]
    shown = hidden_difference(theirs, tmp_path / "ours", others)
    assert shown <= HIDDEN_WITHIN or theirs.config.model_type in ("bert", "roberta", "electra")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "theirs"
    random_instance(*IMPORTED["llama"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "theirs"
    random_instance(*IMPORTED["bert"]).save_pretrained(folder)
    return folder


def test_states_follow_from_the_weights(llama: Path, tmp_path: Path) -> None:
    """What compares must be able to fail: one weight of one layer moved."""
    theirs = random_instance(*IMPORTED["llama"])
    with torch.no_grad():
        theirs.model.layers[2].mlp.gate_proj.weight[3, 5] += 0.1
    assert import_main([str(llama), str(tmp_path / "ours")]) == 0
    assert hidden_difference(theirs, tmp_path / "ours", TOKENS) > 100 * HIDDEN_WITHIN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling 'yarn': of ropes, plain",
        ),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn"}},
            "rope_scaling 'yarn': of ropes, plain",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters full_attention: all layers turn positions alike",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'low_freq_factor'"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
            "rope_scaling.linear.factor: Input should be greater than or equal to 1",
        ),
        ({"model_type": "mistral", "max_position_embeddings": 4097}, "sliding_window: slots see"),
        ({"hidden_act": "relu"}, "hidden_act 'relu': the gate is SiLU"),
        ({"attention_bias": True}, "attention_bias, mlp_bias: blocks have both or neither"),
        ({"model_type": "qwen2"}, "it lacks layers.0.self_attn.k_proj.bias"),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding_window: slots see all before"),
        ({"num_hidden_layers": 2}, "it has left over layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 4}, "it lacks layers.3.input_layernorm.weight"),
        ({"tie_word_embeddings": True}, "it has left over lm_head.weight"),
        ({"intermediate_size": 64}, "gate.weight is [56, 32] and should be [64, 32]"),
        ({"hidden_size": None}, "config.json is damaged: width: Input should be a valid integer"),
        ({"num_attention_heads": 3}, "kv_heads: 2 groups do not divide 3 heads"),
        ({"num_attention_heads": 8}, "attention.qkv.weight is [64, 32] and should be [96, 32]"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value)),
)
def test_import_refuses(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    described = json.loads((llama / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file(load_file(llama / "model.safetensors"), tmp_path / "model.safetensors")
    assert import_main([str(tmp_path), str(tmp_path / "ours")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda values: values | {"norm.weight": torch.zeros(32)},
            "some of its tensors are there with model. before them and without",
        ),
        (
            lambda values: {name: value.to(torch.int8) for name, value in values.items()},
            "of the type int8, which only scales make numbers of, are decoder.blocks.0.attention",
        ),
        (
            lambda values: values | {"lm_head.weight": values["lm_head.weight"] / 0},
            "is broken: NaN or infinity is in lm_head.weight; name a checkpoint from before",
        ),
    ],
    ids=["twice", "quantised", "diverged"],
)
def test_import_refuses_tensors(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    message: str,
) -> None:
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    save_file(change(load_file(llama / "model.safetensors")), tmp_path / "model.safetensors")
    assert import_main([str(tmp_path), str(tmp_path / "ours")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_files_of_narrow_types(dtype: torch.dtype, tmp_path: Path) -> None:
    """Read as their class reads them, in fp32; what is narrow lies so in the checkpoint."""
    theirs = random_instance(*IMPORTED["qwen2"]).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert import_main([str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert {value.dtype for value in read_values(tmp_path / "ours").values()} == {dtype}
    # Turned to the narrow type, the class would round its rope's frequencies for good.
    wide = type(theirs).from_pretrained(tmp_path / "theirs", torch_dtype=torch.float32).eval()
    assert hidden_difference(wide, tmp_path / "ours", TOKENS) <= HIDDEN_WITHIN


def test_import_refuses_files(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "theirs", tmp_path / "ours"
    random_instance(*IMPORTED["llama"]).save_pretrained(folder, max_shard_size="20KB")

    def refused(message: str) -> None:
        assert import_main([str(folder), str(out)]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert "Traceback" not in told
        assert not out.exists()

    whole = (llama / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole)
    refused("has its weights twice, in model.safetensors and in the files of model.safetensors.in")
    (folder / "model.safetensors").unlink()
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    kept = second.read_bytes()
    save_file(load_file(first) | load_file(second), second)
    refused(f"{second} has {min(load_file(first))}, as another file of")
    second.write_bytes(kept)
    index = folder / "model.safetensors.index.json"
    listed = index.read_text()
    index.write_text('{"weight_map": {}}')
    refused("index.json is damaged: it names no files of it")
    index.write_text(listed)
    second.unlink()
    refused(f"{second} does not exist: name a folder with weights as safetensors")
    for file in (index, *folder.glob("*.safetensors")):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    refused("python -c 'from transformers import LlamaForCausalLM as M; M.from_pretrained(")


@pytest.mark.parametrize(
    ("described", "tokenizer", "message"),
    [
        ({"vocab_size": None}, '{"model": {"vocab": {"[CLS]": 9}}}', "vocabulary: Input should be"),
        ({}, '{"model": {"vocab": {"[CLS]": 61}}}', "start_token: 61 is outside the vocabulary"),
        ({}, '{"model": null}', "tokenizer.json is no tokenizer.json of the tokenizers library"),
        ({}, '{"model": {"vocab": {"[CLS]": "9"}}}', "the id of '[CLS]' is no number"),
        ({}, '{"model": {}, "added_tokens": [7]}', "tokenizer.json is no tokenizer.json of"),
    ],
)
def test_import_refuses_an_encoder(
    bert: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    described: dict[str, Any],
    tokenizer: str,
    message: str,
) -> None:
    document = json.loads((bert / "config.json").read_text()) | described
    (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    save_file(load_file(bert / "model.safetensors"), tmp_path / "model.safetensors")
    assert import_main([str(tmp_path), str(tmp_path / "ours")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_tensor_of_another_class_is_left_over(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = load_file(bert / "model.safetensors")
    values["encoder.layer.0.crossattention.self.key.weight"] = torch.zeros(2)
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    save_file(values, tmp_path / "model.safetensors")
    assert import_main([str(tmp_path), str(tmp_path / "ours"), "--start-token=2"]) == 2
    assert "left over encoder.layer.0.crossattention.self.key.weight" in capsys.readouterr().err
    save_file(load_file(bert / "model.safetensors"), tmp_path / "model.safetensors")
    assert import_main([str(tmp_path), str(tmp_path / "ours")]) == 2
    assert "say with --start-token" in capsys.readouterr().err
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"[CLS]": 9}}}')
    assert import_main([str(tmp_path), str(tmp_path / "ours")]) == 0
    told = capsys.readouterr().out
    assert "left out: pooler.dense.bias, pooler.dense.weight" in told
    config = load_config(tmp_path / "ours").model
    assert config.encoders["text"].encoder.model_dump()["start_token"] == 9


def test_runs_begin_from_imported_parts(llama: Path, bert: Path, tmp_path: Path) -> None:
    """The two `model.yaml` make one model: their decoder, their encoder, a connector of ours."""
    assert import_main([str(llama), str(tmp_path / "decoder")]) == 0
    assert import_main([str(bert), str(tmp_path / "encoder"), "--start-token=2"]) == 0
    parts = [str(tmp_path / part / "model.yaml") for part in ("encoder", "decoder")]
    for part in parts:
        assert list(yaml.safe_load(Path(part).read_text())) == ["model"]
    given = [str(TINY_RUN), *parts, "data.corpus=none", "run_directory=none"]
    given.append("model.encoders.text.encoder.trainable_layers=3")
    config = load(RunConfig, given)
    model = SemiCausal(config.built_model).eval()
    assert config.model.decoder.init_from == str(tmp_path / "decoder")
    values = read_values(tmp_path / "decoder") | read_values(tmp_path / "encoder")
    lacking = model.state_dict().keys() - values.keys()
    assert all(name.startswith("connectors.") for name in lacking)
    alone = encoder_states(encoder_of(tmp_path / "encoder"), TOKENS[1:])
    model.load_state_dict(values, strict=False)
    torch.testing.assert_close(encoder_states(model, TOKENS[1:]), alone)


def test_a_tokenizer_gets_our_tokens_in_unused_places() -> None:
    """Others' texts are encoded as before, ids stay, and a corpus can be built with it."""
    words = ["[PAD]", *(f"[unused{n}]" for n in range(5)), "[UNK]", "[CLS]", "the", "ker", "##nel"]
    plain = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    plain.add_special_tokens(["[PAD]", "[UNK]", "[CLS]"])
    content, lacking = with_special_tokens(plain.to_str().encode(), name="it")
    made = read_tokenizer(content, name="made")
    assert not lacking
    assert made.get_vocab_size() == plain.get_vocab_size()
    special = SpecialTokens.from_vocabulary(made.get_vocab())
    assert asdict(special) == {"start": 1, "paragraph": 2, "document": 3, "padding": 4}
    text = "the kernel [CLS] other"
    assert made.encode(text).ids == plain.encode(text).ids == [8, 9, 10, 7, 6]
    assert made.encode("the</d>").ids == [8, 3]
    again, lacking = with_special_tokens(content, name="it")
    assert again == content
    assert not lacking
    few = plain.to_str().replace("[unused", "[used").replace("[used3]", "[unused3]").encode()
    assert with_special_tokens(few, name="it")[1] == ["</s>", "</d>", "<pad>"]
    with pytest.raises(CheckpointError, match=r"it is no tokenizer\.json"):
        with_special_tokens(b"[]", name="it")
