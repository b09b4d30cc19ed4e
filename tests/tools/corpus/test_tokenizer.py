"""Tokenizers as they are given: no text becomes a control token, and what they lose is told."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from tests.corpora import SPECIAL, WORDS
from tests.tools.corpus.making import QUIET, build, documents, picture, refusal, write_lines
from tools.corpus import verify
from tools.corpus.tokenizer import CorpusTokenizer, change
from train.errors import DataError

LETTERS = string.ascii_lowercase + "<>/"


def numbered(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate([*SPECIAL, *tokens])}


def words() -> Tokenizer:
    model = models.WordLevel(numbered("[UNK]", *sorted({*WORDS.split()})), unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    return tokenizer


def pieces() -> Tokenizer:
    known = [*LETTERS, *("##" + letter for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece(numbered("[UNK]", *known), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    tokenizer.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    return tokenizer


def unigram(*, fallback: bool) -> Tokenizer:
    scores = [(token, 0.0) for token in [*SPECIAL, "<unk>"]]
    known = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else [*LETTERS]
    scores += [("▁", -2.0), *((token, -9.0) for token in known)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=4, byte_fallback=fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    steps = [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    return tokenizer


def merges(*, added: bool) -> Tokenizer:
    """A BPE without bytes and without anything for what it does not know."""
    tokenizer = Tokenizer(models.BPE(numbered(*LETTERS), [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    if added:
        tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
        flags = {"special": False, "normalized": True, "lstrip": True, "rstrip": True}
        tokenizer.add_tokens([AddedToken(token, **flags) for token in SPECIAL])
    return tokenizer


def normalised() -> Tokenizer:
    """A byte-level one whose normalizer makes `</d>` of a single character."""
    tokenizer = Tokenizer(models.BPE(numbered(*pre_tokenizers.ByteLevel.alphabet()), []))
    tokenizer.normalizer = normalizers.Replace("⁂", "</D>")  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "words": words,
    "pieces": pieces,
    "unigram": lambda: unigram(fallback=False),
    "unigram of bytes": lambda: unigram(fallback=True),
    "merges": lambda: merges(added=False),
    "merges, added": lambda: merges(added=True),
    "normalised": normalised,
}
TEXT = "the kernel </d> maps </D></s> a page<pad><s> of memory </d>\n\n</s>\n\nwhen the driver asks"


def saved(kind: str, directory: Path) -> Path:
    path = directory / "tokenizer.json"
    KINDS[kind]().save(str(path))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_becomes_a_control_token(kind: str, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    write_lines(
        inside / "a.jsonl",
        [
            {"text": TEXT},
            {"segments": [{"text": TEXT, "span": True}, {"text": TEXT, "scored": False}]},
            {"image": "a.png", "caption": TEXT},
        ],
    )
    (inside / "a.png").write_bytes(picture())
    (inside / "b.txt").write_text(TEXT)
    (tmp_path / "prose").mkdir()
    (tmp_path / "prose/c.rst").write_text(f"{WORDS} and ends </d> here </D> as {WORDS}")

    tokenizer = saved(kind, tmp_path)
    sources = (f"prose:{tmp_path}/prose", inside)
    out = build(*sources, "--validation=0", "--media", out=tmp_path / "out", tokenizer=tokenizer)

    found = documents(out)
    assert len(found) == 5
    for name, document in found.items():
        control = [token for token in document.tokens.tolist() if token < len(SPECIAL)]
        paragraphs = control[:-1]
        assert control[-1] == 2
        assert set(paragraphs) <= {1}, name
        most = 4 if name.endswith("jsonl:2") else 3
        assert len(paragraphs) <= most, name
    assert verify.verify(str(out), workers=1, console=QUIET) == []


def test_a_character_that_becomes_a_control_token_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = merges(added=False)
    tokenizer.normalizer = normalizers.Replace("⁂", "</d>")  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = write_lines(tmp_path / "a.jsonl", [{"text": "a ⁂ page"}, {"text": "a page"}])

    told = refusal(capsys, source, out=tmp_path / "out", tokenizer=tmp_path / "tokenizer.json")

    assert "a/a.jsonl:1: the tokenizer makes a control token of '⁂'" in told


def test_a_word_that_a_tokenizer_cannot_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer(models.WordLevel(numbered("a", "page"), unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]  # a property in Rust
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = write_lines(tmp_path / "a.jsonl", [{"text": t} for t in ("a page", "a bus", "page")])
    given = {"out": tmp_path / "out", "tokenizer": tmp_path / "tokenizer.json"}

    told = refusal(capsys, source, **given)
    assert "a/a.jsonl:2: the tokenizer cannot read its text (WordLevel error" in told

    build(source, "--skip-bad=1", "--validation=0", **given)
    assert set(documents(tmp_path / "out")) == {"a/a.jsonl:1", "a/a.jsonl:3"}


LOSSES = {
    "words": ("naïve café", "characters", "unknown"),
    "pieces": ("The café", "characters", "accents"),
    "unigram": ("café 日本語", "characters", "unknown"),
    "merges": ("naïve café 日本語", "characters", "are lost"),
    "merges, added": ("Device Driver", "spaces", "capital letters"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_what_a_tokenizer_loses_is_told(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, how, word = LOSSES[kind]
    source = write_lines(tmp_path / "a.jsonl", [{"text": "a page"}, {"text": text}])

    out = build(source, "--validation=0", out=tmp_path / "out", tokenizer=saved(kind, tmp_path))

    read_back = json.loads((out / "manifest.json").read_text())["read_back"]
    shown = capsys.readouterr()
    assert read_back["texts"] == 2
    assert how in {*read_back["changed"], "spaces"}
    assert "tokenizer.json does not read back " in shown.err
    assert word in shown.out + shown.err
    assert "in a/a.jsonl:2 became " in shown.out


def test_a_tokenizer_of_bytes_loses_nothing(
    tmp_path: Path, tokenizer: Path, loaded: CorpusTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": "The  Café\t日本語 🙂 \u2028 </d>"}] * 200)
    out = build(source, "--validation=0", out=tmp_path / "out", tokenizer=tokenizer)
    read_back = json.loads((out / "manifest.json").read_text())["read_back"]
    shown = capsys.readouterr()
    assert loaded.lost() == []
    assert read_back["changed"] == {}
    assert read_back["texts"] == 128 + 2  # 128 and 192
    assert "read back" not in shown.out + shown.err


@pytest.mark.parametrize(
    ("text", "back", "found"),
    [
        ("a page", "a page", None),
        ("a page", " a page", None),
        ("a  page", "a page", "spaces"),
        ("The page", "the page", "case"),
        ("café", "caf", "characters"),
    ],
)
def test_kinds_of_change(text: str, back: str, found: str | None) -> None:
    assert change(text, back) == found


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda vocabulary: vocabulary.update({"</d>": 1}), "two of <s>, </s>, </d>, <pad> one id"),
        (lambda vocabulary: vocabulary.update({"far": 1 << 31}), "number them from 0"),
    ],
)
def test_vocabularies_that_make_no_sense(edit: Callable[[Any], None], reason: str) -> None:
    content = json.loads(words().to_str())
    edit(content["model"]["vocab"])
    with pytest.raises(DataError, match=reason):
        CorpusTokenizer.from_content(json.dumps(content).encode(), name="x")
