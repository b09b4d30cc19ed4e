"""Plain decoders go back to the class that they came from, or have the shape of, bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from model.style import Biases
from tests.corpora import VOCABULARY, write_tokenizer
from tests.tools.hub.__main__ import TOKENS, import_main
from tests.tools.hub.exported import bits, logits_of, write_checkpoint
from tests.tools.hub.kinds import CPU, DECODERS, IMPORTED, random_instance
from tools.export import main as export
from train.asked import Prompt
from train.checkpoint.weights import read_values
from train.loading import load_model

LLAMA = (
    *("model.decoder.norm=pre", "model.decoder.positions=rope", "spans.text.ratio=0"),
    *("model.decoder.norm_layer=rms_norm", "model.decoder.activation=swiglu"),
    "model.decoder.embedding_scale=1",
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in IMPORTED if name.startswith(DECODERS)])
def test_round_trip(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    class_name, options = IMPORTED[name]
    theirs = random_instance(class_name, options).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    assert import_main([str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert export([str(tmp_path / "ours"), str(tmp_path / "back"), "--native"]) == 0
    before = load_file(tmp_path / "theirs/model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    if class_name == "GPT2Model":  # saved without its head
        before = {f"transformer.{name}": value for name, value in before.items()}
    assert before.keys() == after.keys()
    assert all(value.dtype == dtype for value in after.values())
    assert all(bits(value).equal(bits(after[name])) for name, value in before.items())
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", torch_dtype=torch.float32
    ).eval()
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        found = again(tokens).logits
        ours = load_model(tmp_path / "ours", device=CPU)
        torch.testing.assert_close(
            found[0], logits_of(ours, Prompt(tokens=TOKENS, spans=[])), atol=1e-5, rtol=0
        )
    if "GPT2" not in class_name and "Mistral" not in class_name:
        assert type(again).__name__ == class_name


@pytest.mark.parametrize("biases", ["none", "qkv", "all"])
def test_a_run_of_ours(biases: Biases, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that was trained here in such a shape, with its tokenizer; and what has no such shape."""
    run = write_checkpoint(tmp_path / "run", *LLAMA, f"model.decoder.biases={biases}")
    assert export([str(run), str(tmp_path / "out"), "--native"]) == 0
    kind = "Qwen2ForCausalLM" if biases == "qkv" else "LlamaForCausalLM"
    assert f"{kind}.from_pretrained(" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.py"))
    card = (tmp_path / "out/README.md").read_text()
    assert "AutoTokenizer" in card
    assert "trust_remote_code" not in card
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == kind
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("the kernel maps a page", return_tensors="pt")
    with torch.no_grad():
        found = theirs(**prompt).logits[0]
        asked = Prompt(tokens=prompt["input_ids"][0].tolist(), spans=[])
        wanted = logits_of(load_model(run, device=CPU), asked)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert import_main([str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    before, after = read_values(run), read_values(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "model.decoder.norm is deepnorm, and pre there; model.decoder.embedding_scale is 50"),
        ((), "it has an encoder for text; export it without --native"),
        (("model.decoder.positions=rope",), "nearest is LlamaForCausalLM): model.decoder.norm is"),
        (
            (*LLAMA, "model.decoder.positions=learned", "model.decoder.norm_layer=layer_norm"),
            "nearest is GPT2LMHeadModel): model.decoder.activation is swiglu, and gelu or",
        ),
    ],
)
def test_no_class_does_the_same(
    overrides: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_checkpoint(tmp_path / "run", *overrides)
    assert export([str(run), str(tmp_path / "out"), "--native"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_special_tokens_come_along(tmp_path: Path) -> None:
    theirs = random_instance("LlamaForCausalLM", IMPORTED["llama"][1] | {"vocab_size": VOCABULARY})
    theirs.save_pretrained(tmp_path / "theirs")
    write_tokenizer(tmp_path / "theirs/tokenizer.json")
    assert import_main([str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert export([str(tmp_path / "ours"), str(tmp_path / "back"), "--native"]) == 0
    described = json.loads((tmp_path / "back/config.json").read_text())
    assert (described["bos_token_id"], described["eos_token_id"]) == (0, 2)
    shutil.rmtree(tmp_path / "ours")
    assert import_main([str(tmp_path / "back"), str(tmp_path / "ours")]) == 0
    assert (tmp_path / "ours/tokenizer.json").is_file()
