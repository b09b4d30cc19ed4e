"""Public data sets in their published schema become records; what is wrong with them is told."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.corpora import write_tokenizer
from tests.tools.corpus.making import build, documents
from tests.tools.media.public.making import CAPTIONS, MADE, TEN, put
from tools.corpus.tokenizer import CorpusTokenizer
from tools.media.__main__ import main
from tools.media.public.convert import DATASETS, convert
from train.data.document import Kind
from train.data.segments import MediaSegment, Segment, TextSegment
from train.errors import DataError
from train.tasks.reader import TaskReader
from train.tasks.task import Split, Task, load_tasks

TASKS = load_tasks(["public_media"])
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def converted(name: str, tmp_path: Path, *splits: str, **options: Any) -> Path:
    make, made = MADE[name]
    if not (tmp_path / "raw").exists():
        make(tmp_path / "raw")
    out = tmp_path / "out"
    convert(*(name, tmp_path / "raw", out), splits=splits or made, report=lambda _: None, **options)
    return out


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def words(segments: Sequence[Segment]) -> list[str]:
    return [part.text for part in segments if isinstance(part, TextSegment)]


def test_all_of_them_are_made_here() -> None:
    assert {*MADE} == {*DATASETS}


@pytest.mark.parametrize("name", [*MADE])
def test_every_split_becomes_rows_and_documents_of_media_that_are_there(
    name: str, tmp_path: Path
) -> None:
    out = converted(name, tmp_path)
    form = DATASETS[name].form
    for split in MADE[name][1]:
        found = rows(out, f"tasks/{split}")
        for row in found:
            for column in form.media:
                assert (out / "tasks" / row[column]).is_file()
        assert len(rows(out, f"documents/{split}")) >= len(found) > 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["left_out"] == {}
    assert manifest["sources"]
    assert {each for source in manifest["sources"] for each in source["licences"]} == {
        DATASETS[name].licence
    }


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_tasks_ask_what_becomes_of_them(task: Task, tmp_path: Path) -> None:
    name = Path(task.source.directory).parent.name
    out = converted(name, tmp_path)
    reader = TaskReader(task, directory=out / "tasks")
    for split in task.source.splits or SPLITS:
        for template in range(len(task.templates)):
            examples = [*reader.examples(split, template=template)]
            assert examples
            for example in examples:
                assert isinstance(example.context[0], MediaSegment)
                assert words(example.document())[-1] == f" {example.answers[0]}"
                assert "{" not in "".join(words(example.context))


@pytest.mark.parametrize(
    ("name", "split", "task", "document"),
    [
        ("vqav2", "val", "vqav2", ["question: How many dogs are there? answer:", " 2"]),
        ("nlvr2", "dev", "nlvr2", ["Two dogs look left.", " it is true"]),
        (
            *("esnlive", "validation", "esnlive_explanation"),
            ["The man is old.", ' it is contradiction because He is in a yard, "outdoors".'],
        ),
    ],
)
def test_a_document_is_what_the_first_template_asks(
    name: str, split: str, task: str, document: list[str], tmp_path: Path
) -> None:
    out = converted(name, tmp_path)
    told = rows(out, f"documents/{split}")[0]
    assert [each["text"] for each in told["segments"] if each["text"]] == document
    [task_there] = [each for each in TASKS if each.name == task]
    names = {theirs: ours for ours, theirs in task_there.source.splits.items()}
    reader = TaskReader(task_there, directory=out / "tasks")
    example = next(reader.examples(names.get(split, split)))  # pyright: ignore[reportArgumentType]
    assert words(example.document()) == document
    items = [part for part in example.document() if isinstance(part, MediaSegment)]
    assert len(items) == sum(each["image"] is not None for each in told["segments"])


def test_a_corpus_of_them_reads_as_the_trainer_reads_it(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    write_tokenizer(tokenizer)
    out = converted("nlvr2", tmp_path)
    # The directory, not the file: the link to the media is none of its documents.
    source = out / "documents"
    corpus = build(source, "--media", out=tmp_path / "corpus", tokenizer=tokenizer)
    found = documents(corpus)
    assert len(found) == 6
    decode = CorpusTokenizer.from_file(tokenizer).tokenizer.decode
    for document in found.values():
        left, right = document.items()
        assert (left.kind, right.kind) == (Kind.IMAGE, Kind.IMAGE)
        assert left.size == right.size == (8, 8)
        assert left.data != right.data
        told = document.tokens[document.scored].tolist()
        assert re.search(r"it is (true|false)$", decode(told))


def test_captions_are_each_a_document_and_all_a_row(tmp_path: Path) -> None:
    out = converted("coco", tmp_path, "val", "val2017")
    told = [each.strip() for each in CAPTIONS]
    [row] = rows(out, "tasks/val")
    assert row["id"] == "2"
    assert row["captions"] == told
    assert row["image"] == ".media/val2014/COCO_val2014_000000000002.jpg"
    assert [each["text"] for each in rows(out, "documents/val")] == [f" {each}" for each in told]
    assert [row["captions"] for row in rows(out, "tasks/val2017")] == [told, told]


def test_regions_of_a_picture_are_one_document(tmp_path: Path) -> None:
    out = converted("visual_genome_regions", tmp_path)
    told = rows(out, "documents/all")
    assert [each["text"] for each in told] == [" the clock is green\n\na man's shirt"] * 2


def test_all_ten_answers_are_kept_and_the_commonest_is_learned(tmp_path: Path) -> None:
    [row] = rows(converted("okvqa", tmp_path, "train"), "tasks/train")
    assert sorted(row["answers"]) == sorted(TEN)
    assert row["answers"][0] == "2"


def test_domains_readers_and_sets_are_told(tmp_path: Path) -> None:
    for name, split, column, wanted in (
        ("nocaps", "val", "domain", {"out-domain"}),
        ("librispeech", "dev-clean", "group", {"103", "2412"}),
        ("nlvr2", "dev", "group", {"dev-10171"}),
    ):
        out = converted(name, tmp_path / name, split)
        assert {row[column] for row in rows(out, f"tasks/{split}")} == wanted


def test_words_of_librispeech_are_in_lower_case(tmp_path: Path) -> None:
    out = converted("librispeech", tmp_path, "dev-clean")
    assert {row["text"] for row in rows(out, "documents/dev-clean")} == {" it's chapter one"}


def test_a_missing_picture_is_refused_by_name_or_counted(tmp_path: Path) -> None:
    converted("coco", tmp_path, "train")
    gone = tmp_path / "raw/val2014/COCO_val2014_000000000001.jpg"
    gone.unlink()
    (tmp_path / "raw/val2017/000000000285.jpg").write_bytes(b"")
    out = tmp_path / "other"
    given = ("coco", tmp_path / "raw", out)
    with pytest.raises(
        DataError,
        match=r"coco restval: 1 of 1 records have no file, or an empty one, below .*image of 1 "
        r"\(val2014/COCO_val",
    ):
        convert(*given, splits=["restval"], report=lambda _: None)
    # All of a split may not be missing.
    with pytest.raises(DataError, match="no record has its file"):
        convert(*given, splits=["restval"], missing=1, report=lambda _: None)
    manifest = convert(*given, splits=["val2017", "val"], missing=1, report=lambda _: None)
    assert manifest["left_out"] == {"val2017: records whose file is missing or empty": 1}
    assert [row["id"] for row in rows(out, "tasks/val2017")] == ["139"]


def test_media_that_lie_elsewhere(tmp_path: Path) -> None:
    make, _ = MADE["vqav2"]
    make(tmp_path / "raw")
    (tmp_path / "raw/val2014").rename(tmp_path / "val2014")
    out = converted("vqav2", tmp_path, "val", media=tmp_path)
    [row] = rows(out, "tasks/val")
    assert (out / "tasks" / row["image"]).is_file()


@pytest.mark.parametrize(
    ("name", "split", "file", "change", "told"),
    [
        ("coco", "val", "dataset_coco.json", None, "holds no dataset_coco.json"),
        ("coco", "val", "dataset_coco.json", '{"images": [', r"dataset_coco.json is not JSON, or"),
        ("coco", "val", "dataset_coco.json", {"dataset": "coco"}, "it has no images"),
        (
            *("coco", "val2017", "annotations/captions_val2017.json"),
            {"images": [], "annotations": [{"image_id": 7, "caption": "a"}]},
            "it has captions of image 7, which is none of its images",
        ),
        (
            *("nocaps", "val", "nocaps_val_4500_captions.json"),
            {"images": [{"id": "7", "file_name": "7.jpg"}], "annotations": []},
            r"images\[0\] is not as nocaps is published \(id is str, not a whole number\)",
        ),
        ("cc3m", "train", "Train_GCC-training.tsv", "a b\n", r"tsv:1 .*1 columns, not 2"),
        (
            *("sbu", "train", "dataset/SBU_captioned_photo_dataset_captions.txt", "one\n"),
            "there are 2 addresses and 1 captions",
        ),
        (
            *("vqav2", "val", "v2_OpenEnded_mscoco_val2014_questions.json"),
            {"questions": [{"image_id": 1, "question": "Is it?", "question_id": 9}]},
            r"questions\[0\] .*question 9 has no annotation",
        ),
        (
            *("vqav2", "val", "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": []}),
            "the annotation of question 458752000 is of no question",
        ),
        ("nlvr2", "dev", "dev.json", '{"sentence": "a"', r"dev.json:1 is not JSON"),
        (
            *("nlvr2", "dev", "dev.json", '{"identifier": "dev-1-0-0", "label": "yes"}'),
            "label is 'yes', neither True nor False",
        ),
        (
            *("esnlive", "test", "data/esnlive_test.csv", "pairID,gold_label\n1,maybe\n"),
            r"test.csv:2 .*gold_label is 'maybe'",
        ),
        (
            *("librispeech", "dev-clean"),
            "LibriSpeech/dev-clean/103/1240/103-1240.trans.txt",
            *("104-1240-0000 IT IS\n", "it begins with '104-1240-0000'"),
        ),
        ("msrvtt", "test", "test_videodatainfo.json", {"videos": []}, "it has no sentences"),
        ("sbu", "train", "dataset/SBU_captioned_photo_dataset_urls.txt", b"\xff\n", "not UTF-8"),
    ],
)
def test_what_is_not_as_it_is_published(
    name: str, split: str, file: str, change: object, told: str, tmp_path: Path
) -> None:
    make, _ = MADE[name]
    make(tmp_path / "raw")
    if change is None:
        (tmp_path / "raw" / file).unlink()
    else:
        put(tmp_path / "raw", file, change)
    with pytest.raises(DataError, match=told):
        converted(name, tmp_path, split)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["coco_2014"], "there is no data set coco_2014 to convert: did you mean"),
        (["coco", "--split", "dev"], "coco has no split dev with answers: there are train"),
        (["coco", "--media", "nowhere"], "there is no directory "),
    ],
)
def test_the_command_refuses(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = arguments
    given = ["convert", name, str(tmp_path), str(tmp_path / "out"), "--split", "val", *options]
    assert main(given) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_tells_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, _ = MADE["esnlive"]
    make(tmp_path / "raw")
    told = "a,pairID,Flickr30kID,hypothesis,gold_label,explanation\n" + "".join(
        f"{at},x,4465359505.jpg,A man.,neutral,{why}\n" for at, why in enumerate(("", "He is."))
    )
    put(tmp_path / "raw", "data/esnlive_dev.csv", told)
    out = tmp_path / "out"
    given = ["convert", "esnlive", str(tmp_path / "raw"), str(out), "--split", "validation"]
    assert main(given) in (None, 0)
    captured = capsys.readouterr()
    assert f"{out}: 2 records in 2 files (e-ViL's terms" in captured.out
    assert "left out: 1 validation: records with an empty text" in captured.err
    # Again, all is there.
    assert main(given) in (None, 0)
