"""Public data sets in small, as they lie on disk: each file in its published schema."""

import csv
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.tools.corpus.making import picture, sound, video

CAPTIONS: Final = ["A man rides a wave.", "A surfer on a green wave.\n"]
TEN: Final = ["2", "two", "2", "2", "3", "2", "two", "2", "4", "2"]
"""Answers of ten people: `2` six times, `two` twice."""


def put(root: Path, name: str, content: object) -> None:
    """Write a file: bytes and text as they are, what else as JSON."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def coco(root: Path) -> None:
    """Karpathy's JSON, and the official captions of val2017."""
    images: list[dict[str, Any]] = []
    for at, (split, directory) in enumerate(
        [("train", "train2014"), ("restval", "val2014"), ("val", "val2014"), ("test", "val2014")]
    ):
        name = f"COCO_{directory}_{at:012d}.jpg"
        put(root, f"{directory}/{name}", picture(at, kind="JPEG"))
        sentences = [
            {"tokens": told.lower().split(), "raw": told, "imgid": at, "sentid": 10 * at + number}
            for number, told in enumerate(CAPTIONS)
        ]
        images.append(
            {
                **{"filepath": directory, "sentids": [each["sentid"] for each in sentences]},
                **{"filename": name, "imgid": at, "split": split, "sentences": sentences},
                "cocoid": at,
            }
        )
    put(root, "dataset_coco.json", {"images": images, "dataset": "coco"})
    put(root, "annotations/captions_val2017.json", coco_format(root, "val2017", [139, 285]))


def coco_format(root: Path, directory: str, ids: Sequence[int], **more: Any) -> dict[str, Any]:
    """Captions as COCO publishes them, and their pictures."""
    names = [f"{id:012d}.jpg" for id in ids]
    for id, name in zip(ids, names, strict=True):
        put(root, f"{directory}/{name}", picture(id, kind="JPEG"))
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "name": "Attribution License"}],
        "images": [
            {"id": id, "file_name": name, "height": 8, "width": 8, "license": 1, **more}
            for id, name in zip(ids, names, strict=True)
        ],
        "annotations": [
            {"image_id": id, "id": 10 * id + number, "caption": told}
            for number, told in enumerate(CAPTIONS)
            for id in ids
        ],
    }


