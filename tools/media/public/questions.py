"""Questions about pictures: VQAv2, OK-VQA, Visual Genome's, NLVR2, E-SNLI-VE."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from tools.media.public.captions import FLICKR_IMAGES, genome_places
from tools.media.public.given import Given, Read, Row, file_name, number, text, within

_LABELS: Final = ("entailment", "neutral", "contradiction")
_ESNLIVE: Final = {"train": "train", "validation": "dev", "test": "test"}


def vqa(prefix: str) -> Read:
    """VQAv2 (`v2_`) and OK-VQA (no prefix): questions and answers of ten people in two files.

    Source: visualqa.org/download, "Input questions format" and "Annotation format";
    GT-Vision-Lab/VQA, `vqa.py`; okvqa.allenai.org/download.
    """

    def read(given: Given, split: str) -> Iterator[Row]:
        part = f"{split}2014"
        found = given.json(f"{prefix}mscoco_{part}_annotations.json")
        answers: dict[int, list[str]] = {}
        for told in given.listed("annotations", found["annotations"]):
            said = [text(answer, "answer") for answer in told["answers"]]
            answers[number(told, "question_id")] = _commonest_first(said)
        asked = given.json(f"{prefix}OpenEnded_mscoco_{part}_questions.json")
        for question in given.listed("questions", asked["questions"]):
            id, image = number(question, "question_id"), number(question, "image_id")
            if id not in answers:
                raise ValueError(f"question {id} has no annotation")
            places = within((part, f"images/{part}", ""), f"COCO_{part}_{image:012d}.jpg")
            yield _asked(str(id), image, places, text(question, "question"), answers.pop(id))
        if answers:
            raise ValueError(f"the annotation of question {min(answers)} is of no question")

    return read


def genome_questions(given: Given, split: str) -> Iterator[Row]:
    """Visual Genome's questions (`question_answers.json`), each with one answer.

    Source: homes.cs.washington.edu/~ranjay/visualgenome/api, "question answers".
    """
    for image in given.listed("", given.json("question_answers.json")):
        id = number(image, "id")
        for asked in image["qas"]:
            told = [text(asked, "answer")]
            question = text(asked, "question")
            yield _asked(str(number(asked, "qa_id")), id, genome_places(id), question, told)


def nlvr2(given: Given, split: str) -> Iterator[Row]:
    """Sentences about two photographs (`train.json`, `dev.json`, `test1.json`, a JSON a line).

    A photograph is called by the identifier without its last number; what ends with `.png` may be a
    JPEG.

    Source: lil-lab/nlvr, `nlvr2/README.md`.
    """
    for told in given.json_lines(f"{split}.json"):
        id = text(told, "identifier")
        pair = file_name(id.rpartition("-")[0])
        directories = (f"images/{split}", split, "")
        if "directory" in told:  # of training, whose photographs lie in a hundred of them
            under = file_name(str(told["directory"]))
            directories = (f"images/{split}/{under}", f"{split}/{under}", *directories)
        label = str(told["label"])
        if label not in ("True", "False"):
            raise ValueError(f"label is {label!r}, neither True nor False")
        yield {
            "id": id,
            # Pairs of one set of eight photographs share them.
            "group": "-".join(id.split("-")[:2]),
            "left": within(directories, f"{pair}-img0.png"),
            "right": within(directories, f"{pair}-img1.png"),
            "sentence": text(told, "sentence"),
            "label": int(label == "True"),
        }


def esnlive(given: Given, split: str) -> Iterator[Row]:
    """Whether a photograph of Flickr30k says so, and why (`esnlive_train.csv`, `_dev`, `_test`).

    Source: maximek3/e-ViL, `data/esnlive_dev.csv`.
    """
    for at, told in enumerate(given.table(f"esnlive_{_ESNLIVE[split]}.csv")):
        label = text(told, "gold_label")
        if label not in _LABELS:
            raise ValueError(f"gold_label is {label!r}, none of {', '.join(_LABELS)}")
        name = file_name(text(told, "Flickr30kID"))
        yield {
            "id": f"{at}/{text(told, 'pairID')}",
            "group": name,
            "image": within(FLICKR_IMAGES, name),
            "hypothesis": text(told, "hypothesis"),
            "label": label,
            "explanation": text(told, "explanation"),
        }


def _asked(id: str, image: int, places: tuple[str, ...], question: str, answers: list[str]) -> Row:
    about = {"id": id, "group": str(image), "image": places}
    return {**about, "question": question, "answers": answers}


def _commonest_first(answers: list[str]) -> list[str]:
    """All of them: the first is what is learned, and how many say the same is what counts."""
    times = Counter(answers)
    return sorted(answers, key=lambda answer: -times[answer])
