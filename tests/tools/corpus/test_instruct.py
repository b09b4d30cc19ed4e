from pathlib import Path

import numpy as np
import pytest

from tests.tools.corpus.text import SUBJECTS, write_text
from tools.corpus.__main__ import main
from tools.corpus.instruct import PROMPT, sample
from tools.corpus.tokenizer import CorpusTokenizer
from train.data.store.shards import ShardStore


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("instruct")
    text = write_text(directory / "notes")
    out = directory / "corpus"
    arguments = ["--sources", str(text), "--vocabulary", "300", "--sequence-tokens", "128"]
    assert main(["build", str(out), *arguments]) == 0
    return out


def run(out: Path, corpus: Path, *more: str) -> int:
    arguments = ["--samples", "60", "--validation-samples", "5", *more]
    return main(["instruct", str(out), "--corpus", str(corpus), *arguments])


@pytest.fixture(scope="module")
def task(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("task") / "task"
    assert run(out, corpus) == 0
    return out


def test_the_passage_is_a_span_and_only_the_answer_is_scored(task: Path, corpus: Path) -> None:
    tokenizer = CorpusTokenizer.from_file(corpus / "tokenizer.json")
    special = tokenizer.special
    store = ShardStore(str(task / "train"))
    assert len(store) == 60
    assert len(ShardStore(str(task / "validation"))) == 5
    for stored in store:
        assert stored.tokens.shape == (129,)
        assert stored.spans is not None
        assert stored.scored is not None
        [[begin, end]] = stored.spans.tolist()
        assert begin == 1
        assert 16 <= end - begin <= 32
        answer = np.flatnonzero(stored.scored)
        assert np.array_equal(answer, np.arange(answer[0], answer[-1] + 1)), "one run"
        assert stored.tokens[end] == special.paragraph
        assert tokenizer.tokenizer.decode(stored.tokens[end + 1 : answer[0]].tolist()) == PROMPT
        *words, paragraph, document = stored.tokens[stored.scored].tolist()
        assert (paragraph, document) == (special.paragraph, special.document)
        subject, title = tokenizer.tokenizer.decode(words).split(". Title: ")
        assert subject.strip() in SUBJECTS
        assert title.istitle()
        assert (stored.tokens[answer[-1] + 1 :] == special.padding).all()
        assert not (stored.tokens[: answer[-1] + 1] == special.padding).any()


def test_it_fits_the_corpus_and_counts_what_it_scores(task: Path, corpus: Path) -> None:
    manifest = ShardStore(str(corpus / "train")).manifest
    store = ShardStore(str(task / "train"))
    store.require(
        tokenizer_sha256=manifest["tokenizer_sha256"], sequence_tokens=128, vocabulary=300
    )
    assert store.manifest["kind"] == "instruction"
    counts = np.load(task / "train/token_counts.npy")
    assert counts.sum() == sum(
        int(stored.scored.sum()) for stored in store if stored.scored is not None
    )


def test_a_finished_task_is_reused_and_not_overwritten(
    task: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(task, corpus) == 0
    assert "already built" in capsys.readouterr().err
    assert run(task, corpus, "--passage-tokens", "20") == 2
    assert "passage_tokens 32, not 20" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "100000"], "train samples, not 100000: ask for fewer with --samples"),
        (["--passage-tokens", "100"], "set --passage-tokens between 16 and 64"),
        (["--corpus", "/nowhere"], "There is no data directory /nowhere/train"),
    ],
)
def test_bad_input_is_one_sentence(
    more: list[str],
    message: str,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path / "out", corpus, *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_corpus_of_unknown_origin_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.train.data.store.mds import write_mds

    write_mds(tmp_path / "foreign/train")
    assert run(tmp_path / "out", tmp_path / "foreign") == 2
    assert "was not built by `python -m tools.corpus build`" in capsys.readouterr().err.replace(
        "\n", " "
    )


def test_what_does_not_fit_a_sequence_is_left_out(corpus: Path) -> None:
    tokenizer = CorpusTokenizer.from_file(corpus / "tokenizer.json")
    parts = {"passage": np.full(4, 9), "prompt": np.full(2, 8), "answer": np.full(3, 7)}
    # 1 + 4 + 1 + 2 + 3 + 2 tokens.
    assert sample(**parts, tokenizer=tokenizer, sequence_tokens=11) is None
    stored = sample(**parts, tokenizer=tokenizer, sequence_tokens=12)
    assert stored is not None
    assert stored["tokens"].tolist() == [0, 9, 9, 9, 9, 1, 8, 8, 7, 7, 7, 1, 2]
