"""Exported folders: what plain transformers makes of them, the way back, and what is refused."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model.encoders.text import distance_buckets as ours
from model.encoders.text import relative_buckets
from tests.tools.hub.exported import LOGITS_WITHIN, came_back, compare, write_checkpoint
from tests.tools.hub.kinds import EXPORTED
from tools.export import main as export
from tools.hub.folder import write_folder
from tools.hub.shipped.configuration_semicausal import SemicausalConfig
from tools.hub.shipped.encoder_semicausal import distance_buckets
from tools.hub.shipped.modeling_semicausal import SemicausalForCausalLM
from tools.hub.shipped.processing_semicausal import parse as shipped_parse
from train.checkpoint.weights import read_values, write_values
from train.errors import UserError
from train.prompt import parse

import_main: Any = importlib.import_module("tools.import").main


QUICK = ("deepnorm", "text and pictures")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "folder"
    assert export([str(checkpoint), str(out)]) == 0
    return out


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.long] * (k not in QUICK)) for k in EXPORTED]
)
def test_plain_transformers_says_the_same(kind: str, tmp_path: Path) -> None:
    row = compare(kind, write_checkpoint(tmp_path / "run", *EXPORTED[kind]), tmp_path)
    assert row.logit_difference is not None
    assert row.logit_difference <= LOGITS_WITHIN
    assert row.tokens_equal
    assert row.round_trip_equal


def test_run_of_an_earlier_version_goes_out_and_in(tmp_path: Path) -> None:
    """With all that a real run's state says, and metrics in its card."""
    run = Path(__file__).parents[2] / "fixtures/run_7cd86b9/pretrained"
    out = write_folder(run, tmp_path / "folder")
    assert came_back(run, out, tmp_path / "back")
    assert "Validation after" in (out / "README.md").read_text()
    described = json.loads((out / "config.json").read_text())
    assert described["trained"]["optimizer_steps"] == described["trained"]["step"] == 4


def test_card_tells_what_it_is(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for told in ("trust_remote_code=True", "3 of 6 steps", "encoder.text", "not stated", "[["):
        assert told in card
    assert not list(folder.parent.glob(".*")), "no draft stays"


def test_microbatches_of_a_trainer_add_up() -> None:
    """transformers' Trainer divides no loss itself where forwards take what they do not know."""
    model = SemicausalForCausalLM(SemicausalConfig())
    tokens = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 0]])
    labels = tokens.clone()
    labels[3, 1] = -100
    whole = model(input_ids=tokens, labels=labels).loss
    parts = [
        model(input_ids=some, labels=theirs, num_items_in_batch=torch.tensor(3)).loss
        for some, theirs in zip(tokens.split(2), labels.split(2), strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("left over", "it has left over decoder.extra.weight"),
        ("missing", "it lacks decoder.blocks.1.feed_forward.up.bias"),
        ("shape", "decoder.blocks.0.attention.out.weight is [16] and should be [32, 32]"),
        ("untied", "decoder.head.weight is not decoder.embedding.weight"),
        ("pickled", "model.safetensors does not exist: name a folder with weights as safetensors"),
        ("cut", "model.safetensors is damaged"),
        ("kind", "is of the kind 'mamba': what can be read are"),
        ("shape of config", "shape is not that of trained.config.model"),
        ("no config", "config.json does not exist"),
    ],
)
def test_import_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    values = load_file(folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text())
    match fault:
        case "left over":
            values["decoder.extra.weight"] = torch.zeros(1)
        case "missing":
            del values["decoder.blocks.1.feed_forward.up.bias"]
        case "shape":
            values["decoder.blocks.0.attention.out.weight"] = torch.zeros(16)
        case "untied":
            values["decoder.head.weight"] = values["decoder.embedding.weight"] + 1
        case "kind":
            described["model_type"] = "mamba"
        case "shape of config":
            described["shape"]["decoder"]["norm"] = "pre"
        case _:
            pass
    broken = tmp_path / "broken"
    broken.mkdir()
    if fault != "no config":
        (broken / "config.json").write_text(json.dumps(described))
    if fault != "pickled":
        save_file(values, broken / "model.safetensors")
    if fault == "cut":
        content = (broken / "model.safetensors").read_bytes()
        (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert import_main([str(broken), str(tmp_path / "back")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_import_keeps_the_checkpoint(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_main([str(folder), str(tmp_path / "back")]) == 0
    before, after = read_values(checkpoint), read_values(tmp_path / "back")
    assert all(before[name].equal(after[name]) for name in before | after)
    assert import_main([str(folder), str(tmp_path / "back")]) == 2
    assert "exists: choose another place" in capsys.readouterr().err


def test_export_refuses(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *options: str) -> str:
        assert export([str(path), str(tmp_path / "out"), *options]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    (tmp_path / "taken").mkdir()
    assert export([str(checkpoint), str(tmp_path / "taken")]) == 2
    assert "exists: choose another place" in capsys.readouterr().err
    state = json.loads((checkpoint / "state.json").read_text())
    values = read_values(checkpoint)
    values["decoder.blocks.0.attention.qkv.lora_A.default.weight"] = torch.zeros(2, 2)
    write_values(tmp_path / "adapted", values, state)
    tokenizer = checkpoint.parents[1] / "tokenizer.json"
    told = refused(tmp_path / "adapted", f"--tokenizer={tokenizer}")
    assert "left over decoder.blocks.0.attention.qkv.lora_A.default.weight; merge" in told
    narrow = "decoder.blocks.0.attention.out.bottleneck.default.down.weight"
    write_values(tmp_path / "narrowed", values | {narrow: torch.zeros(2, 2)}, state)
    told = refused(tmp_path / "narrowed", f"--tokenizer={tokenizer}")
    assert "; bottlenecks cannot be merged, and other programs do not know them: tools.gen" in told
    state["config"]["run_directory"] = str(tmp_path / "gone")
    write_values(tmp_path / "alone", read_values(checkpoint), state)
    assert "name the corpus's own with --tokenizer" in refused(tmp_path / "alone")
    assert "cannot be read as a tokenizer" in refused(checkpoint, "--tokenizer=/nowhere")


@given(
    st.lists(
        st.sampled_from(["[[", "]]", "\\", "text:", "image:", "audio:", " ", "a", "é", "[", "]"])
    )
)
@pytest.mark.parametrize("modality", ["text", None])
@pytest.mark.parametrize("media", [(), ("image",)])
def test_shipped_code_reads_prompts_as_ours(
    modality: str | None, media: tuple[str, ...], pieces: list[str]
) -> None:
    prompt = "".join(pieces)
    try:
        parts = parse(prompt, modality=modality, media=media)
        wanted = [(part.text, part.is_span, part.medium) for part in parts]
    except UserError:
        with pytest.raises(ValueError, match=r"span|names a modality"):
            shipped_parse(prompt, modality=modality, media=media)
    else:
        assert shipped_parse(prompt, modality=modality, media=media) == wanted


@pytest.mark.parametrize("longest", [1, 2, 17, 300])
def test_shipped_buckets_are_ours(longest: int) -> None:
    wanted = relative_buckets(ours(longest), longest)
    assert distance_buckets(longest, torch.device("cpu")).equal(wanted)
