"""Documentation as a source: packages or directories, reduced to prose and mixed."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests import warm
from tests.lab_fixtures import S3Lab
from tests.tools.corpus.making import documents, token_ids
from tests.tools.corpus.text import write_text
from tools.corpus.__main__ import main
from tools.corpus.documentation import VALIDATION_SHARE, Documentation, Text
from tools.corpus.part import split_of
from tools.corpus.tokenizer import CorpusTokenizer
from train.data.store.shards import ShardStore
from train.data.tokens import SPECIAL_TEXT
from train.errors import DataError

VOCABULARY = 300


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "notes")


def run(out: Path | str, text: Path, *more: str) -> int:
    tokens = () if "--vocabulary" in more else ("--vocabulary", str(VOCABULARY))
    return main(["build", f"prose:{text}", str(out), *tokens, "--workers", "1", *more])


@pytest.fixture(scope="module")
def corpus(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "deep/corpus"
    assert run(out, text) == 0
    return out


def test_the_documents_are_the_text(corpus: Path, text: Path) -> None:
    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer.json"))
    originals = {
        f"notes/{path.relative_to(text)}": "</s>".join(
            part.replace("\n", " ").strip()
            for block in path.read_text().split("\n\n")
            if (part := block.replace("=" * 60, "").strip())
        )
        for path in text.rglob("*.rst")
    }
    found = {
        name: tokenizer.decode(document.tokens.tolist(), skip_special_tokens=False)
        for name, document in documents(corpus).items()
    }
    assert found == {name: f"{original}</s></d>" for name, original in originals.items()}


def test_the_order_is_that_of_hashes_of_paths(corpus: Path) -> None:
    store = ShardStore(str(corpus / "train"))
    names = [store.columns(number)["id"] for number in range(len(store))]
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def test_the_manifest_tells_what_was_built(corpus: Path) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert manifest["vocabulary"] == VOCABULARY
    [source] = manifest["sources"]
    assert [part["name"] for part in source["made_of"]] == ["notes"]
    assert sum(split["documents"] for split in manifest["splits"].values()) == 120
    assert main(["verify", str(corpus), "--workers", "1"]) == 0


def test_the_special_tokens_come_first_and_text_cannot_spell_them(corpus: Path) -> None:
    tokenizer = CorpusTokenizer.from_file(corpus / "tokenizer.json")
    assert [tokenizer.tokenizer.id_to_token(i) for i in range(4)] == list(SPECIAL_TEXT.values())
    [tokens] = token_ids(tokenizer, ["a </s> <pad> b"])
    assert min(tokens) > 3
    assert tokenizer.tokenizer.decode(tokens) == "a </s> <pad> b"


def test_every_byte_survives(corpus: Path) -> None:
    tokenizer = CorpusTokenizer.from_file(corpus / "tokenizer.json")
    written = "Grüße, 漢字 and 😀\ttabs\n"
    assert tokenizer.tokenizer.decode(token_ids(tokenizer, [written])[0]) == written


def test_the_same_text_gives_the_same_files(corpus: Path, text: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "again", text) == 0
    names = sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(tmp_path / "again")
        for path in (tmp_path / "again").rglob("*")
        if path.is_file()
    )
    for name in names:
        assert (corpus / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_finished_corpus_is_reused(
    corpus: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (corpus / "train/index.json").stat().st_mtime_ns
    assert run(corpus, text) == 0
    assert "already built" in capsys.readouterr().err
    assert (corpus / "train/index.json").stat().st_mtime_ns == before


def refused(capsys: pytest.CaptureFixture[str], out: Path | str, text: Path, *more: str) -> str:
    assert run(out, text, *more) == 2
    return " ".join(capsys.readouterr().err.split())


def test_another_corpus_is_not_overwritten(
    corpus: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, corpus, text, "--validation", "0.5")
    assert "validation 0.03, now 0.5" in message
    other = write_text(tmp_path / "other", num_documents=5)
    assert "the files of source documentation changed" in refused(capsys, corpus, other)


def test_another_tokenizer_can_be_used(corpus: Path, text: Path, tmp_path: Path) -> None:
    tokenizer = corpus / "tokenizer.json"
    assert (
        run(tmp_path / "out", text, "--tokenizer", str(tokenizer), "--limit-megabytes", "0.03") == 0
    )
    assert (tmp_path / "out/tokenizer.json").read_bytes() == tokenizer.read_bytes()
    few, all_of_them = documents(tmp_path / "out"), documents(corpus)
    characters = sum(
        len(text.replace("</s>", "").replace("</d>", ""))
        for name, document in few.items()
        if split_of(name, VALIDATION_SHARE) == "train"
        for text in [Tokenizer.from_file(str(tokenizer)).decode(document.tokens.tolist())]
    )
    assert 30_000 <= characters < 33_000
    assert few.keys() < all_of_them.keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--vocabulary", "100"], "cannot hold all bytes and special tokens; ask for"),
        (["--vocabulary", "60000"], "gives a vocabulary of only"),
        (["--tokenizer", "/nowhere.json"], "There is no file /nowhere.json"),
    ],
)
def test_bad_input_is_one_sentence(
    more: list[str], message: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, tmp_path / "out", text, *more)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_tokenizer_that_does_not_fit(
    corpus: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = str(corpus / "tokenizer.json")
    message = refused(capsys, tmp_path / "out", text, "--vocabulary", "400", "--tokenizer", own)
    assert "has 300 entries, not 400; leave out --vocabulary" in message
    (tmp_path / "bad.json").write_text("{}")
    message = refused(capsys, tmp_path / "out", text, "--tokenizer", str(tmp_path / "bad.json"))
    assert "bad.json is not a tokenizer.json of the tokenizers library" in message


def test_object_storage(
    s3_lab: S3Lab,
    corpus: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in s3_lab.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3_lab.bucket}/{tmp_path.name}"
    assert run(url, text) == 0
    remote = ShardStore(f"{url}/train", cache=tmp_path / "shards")
    local = ShardStore(str(corpus / "train"))
    assert remote.index.sha256 == local.index.sha256
    assert remote.lengths_index.sha256 == local.lengths_index.sha256
    assert run(url, text) == 0
    assert "already built" in capsys.readouterr().err


def test_the_split_is_stable_and_of_the_right_size() -> None:
    texts = [Text(path=f"linux-doc-6.1/mm/{number}.rst", paragraphs=[]) for number in range(5000)]
    held_out = [text.path for text in texts if text.split == "validation"]
    assert abs(len(held_out) / 5000 - VALIDATION_SHARE) < 0.01
    # Golden: if it changes, text that a model was trained on moves into validation.
    assert held_out[:3] == [f"linux-doc-6.1/mm/{number}.rst" for number in (22, 27, 96)]


def nothing(text: str) -> None:
    pass


def of(directory: Path | str) -> Documentation:
    return Documentation(sources=(f"prose:{directory}",), cache=Path("unused"))


def test_a_directory_is_a_source(tmp_path: Path) -> None:
    directory = write_text(tmp_path / "notes", num_documents=8)
    (directory / "image.png").write_bytes(b"PNG")
    texts, made = of(directory).texts(report=nothing)
    assert len(texts) == 8
    assert {text.subject for text in texts} == {"mail", "radio", "trains", "water"}
    assert made.described == [{"source": f"prose:{directory}", "name": "notes", "licences": []}]


def test_a_directory_is_identified_by_its_text(tmp_path: Path) -> None:
    first = write_text(tmp_path / "a", num_documents=4)
    second = write_text(tmp_path / "b", num_documents=4)
    assert of(first).identity == of(second).identity
    (second / "more.txt").write_text("x")
    assert of(first).identity != of(second).identity


def test_two_directories_of_one_name_are_refused(tmp_path: Path) -> None:
    sources = [write_text(tmp_path / name / "docs", num_documents=4) for name in "ab"]
    documentation = Documentation(
        sources=tuple(f"prose:{source}" for source in sources), cache=tmp_path / "cache"
    )
    with pytest.raises(DataError, match="Two sources are called docs"):
        _ = documentation.identity


def test_a_directory_beside_the_package_of_its_name_is_refused(tmp_path: Path) -> None:
    directory = write_text(tmp_path / "linux-doc-6.1", num_documents=4)
    sources = ("linux-doc-6.1", f"prose:{directory}")
    documentation = Documentation(sources=sources, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"Two sources are called linux-doc-6\.1"):
        _ = documentation.identity


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(DataError, match=r"no source prose:nowhere: .* linux-doc-6\.1"):
        _ = of("nowhere").identity


def test_a_directory_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        of(tmp_path).texts(report=nothing)


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"x\.txt\.gz is not sound gzip"):
        of(tmp_path).texts(report=nothing)


def test_other_sources_come_behind(text: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n')
    places = [f"prose:{text}", str(tmp_path / "rows.jsonl"), str(tmp_path / "out")]
    flags = ["--vocabulary", "300", "--validation", "0", "--workers", "1"]
    assert main(["build", *places, *flags]) == 0
    assert "rows/rows.jsonl:1" in documents(tmp_path / "out")
    assert len(documents(tmp_path / "out")) == 121


def test_no_share_is_proposed_that_cannot_move_documentation(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_text(tmp_path / "few", num_documents=4)
    (tmp_path / "row.jsonl").write_text('{"text": "a row"}\n')
    sources = [f"prose:{few}", str(tmp_path / "row.jsonl"), str(tmp_path / "out")]
    flags = ["--vocabulary", "300", "--validation", "1e-9", "--workers", "1"]
    assert main(["build", *sources, *flags]) == 2
    assert "run again with --validation 0 for no validation split" in capsys.readouterr().err


def test_the_name_of_earlier_versions_says_the_new_one() -> None:
    command = [sys.executable, "-m", "tools.shards", "verify", "data/mine"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=warm.REPOSITORY)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "python -m tools.corpus verify data/mine" in ended.stderr


@pytest.mark.parametrize("sort", ["rst", "jsonl"])
def test_a_tokenizer_that_cuts_pads_and_takes_text_for_marks_does_not_so_here(
    sort: str, corpus: Path, tmp_path: Path
) -> None:
    text = "A paragraph that ends </d> in the middle of its words and then goes on."
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.rst").write_text(text)
    (tmp_path / "in/a.jsonl").write_text(json.dumps({"text": text}))
    asked = json.loads((corpus / "tokenizer.json").read_text())
    asked["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    asked["padding"] = {
        "strategy": {"Fixed": 999}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 3, "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    for token in asked["added_tokens"]:
        token["special"] = False
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    source = f"prose:{tmp_path / 'in'}" if sort == "rst" else str(tmp_path / "in/a.jsonl")
    flags = ["--tokenizer", str(tmp_path / "asked.json"), "--validation", "0", "--workers", "1"]

    assert main(["build", source, str(tmp_path / "out"), *flags]) == 0

    [document] = documents(tmp_path / "out").values()
    *words, paragraph, end = document.tokens.tolist()
    assert (paragraph, end) == (1, 2)
    assert min(words) > 3
    plain = Tokenizer.from_file(str(corpus / "tokenizer.json"))
    assert plain.decode(words, skip_special_tokens=False) == text


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"first\nna\xefve")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 in line 2"):
        of(tmp_path).texts(report=nothing)
    (tmp_path / "a.txt").write_bytes("\ufeffA mark of the order of bytes is no text.".encode())
    [text], _ = of(tmp_path).texts(report=nothing)
    assert text.paragraphs[0].text == "A mark of the order of bytes is no text."