def flickr30k(root: Path) -> None:
    """Karpathy's JSON, and the token file of the whole."""
    images: list[dict[str, Any]] = []
    lines: list[str] = []
    for at, split in enumerate(("train", "val", "test")):
        name = f"{1000092795 + at}.jpg"
        put(root, f"flickr30k-images/{name}", picture(at, kind="JPEG"))
        sentences = [{"tokens": [], "raw": told, "imgid": at} for told in CAPTIONS]
        images.append({"filename": name, "imgid": at, "split": split, "sentences": sentences})
        lines += [f"{name}#{number}\t{told.strip()}\n" for number, told in enumerate(CAPTIONS)]
    put(root, "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    put(root, "results_20130124.token", "".join(lines))


def nocaps(root: Path) -> None:
    """Validation, whose pictures have a domain."""
    about = {"domain": "out-domain", "open_images_id": "0013ea2087020901", "coco_url": "https://x"}
    put(root, "nocaps_val_4500_captions.json", coco_format(root, "val", [0, 1], **about))


def cc3m(root: Path) -> None:
    """Pictures as two versions of the downloader and img2dataset call them."""
    urls = [f"http://example.org/{number}.jpg" for number in range(3)]
    codes = [zlib.crc32(url.encode()) for url in urls]
    for at, name in enumerate((f"{codes[0]}", f"1_{codes[1]}", "00000/000000002.jpg")):
        put(root, f"training/{name}", picture(at, kind="JPEG"))
    rows = [f"a picture , number {number} \t{url}\n" for number, url in enumerate(urls)]
    put(root, "Train_GCC-training.tsv", "".join(rows))
    put(root, "validation/000000000.jpg", picture())
    put(root, f"validation/{codes[0]}", picture())
    put(root, "Validation_GCC-1.1.0-Validation.tsv", "caption\turl\n" + rows[0])


def sbu(root: Path) -> None:
    """Addresses and captions line by line."""
    names = ["4385058960_b0f291553e.jpg", "148_f0.jpg"]
    for at, name in enumerate(names):
        put(root, f"dataset/{name}", picture(at, kind="JPEG"))
    urls = "".join(f"http://static.flickr.com/2723/{name}\r\n" for name in names)
    put(root, "dataset/SBU_captioned_photo_dataset_urls.txt", urls)
    told = "".join(f"{told.strip()}\r\n" for told in CAPTIONS)
    put(root, "dataset/SBU_captioned_photo_dataset_captions.txt", told)


def visual_genome(root: Path) -> None:
    """Regions and questions of a picture in either archive."""
    for id, directory in ((1, "VG_100K_2"), (2, "VG_100K")):
        put(root, f"{directory}/{id}.jpg", picture(id, kind="JPEG"))
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    regions = [
        {
            "id": id,
            "regions": [
                {"region_id": 9 * id + at, "image_id": id, "phrase": phrase, **box}
                for at, phrase in enumerate(["the clock is green", "a man's shirt"])
            ],
        }
        for id in (1, 2)
    ]
    put(root, "region_descriptions.json", regions)
    questions = [
        {
            "id": id,
            "qas": [
                {
                    **{"qa_id": 900 + id, "image_id": id, "question": "What colour is it?"},
                    **{"answer": "Green.", "a_objects": [], "q_objects": []},
                }
            ],
        }
        for id in (1, 2)
    ]
    put(root, "question_answers.json", questions)


def vqa(root: Path, prefix: str, **more: str) -> None:
    """Questions and answers in two files, of train2014 and val2014."""
    for part in ("train2014", "val2014"):
        about = {"info": {}, "data_type": "mscoco", "data_subtype": part, "license": {}}
        put(root, f"{part}/COCO_{part}_{458752:012d}.jpg", picture(kind="JPEG"))
        questions = [
            {"image_id": 458752, "question": "How many dogs are there?", "question_id": 458752000}
        ]
        put(
            root,
            f"{prefix}OpenEnded_mscoco_{part}_questions.json",
            {**about, "task_type": "Open-Ended", "questions": questions},
        )
        answers = [
            {"answer": told, "answer_confidence": "yes", "answer_id": number, **more}
            for number, told in enumerate(TEN, 1)
        ]
        annotations = [
            {
                **{"question_type": "how many", "answer_type": "number", "answers": answers},
                **{"image_id": 458752, "question_id": 458752000, "multiple_choice_answer": "2"},
            }
        ]
        put(root, f"{prefix}mscoco_{part}_annotations.json", {**about, "annotations": annotations})


def vqav2(root: Path) -> None:
    """VQAv2."""
    vqa(root, "v2_")


def okvqa(root: Path) -> None:
    """OK-VQA, whose answers are stemmed, and as they were."""
    vqa(root, "", raw_answer="two")


def nlvr2(root: Path) -> None:
    """A line for each sentence; photographs of training lie in numbered directories."""
    for split, directory in (("train", "images/train/7"), ("dev", "dev"), ("test1", "test1")):
        lines: list[str] = []
        for label in ("True", "False"):
            identifier = f"{split}-10171-0-{int(label == 'False')}"
            told: dict[str, Any] = {
                **{"sentence": "Two dogs look left.", "identifier": identifier, "label": label},
                **{"left_url": "http://a", "right_url": "http://b", "writer": "3"},
                **{"synset": "dog", "query": "dogs1", "validation": {"4": label}},
            }
            if split == "train":
                told["directory"] = "7"
            lines.append(json.dumps(told) + "\n")
        put(root, f"{split}.json", "".join(lines))
        for number in (0, 1):
            put(root, f"{directory}/{split}-10171-0-img{number}.png", picture(number))


def esnlive(root: Path) -> None:
    """CSV with a column of numbers that has no name."""
    for split in ("train", "dev", "test"):
        path = root / f"data/esnlive_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["", "pairID", "Flickr30kID", "hypothesis", "gold_label", "explanation"])
            for at, label in enumerate(("contradiction", "neutral", "entailment")):
                name = "4465359505.jpg"
                told = 'He is in a yard, "outdoors".'
                rows.writerow([at, f"{name}#2r1c", name, "The man is old.", label, told])
    put(root, "flickr30k_images/4465359505.jpg", picture(kind="JPEG"))


def librispeech(root: Path) -> None:
    """Two readers, of whom one reads two chapters."""
    for split in ("train-clean-100", "dev-clean", "test-clean"):
        for reader, chapter in ((103, 1240), (103, 1241), (2412, 153954)):
            within = f"LibriSpeech/{split}/{reader}/{chapter}"
            ids = [f"{reader}-{chapter}-{number:04d}" for number in range(2)]
            lines = "".join(f"{id} IT'S CHAPTER ONE\n" for id in ids)
            put(root, f"{within}/{reader}-{chapter}.trans.txt", lines)
            for id in ids:
                put(root, f"{within}/{id}.flac", sound())


def msrvtt(root: Path) -> None:
    """Clips with captions of other clips between."""
    for name, directory, splits in (
        ("train_val", "TrainValVideo", ("train", "validate")),
        ("test", "TestVideo", ("test",)),
    ):
        first = 7010 * (name == "test")
        videos = [
            {
                **{"category": 9, "url": "https://y", "video_id": f"video{first + at}"},
                **{"start time": 137.72, "end time": 149.44, "split": split, "id": first + at},
            }
            for at, split in enumerate(splits)
        ]
        sentences = [
            {"caption": told, "video_id": each["video_id"], "sen_id": number}
            for number, told in enumerate(CAPTIONS)
            for each in videos
        ]
        told = {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}
        put(root, f"{name}_videodatainfo.json", told)
        for each in videos:
            put(root, f"{directory}/{each['video_id']}.mp4", video())


MADE: Final[dict[str, tuple[Callable[[Path], None], tuple[str, ...]]]] = {
    "cc3m": (cc3m, ("train", "validation")),
    "coco": (coco, ("train", "restval", "val", "test", "val2017")),
    "esnlive": (esnlive, ("train", "validation", "test")),
    "flickr30k": (flickr30k, ("train", "val", "test", "all")),
    "librispeech": (librispeech, ("train-clean-100", "dev-clean", "test-clean")),
    "msrvtt": (msrvtt, ("train", "validate", "test")),
    "nlvr2": (nlvr2, ("train", "dev", "test1")),
    "nocaps": (nocaps, ("val",)),
    "okvqa": (okvqa, ("train", "val")),
    "sbu": (sbu, ("train",)),
    "visual_genome_questions": (visual_genome, ("all",)),
    "visual_genome_regions": (visual_genome, ("all",)),
    "vqav2": (vqav2, ("train", "val")),
}
"""By name: what writes it, and the splits that are written."""
