"""A corpus of tasks: what training will read and score."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.tools.corpus.making import picture
from tests.tools.corpus.text import write_text
from tests.train.runs import run as train
from tests.train.tasks.making import ROW, SENSES, task, written
from tests.train.tasks.test_items import ASKED
from tools.corpus.__main__ import main as corpus_main
from tools.corpus.request import Request
from tools.corpus.tokenizer import CorpusTokenizer
from tools.corpus.told import built
from tools.tasks.__main__ import main
from tools.tasks.documents import TaskDocuments
from train.data.document import Document, Kind
from train.data.store.shards import ShardStore
from train.tasks.fitting import Fitting
from train.tasks.protocol import PROTOCOLS
from train.tasks.reader import TaskReader

ROWS: list[dict[str, Any]] = [
    {**ROW, "premise": f"Premise {n}. " * (1 + n % 9), "label": n % 2} for n in range(40)
]
LABELS = ("yes", "no")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("read")
    text = write_text(directory / "notes")
    build = ["build", f"prose:{text}", str(directory / "corpus"), "--vocabulary", "300"]
    assert corpus_main([*build, "--workers", "1"]) == 0
    return directory / "corpus"


def run(directory: Path, corpus: Path, *more: str, changes: tuple[str, str] = ("", "")) -> int:
    written(directory, *ROWS)
    written(directory, *ROWS[:7], split="validation")
    (directory / "task.yaml").write_text(
        SENSES.replace("DIRECTORY", str(directory)).replace(*changes)
    )
    arguments = ["--corpus", str(corpus), "--workers", "1", "--tasks", f"{directory}/task.yaml"]
    return main(["corpus", str(directory / "out"), *arguments, *more])


@pytest.mark.parametrize(
    "room",
    [
        ["--span-tokens", "32", "--sequence-tokens", "128"],
        [
            *("--experiment", "configs/experiment/tasks.yaml", "data.sequence_tokens=128"),
            "model.encoders.text.encoder.max_tokens=33",
        ],
    ],
)
def test_documents_are_contexts_unscored_and_answers_scored(
    room: list[str], tmp_path: Path, corpus: Path
) -> None:
    assert run(tmp_path, corpus, *room) == 0
    tokenizer = CorpusTokenizer.from_file(corpus / "tokenizer.json")
    store = ShardStore(str(tmp_path / "out/train"))
    assert len(store) == 40
    assert len(ShardStore(str(tmp_path / "out/validation"))) == 7
    num_spans = 0
    for number in range(len(store)):
        document = Document.from_columns(store.columns(number))
        row = ROWS[int(document.name.rpartition(":")[2])]
        begins, ends = document.spans[:, 0], document.spans[:, 1]
        assert (ends - begins).max() <= 32
        assert len(document.tokens) + 1 <= 128
        read = "".join(tokenizer.decode(document.tokens[b:e].tolist()) for b, e in document.spans)
        assert f"{row['premise']}\n{row['hypothesis']}".startswith(read)
        answer = document.tokens[document.scored]
        assert tokenizer.decode(answer.tolist()) == f" {LABELS[row['label']]}</s></d>"
        num_spans += len(document.spans)
    assert num_spans > 40
    assert (
        json.loads((tmp_path / "out/manifest.json").read_text())["splits"]["train"]["samples"] == 40
    )


@pytest.mark.parametrize(
    ("more", "changes", "told"),
    [
        (["--tasks", "a", "b"], ("", ""), "there is no task a in configs/task"),
        (["--protocol", "single", "--tasks", "capitals", "hypernyms"], ("", ""), "is of one task"),
        (["--hold-out", "topics"], ("", ""), "no task is of the cluster topics"),
        (
            ["--records", "10", "sense=3"],
            ("", ""),
            "sense is none of the tasks: did you mean senses?",
        ),
        (["--records", "many"], ("", ""), "--records many: say N, of each task, or TASK=N, of one"),
        (
            ["--evenly", "--protocol", "zero_shot"],
            ("", ""),
            "--evenly: as many of each task as --r",
        ),
        (["--demonstrations", "40"], ("", ""), "40 demonstrations are asked for, and the split"),
        (["--sequence-tokens", "8"], ('"yes"', '"yes, it follows"'), "the answer has"),
        ([], ("{{ premise }}", "{{ premis }}"), "no column premis; did you mean premise?"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(
    tmp_path: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    changes: tuple[str, str],
    told: str,
) -> None:
    assert run(tmp_path, corpus, *more, changes=changes) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out/manifest.json").exists()


def test_so_many_records_of_each_task_and_of_one(tmp_path: Path, corpus: Path) -> None:
    assert run(tmp_path, corpus, "--records", "90", "senses=60", "--evenly") == 0
    assert len(ShardStore(str(tmp_path / "out/train"))) == 60
    assert len(ShardStore(str(tmp_path / "out/validation"))) == 7


def test_what_has_no_room_is_left_out_and_named(tmp_path: Path, corpus: Path) -> None:
    changes = ('"yes"', '"yes, for the hypothesis says no more than the premise does"')
    more = ["--leave-out-long", "--sequence-tokens", "48"]
    assert run(tmp_path, corpus, *more, changes=changes) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["splits"]["train"]["samples"] == 20
    assert "longer than a sequence" in (tmp_path / "out/left_out.json").read_text()


@pytest.mark.long
def test_a_model_reads_the_answer_through_its_encoder(tmp_path: Path, corpus: Path) -> None:
    """A word of the span decides; records of validation were never seen, and are answered."""
    chance = random.Random(0)

    def record(unused: int) -> dict[str, Any]:
        label = chance.randrange(2)
        words = chance.choices(["one", "two", "three", "four", "five", "six"], k=6)
        words.insert(3, ("alpha", "omega")[label])
        return {**ROW, "premise": " ".join(words), "hypothesis": "x", "label": label}

    records = tmp_path / "records"
    written(records, *map(record, range(600)))
    written(records, *map(record, range(80)), split="validation")
    (records / "task.yaml").write_text(SENSES.replace("DIRECTORY", str(records)))
    arguments = ["--corpus", str(corpus), "--workers", "1", "--sequence-tokens", "64"]
    out = str(tmp_path / "out")
    tasks = ["--tasks", f"{records}/task.yaml", "--span-tokens", "33"]
    assert main(["corpus", out, *arguments, *tasks]) == 0
    metrics = train(
        out,
        tmp_path / "run",
        "steps=200",
        "spans={text: {kind: stored}}",
        "data.pack=fit",
        "data.attend=within",
        "batch.micro_sequences=8",
        "checkpoint.every_steps=200",
        "validation.every_steps=200",
    )
    # Three tokens an answer, of which `</s>` and `</d>` always follow: guessing gives ln 2 / 3.
    assert metrics.validation[-1].loss < 0.05


def test_pictures_of_a_task_are_items_of_its_documents(tmp_path: Path, corpus: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [{"picture": f"{number}.png", "label": number % 2} for number in range(9)]
    written(tmp_path, *rows)
    written(tmp_path, *rows[:3], split="validation")
    tokenizer = CorpusTokenizer.from_file(corpus / "tokenizer.json")
    documents = TaskDocuments(
        readers=[TaskReader(task(tmp_path, ASKED))],
        protocol=PROTOCOLS["single"],
        fitting=Fitting(
            tokenizer=tokenizer.tokenizer,
            span_tokens=None,
            sequence_tokens=64,
            vectors={Kind.IMAGE: lambda _: 4},
        ),
        tokenizer_sha256=tokenizer.sha256,
        validation_records=3,
        leaves_out_long=False,
    )
    request = Request(
        made=documents, tokenizer=corpus / "tokenizer.json", validation=0.03, workers=1,
        has_media=True,
    )  # fmt: skip
    built(str(tmp_path / "out"), request, Console(quiet=True))
    store = ShardStore(str(tmp_path / "out/train"))
    assert len(store) == 9
    for number in range(9):
        document = Document.from_columns(store.columns(number))
        row = int(document.name.rpartition(":")[2])
        [item] = document.items()
        assert (item.data, item.size) == (picture(row), (8, 8))
        read = tokenizer.decode(document.tokens.tolist())
        assert read == f"It is a {('dog', 'cat')[row % 2]}</s></d>"
        answer = tokenizer.decode(document.tokens[document.scored].tolist())
        assert answer == f" {('dog', 'cat')[row % 2]}</s></d>"


def test_without_a_model_that_sees_pictures_they_are_refused(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    for split in ("train", "validation"):
        written(tmp_path, {"picture": "0.png", "label": 0}, split=split)
    task(tmp_path, ASKED)
    arguments = ["--corpus", str(corpus), "--workers", "1", "--tasks", f"{tmp_path}/task.yaml"]
    assert main(["corpus", str(tmp_path / "out"), *arguments]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "seen/train:0: no encoder is known that reads its image: name a model that has" in told
