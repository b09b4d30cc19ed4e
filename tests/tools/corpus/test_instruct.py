from pathlib import Path

import pytest

from tests.tools.corpus.text import SUBJECTS, write_text
from tools.corpus.__main__ import main
from tools.corpus.instruct import PROMPT
from tools.corpus.tokenizer import CorpusTokenizer
from train.data.document import Document
from train.data.store.shards import ShardStore

ALONE = ("--workers", "1")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("instruct")
    text = write_text(directory / "notes")
    out = directory / "corpus"
    assert main(["build", f"prose:{text}", str(out), "--vocabulary", "300", *ALONE]) == 0
    return out


def run(out: Path, corpus: Path, *more: str) -> int:
    arguments = ["--samples", "60", "--validation-samples", "5", "--passage-tokens", "32", *ALONE]
    arguments += more
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
    for number in range(len(store)):
        document = Document.from_columns(store.columns(number))
        (passage, _, _), (between, _, is_end), (prompt, _, is_asked), (answer, _, is_answer) = [
            (document.tokens[end - size : end].tolist(), kind, scored)
            for (kind, size, scored), end in zip(
                document.segments.tolist(), document.segments[:, 1].cumsum(), strict=True
            )
        ]
        assert document.spans.tolist() == [[0, len(passage)]]
        assert 16 <= len(passage) <= 36
        assert between == [special.paragraph]
        assert tokenizer.tokenizer.decode(prompt) == PROMPT
        assert (is_end, is_asked, is_answer) == (0, 0, 1)
        *words, paragraph, end = answer
        assert (paragraph, end) == (special.paragraph, special.document)
        subject, title = tokenizer.tokenizer.decode(words).split(". Title: ")
        assert subject[0] == " ", "one line with the prompt"
        assert subject[1:] in SUBJECTS
        assert title.istitle()


def test_documents_stay_in_the_split_that_they_have_in_the_corpus(task: Path, corpus: Path) -> None:
    for split in ("train", "validation"):
        stores = (ShardStore(str(root / split)) for root in (task, corpus))
        ours, theirs = ({s.columns(n)["id"] for n in range(len(s))} for s in stores)
        assert {name.partition("#")[0] for name in ours} <= theirs


def test_the_task_is_sound_and_has_the_tokenizer_of_the_corpus(task: Path, corpus: Path) -> None:
    assert main(["verify", str(task), *ALONE]) == 0
    assert (task / "tokenizer.json").read_bytes() == (corpus / "tokenizer.json").read_bytes()


def test_a_finished_task_is_reused_and_not_overwritten(
    task: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(task, corpus) == 0
    assert "already built" in capsys.readouterr().err
    assert run(task, corpus, "--passage-tokens", "20") == 2
    assert "the files of source instruct changed" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "100000"], "train samples, not 100000: ask for fewer with --samples"),
        (["--passage-tokens", "10"], "--passage-tokens 10: give 16 or more"),
        (["--corpus", "/nowhere"], "/nowhere is no corpus"),
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
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_corpus_of_unknown_origin_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("A text that is no documentation.")
    source = [str(tmp_path / "a.txt"), str(tmp_path / "foreign"), "--validation", "0"]
    assert main(["build", *source, "--vocabulary", "260", *ALONE]) == 0
    assert run(tmp_path / "out", tmp_path / "foreign") == 2
    assert "was not built from documentation" in " ".join(capsys.readouterr().err.split())
