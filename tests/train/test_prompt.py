"""Prompts: how their spans are marked, and that a tokenizer's stored settings do not touch them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.semicausal import ModelConfig, SemiCausal
from tests.corpora import WORDS, write_tokenizer
from train.asked import Asked, PromptEncoder
from train.data.segments import TextSegment
from train.data.tokens import read_tokenizer
from train.errors import UserError
from train.prompt import escaped, parse, plain, shown
from train.text import Speaker

MODEL = ModelConfig.model_validate(
    {
        "decoder": {
            "vocabulary": 300, "width": 32, "num_layers": 1, "heads": 4, "feed_forward": 64,
            "max_tokens": 64,
        },
        "encoders": {
            "text": {
                "encoder": {
                    "width": 16, "num_layers": 1, "heads": 2, "feed_forward": 32,
                    "max_tokens": 34, "dropout": 0.0,
                }
            }
        },
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("", []),
        ("all plain", ["all plain"]),
        ("the [[maps a]] page", ["the", ("span", " maps a"), " page"]),
        ("[[a]][[b]]", [("span", "a"), ("span", "b")]),
        ("[[a\nb]]", [("span", "a\nb")]),
        ("[[text:a]] b", [("span", "a"), " b"]),
        ("x [[text:note: a]]", ["x", ("span", " note: a")]),
        (r"x = \[[1, 2], [3, 4]]", ["x = [[1, 2], [3, 4]]"]),
        (r"\[[image:a]]", ["[[image:a]]"]),
        (r"\\[[a]]", ["\\", ("span", "a")]),
        (r"\\\[[a", [r"\[[a"]),
        (r"[[a[b[0\]]]]", [("span", "a[b[0]]")]),
        (r"C:\new \n", [r"C:\new \n"]),
        ("a[b[0]]", ["a[b[0]]"]),
        ("[[Note: a]]", [("span", "Note: a")]),
        ("[[a: b]] is not a name: [[ x:y]]", None),
    ],
)
def test_marks(prompt: str, parts: list[str | tuple[str, str]] | None) -> None:
    if parts is None:
        with pytest.raises(UserError, match=r"\[\[a: .* names a modality"):
            parse(prompt)
        return
    found = [("span", part.text) if part.is_span else part.text for part in parse(prompt)]
    assert found == parts
    assert plain(prompt) == "".join(part if isinstance(part, str) else part[1] for part in parts)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a [[b", "'[[b' is not closed (line 1, character 3): close each span with ]]"),
        (r"\[[a]] [[b]]" + "\nc\\\\[[d", "'[[d' is not closed (line 2, character 4)"),
        ("a [[b [[c]]", "'[[b [[c]]' has another [[ in it (line 1, character 7)"),
        ("a [[b [[text:c]]", "has another [[text: in it (line 1, character 7)"),
        ("[[a]][[]]", "'[[]]' is empty (line 1, character 6)"),
        ("\n\n [[ \n ]]", "is empty (line 3, character 2)"),
        ("[[image:a.png]]", "[[image: (line 1, character 1) names a modality that the model reads"),
        ("[[https://a.b]]", "write [[text:https: if it is text"),
        ("[[" + "b" * 5000, "'[[" + "b" * 38 + "…' is not closed"),
        ("a \udcff", r"'a \udcff' is not UTF-8"),
    ],
)
def test_what_is_refused(prompt: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        parse(prompt)
    assert len(str(caught.value)) < 250


@pytest.mark.timeout(120)
def test_many_backslashes_are_read_at_once() -> None:
    """Strangers' prompts of megabytes: each backslash is looked at once, or it takes days."""
    prompt = "\\" * 2_000_000
    assert plain(prompt) == prompt
    assert plain(f"{prompt}[[a]]") == f"{prompt[::2]}a"
    assert shown([TextSegment(text=prompt)]).startswith(prompt)


@given(st.text(alphabet=r"[]\: aimge" + "\n"))
def test_a_backslash_writes_every_text(text: str) -> None:
    written = escaped(text)
    assert "".join(part.text for part in parse(written)) == text
    assert not any(part.is_span for part in parse(written))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def changed(tokenizer: Path, **settings: Any) -> Path:
    document = json.loads(tokenizer.read_text())
    document["model"]["dropout"] = settings.pop("dropout", None)
    path = tokenizer.with_name("changed.json")
    path.write_text(json.dumps(document | settings))
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
                        "stride": 0}},
        {"padding": {"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None,
                     "pad_id": 3, "pad_type_id": 0, "pad_token": "<pad>"}},
        {"dropout": 0.9},
        {"post_processor": {"type": "TemplateProcessing", "pair": [],
                            "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}},
                                       {"Sequence": {"id": "A", "type_id": 0}}],
                            "special_tokens": {"</s>": {"id": "</s>", "ids": [1],
                                                        "tokens": ["</s>"]}}}},
    ],
    ids=["truncation", "padding", "dropout", "post_processor"],
)  # fmt: skip
def test_what_a_tokenizer_stores_of_another_training_does_not_touch_prompts(
    settings: dict[str, Any], tokenizer: Path
) -> None:
    prompt = f"{WORDS} [[{WORDS}]] {WORDS}</s>\n\n"
    wanted = PromptEncoder(read_tokenizer(tokenizer.read_bytes(), name="it"))(prompt)
    settled = changed(tokenizer, **settings).read_bytes()
    encode = PromptEncoder(read_tokenizer(settled, name="it"))
    assert encode(prompt) == encode(prompt) == wanted
    assert 3 not in wanted.tokens, "no padding"
    assert wanted.tokens.count(1) == 1, "no special token can be written"
    assert wanted.tokens[-1] == 1, "a blank line ends a paragraph"


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer: Path) -> None:
    small = MODEL.model_copy(
        update={"decoder": MODEL.decoder.model_copy(update={"vocabulary": 200})}
    )
    with pytest.raises(UserError, match=r"has tokens up to \d+, the model 200 in all: name"):
        Speaker(SemiCausal(small), tokenizer)


def test_a_model_that_diverged_says_so(tokenizer: Path) -> None:
    model = SemiCausal(MODEL).eval()
    torch.nn.init.constant_(next(model.decoder.parameters()), float("nan"))
    with pytest.raises(UserError, match="not finite: name another checkpoint"):
        Speaker(model, tokenizer).complete([Asked(prompt="a", max_new_tokens=1)])


def test_marks_of_other_media_name_what_is_read() -> None:
    found = parse("a [[image: cat.png ]] [[b]][[text:c]]", media=("image",))
    assert [(part.text, part.is_span, part.medium) for part in found] == [
        ("a", False, ""), ("cat.png", True, "image"), (" b", True, ""), ("c", True, ""),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"\[\[audio: .* names a modality"):
        parse("[[audio:a.wav]]", media=("image",))
    with pytest.raises(UserError, match="is empty"):
        parse("[[image: ]]", media=("image",))
