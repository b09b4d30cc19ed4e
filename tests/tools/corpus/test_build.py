import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.lab_fixtures import S3Lab
from tests.tools.corpus.text import write_text
from tools.corpus.__main__ import main
from tools.corpus.place import Place
from tools.corpus.tokenizer import CorpusTokenizer
from tools.lab import s3
from train.data.store.shards import ShardStore
from train.data.tokens import SPECIAL_TEXT, SpecialTokens
from train.errors import DataError

SEQUENCE_TOKENS = 32
VOCABULARY = 300


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "notes")


def run(out: Path | str, text: Path, *more: str) -> int:
    return main(
        ["build", str(out), "--sources", str(text), "--vocabulary", str(VOCABULARY),
         "--sequence-tokens", str(SEQUENCE_TOKENS), *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "deep/corpus"
    assert run(out, text) == 0
    return out


def test_the_samples_are_the_text(corpus: Path, text: Path) -> None:
    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer.json"))
    store = ShardStore(str(corpus / "train"))
    store.require(sequence_tokens=SEQUENCE_TOKENS, vocabulary=VOCABULARY)
    stream: list[int] = []
    for sample in store:
        assert sample.tokens.shape == (SEQUENCE_TOKENS + 1,)
        assert sample.tokens[0] == SpecialTokens().start
        assert sample.scored is None
        stream += sample.tokens[1:].tolist()
    documents = tokenizer.decode(stream, skip_special_tokens=False).split("</d>")
    originals = {
        "</s>".join(
            part.replace("\n", " ").strip()
            for block in path.read_text().split("\n\n")
            if (part := block.replace("=" * 60, "").strip())
        )
        for path in text.rglob("*.rst")
    }
    assert len(documents) > 100
    for document in documents[:-1]:
        assert document.removesuffix("</s>") in originals


def test_the_manifest_tells_what_was_built(corpus: Path, text: Path) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert manifest["kind"] == "pretraining"
    assert manifest["vocabulary"] == VOCABULARY
    assert manifest["sequence_tokens"] == SEQUENCE_TOKENS
    assert manifest["special_tokens"] == {"start": 0, "paragraph": 1, "document": 2, "padding": 3}
    assert [source["name"] for source in manifest["sources"]] == ["notes"]
    totals = manifest["splits"]
    assert totals["train"]["documents"] + totals["validation"]["documents"] == 120
    for split in ("train", "validation"):
        store = ShardStore(str(corpus / split))
        assert store.manifest == manifest
        assert totals[split]["samples"] == len(store)
        assert totals[split]["tokens"] == len(store) * SEQUENCE_TOKENS
        content = store.read_beside("tokenizer.json")
        assert content is not None
        store.require(
            tokenizer_sha256=CorpusTokenizer.from_content(content, name="t").sha256,
            sequence_tokens=SEQUENCE_TOKENS,
            vocabulary=VOCABULARY,
        )


def test_the_counts_are_those_of_the_training_targets(corpus: Path) -> None:
    counts = np.zeros(VOCABULARY, dtype=np.int64)
    for sample in ShardStore(str(corpus / "train")):
        counts += np.bincount(sample.tokens[1:], minlength=VOCABULARY)
    assert np.array_equal(np.load(corpus / "train/token_counts.npy"), counts)


def test_the_special_tokens_come_first_and_text_cannot_spell_them(corpus: Path) -> None:
    tokenizer = CorpusTokenizer.from_file(corpus / "tokenizer.json")
    assert [tokenizer.tokenizer.id_to_token(i) for i in range(4)] == list(SPECIAL_TEXT.values())
    [tokens] = tokenizer.encode(["a </s> <pad> b"])
    assert tokens.min() > 3
    assert tokenizer.tokenizer.decode(tokens.tolist()) == "a </s> <pad> b"


def test_every_byte_survives(corpus: Path) -> None:
    tokenizer = CorpusTokenizer.from_file(corpus / "tokenizer.json")
    written = "Grüße, 漢字 and 😀\ttabs\n"
    assert tokenizer.tokenizer.decode(tokenizer.encode([written])[0].tolist()) == written


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
    message = refused(capsys, corpus, text, "--sequence-tokens", "16")
    assert "holds another corpus (sequence_tokens 32, not 16); choose another" in message
    other = write_text(tmp_path / "other", num_documents=5)
    assert "sources ['directory sha256:" in refused(capsys, corpus, other)


def test_what_is_no_corpus_is_not_overwritten(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert "exists and is not a corpus" in refused(capsys, tmp_path, text)
    assert "exists and is not a corpus" in refused(capsys, tmp_path / "thesis.txt", text)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_an_empty_directory_is_filled(text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", text) == 0
    assert (tmp_path / "empty/manifest.json").exists()


def test_a_failed_build_leaves_nothing(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, tmp_path / "out", text, "--sequence-tokens", "1000000")
    assert "too little text for one train sequence of 1000000 tokens" in message
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]


def test_an_interrupted_build_is_begun_anew(text: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.partial/train").mkdir(parents=True)
    (tmp_path / ".out.partial/train/shard.00000.mds").write_bytes(b"half")
    assert run(tmp_path / "out", text) == 0
    assert not (tmp_path / ".out.partial").exists()


def test_another_tokenizer_can_be_used(corpus: Path, text: Path, tmp_path: Path) -> None:
    tokenizer = corpus / "tokenizer.json"
    assert (
        run(tmp_path / "out", text, "--tokenizer", str(tokenizer), "--limit-megabytes", "0.03") == 0
    )
    assert (tmp_path / "out/tokenizer.json").read_bytes() == tokenizer.read_bytes()
    small = json.loads((tmp_path / "out/manifest.json").read_text())["splits"]
    assert 30_000 <= small["train"]["characters"] < 33_000
    assert small["validation"]["documents"] >= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--vocabulary", "100"], "cannot hold all bytes and special tokens; ask for"),
        (["--vocabulary", "60000"], "gives a vocabulary of only"),
        (["--sequence-tokens", "1"], "need 2 tokens or more, not 1"),
        (["--tokenizer", "/nowhere.json"], "Cannot read the tokenizer /nowhere.json"),
        (["--sources", "/nowhere"], "There is no source /nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    more: list[str], message: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, tmp_path / "out", text, *more)
    assert not (tmp_path / "out").exists()


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
    cache = ["--cache", str(tmp_path / "packages")]
    assert run(url, text, *cache) == 0
    remote = ShardStore(f"{url}/train", cache=tmp_path / "shards")
    local = ShardStore(str(corpus / "train"))
    assert remote.fingerprint == local.fingerprint
    assert all(
        np.array_equal(here.tokens, there.tokens) for here, there in zip(local, remote, strict=True)
    )
    capsys.readouterr()
    assert run(url, text, *cache) == 0
    assert "already built" in capsys.readouterr().err
    message = refused(capsys, url, text, "--sequence-tokens", "16", *cache)
    assert "holds another corpus (sequence_tokens 32, not 16)" in message
    # Without the manifest, which goes last, an upload counts as unfinished and is done again.
    s3.client(dict(s3_lab.environment)).delete_object(
        Bucket=s3_lab.bucket, Key=f"{tmp_path.name}/manifest.json"
    )
    assert run(url, text, *cache) == 0
    message = refused(capsys, "s3://no-such-bucket/x", text, *cache)
    assert "There is no bucket no-such-bucket" in message


def test_an_upload_that_fails_is_explained(
    s3_lab: S3Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_lab.environment.items():
        monkeypatch.setenv(name, value)
    place = Place(out="s3://no-such-bucket/x", scratch=tmp_path)
    with pytest.raises(DataError, match="There is no bucket no-such-bucket at http"):
        place.finished({})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    place = Place(out=f"s3://{s3_lab.bucket}/x", scratch=tmp_path)
    with (
        pytest.raises(DataError, match=r"refuses the credentials for s3://\S+/x/manifest.json"),
        place.fill(report=lambda _: None) as directory,
    ):
        (directory / "manifest.json").write_text("{}")
