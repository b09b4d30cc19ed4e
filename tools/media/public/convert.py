"""Public data sets by name, and what they become: `tasks` and `documents`, a file for each split.

Media are not copied. Both directories hold a hidden link, `.media`, to where they lie, and records
name them by it.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from tools.media.folder import Folder
from tools.media.public import captions, forms, questions, speech
from tools.media.public.forms import Form
from tools.media.public.given import Given, Read, Row
from tools.packages.used import Packages
from train.errors import DataError

FORMAT_VERSION: Final = 1
LINK: Final = ".media"
_KARPATHY: Final = ("train", "val", "test")
_ROWS_AT_ONCE: Final = 1_024
_SHOWN: Final = 3


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A public data set.

    Attributes:
        about: what it is, in a line.
        licence: as its publishers put it.
        splits: that can be had.
        form: of its records.
        read: gives those of a split.
    """

    about: str
    licence: str
    splits: tuple[str, ...]
    form: Form
    read: Read


DATASETS: Final[Mapping[str, Dataset]] = {
    "cc3m": Dataset(
        about="pictures of the web with what was written beside them",
        licence="captions: Google's terms of Conceptual Captions; pictures: their owners'",
        splits=("train", "validation"),
        form=forms.CAPTIONS,
        read=captions.cc3m,
    ),
    "coco": Dataset(
        about="photographs with five captions each",
        licence="captions: CC-BY-4.0; pictures: Flickr's terms",
        splits=(
            *("train", "restval", "val", "test"),
            *("train2014", "val2014", "train2017", "val2017"),
        ),
        form=forms.CAPTIONS,
        read=captions.coco,
    ),
    "esnlive": Dataset(
        about="whether a photograph says so, and why",
        licence="e-ViL's terms; pictures: Flickr's terms",
        splits=("train", "validation", "test"),
        form=forms.EXPLANATION,
        read=questions.esnlive,
    ),
    "flickr30k": Dataset(
        about="photographs with five captions each",
        licence="research alone, as its publishers say; pictures: Flickr's terms",
        splits=(*_KARPATHY, "all"),
        form=forms.CAPTIONS,
        read=captions.flickr30k,
    ),
    "librispeech": Dataset(
        about="books read aloud",
        licence="CC-BY-4.0",
        splits=(
            *("train-clean-100", "train-clean-360", "train-other-500"),
            *("dev-clean", "dev-other", "test-clean", "test-other"),
        ),
        form=forms.TRANSCRIPT,
        read=speech.librispeech,
    ),
    "msrvtt": Dataset(
        about="clips with twenty captions each",
        licence="research alone, as its publishers say; clips: their owners'",
        splits=("train", "validate", "test"),
        form=forms.CLIPS,
        read=captions.msrvtt,
    ),
    "nlvr2": Dataset(
        about="whether a sentence is true of two photographs",
        licence="sentences: CC-BY-4.0; pictures: their owners'",
        splits=("train", "dev", "test1"),
        form=forms.PAIR,
        read=questions.nlvr2,
    ),
    "nocaps": Dataset(
        about="photographs of things that COCO has no captions of, with ten captions each",
        licence="CC-BY-2.0",
        splits=("val",),
        form=forms.CAPTIONS,
        read=captions.nocaps,
    ),
    "okvqa": Dataset(
        about="questions about photographs that take knowledge",
        licence="as its publishers say; pictures: Flickr's terms",
        splits=("train", "val"),
        form=forms.QUESTION,
        read=questions.vqa(""),
    ),
    "sbu": Dataset(
        about="photographs of Flickr with what their owners wrote",
        licence="captions and pictures: their owners'",
        splits=("train",),
        form=forms.CAPTIONS,
        read=captions.sbu,
    ),
    "visual_genome_questions": Dataset(
        about="questions about photographs",
        licence="CC-BY-4.0",
        splits=("all",),
        form=forms.QUESTION,
        read=questions.genome_questions,
    ),
    "visual_genome_regions": Dataset(
        about="photographs with phrases on their parts",
        licence="CC-BY-4.0",
        splits=("all",),
        form=forms.REGIONS,
        read=captions.regions,
    ),
    "vqav2": Dataset(
        about="questions about photographs with the answers of ten people",
        licence="questions: CC-BY-4.0; pictures: Flickr's terms",
        splits=("train", "val"),
        form=forms.QUESTION,
        read=questions.vqa("v2_"),
    ),
}


def convert(
    name: str,
    root: Path,
    out: Path,
    *,
    splits: Sequence[str],
    media: Path | None = None,
    missing: int = 0,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Make records of a data set, unless they are there.

    Args:
        name: of the data set.
        root: directory that holds it.
        out: directory; what was begun in it goes on.
        splits: of the data set.
        media: where the media lie, if elsewhere.
        missing: records of a split whose media may be missing; they are left out and counted.
        report: told what is being done.

    Returns:
        The manifest.

    Raises:
        DataError: there is no such data set or split, a file is missing, damaged or not as it is
            published, or more media are missing.
        InUseError: another process builds there.
        StorageError: it cannot be written.
    """
    dataset = _named(name, splits)
    media = root if media is None else media
    for place in (root, media):
        if not place.is_dir():
            raise DataError(f"there is no directory {place}")
    asked = {"kind": f"public {name}", "splits": [*splits], "media": os.path.abspath(media)}
    folder = Folder(out, {"format_version": FORMAT_VERSION, **asked})
    if folder.manifest is not None:
        return folder.manifest
    given = Given(root=root, media=media)
    packages = Packages(cache=root, report=report, licence_texts={name: f"{dataset.licence}\n"})
    left_out: Counter[str] = Counter()
    with folder.writing():
        for part in ("tasks", "documents"):
            _link(out / part, media)
        for split in splits:
            counts: dict[str, int] = {}  # filled while records are written

            def rows(split: str = split, counts: dict[str, int] = counts) -> Iterator[Row]:
                yield from _whole(name, dataset, given, split, missing, counts)
                packages.used[:] = _sources(name, given, dataset)

            task = f"tasks/{split}.parquet"
            folder.add(task, dataset.form.row, rows, packages, counts)
            folder.add(
                f"documents/{split}.parquet",
                dataset.form.document,
                lambda task=task: _documents(out / task, dataset.form),
                packages,
            )
        return folder.finish(left_out, tasks=["tasks"])


def _named(name: str, splits: Sequence[str]) -> Dataset:
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(DATASETS)}"
        raise DataError(f"there is no data set {name} to convert: {hint}")
    known = DATASETS[name].splits
    for split in splits:
        if split not in known:
            raise DataError(
                f"{name} has no split {split} with answers: there are {', '.join(known)}"
            )
    return DATASETS[name]


def _link(directory: Path, media: Path) -> None:
    """A hidden link to the media, which a build of a corpus does not take for documents."""
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / LINK
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.abspath(media), target_is_directory=True)


def _whole(
    name: str,
    dataset: Dataset,
    given: Given,
    split: str,
    missing: int,
    counts: dict[str, int],
) -> Iterator[Row]:
    """Rows whose media are there and whose texts are not empty; the others are counted."""
    absent: list[str] = []
    num_rows = num_empty = num_texts = 0
    for row in _read(name, dataset, given, split):
        num_rows += 1
        found: Row = {}
        for column in dataset.form.media:
            path = given.medium(row[column])
            if path is None:
                absent.append(f"{column} of {row['id']} ({row[column][0]})")
                break
            found[column] = f"{LINK}/{path}"
        else:
            for column, value in row.items():
                if isinstance(value, list):
                    row[column] = told = [each for each in value if each]
                    num_texts += len(value) - len(told)
            if any(value in ("", []) for value in row.values()):
                num_empty += 1
                continue
            yield {**row, **found}
    if len(absent) > missing:
        shown = ", ".join(absent[:_SHOWN]) + (", …" if len(absent) > _SHOWN else "")
        raise DataError(
            f"{name} {split}: {len(absent):,} of {num_rows:,} records have no file, or an empty "
            f"one, below {given.media}: {shown}; get them, say where they lie with --media, or "
            f"leave them out with --missing {len(absent)}"
        )
    if not num_rows:
        raise DataError(f"{name} {split}: there are no records below {given.root}: get it again")
    if len(absent) + num_empty == num_rows:
        raise DataError(f"{name} {split}: no record has its file and its text: get it again")
    counts[f"{split}: records whose file is missing or empty"] = len(absent)
    counts[f"{split}: records with an empty text"] = num_empty
    counts[f"{split}: empty texts beside others"] = num_texts


def _read(name: str, dataset: Dataset, given: Given, split: str) -> Iterator[Row]:
    """A split, in errors that name the record which is not as it is published."""
    try:
        yield from dataset.read(given, split)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        lacks = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{given.at or given.root} is not as {name} is published ({lacks}): get it again, or "
            "look whether it is of another data set"
        ) from error


def _documents(path: Path, form: Form) -> Iterator[Row]:
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, use_threads=False):
            for row in batch.to_pylist():
                yield from map(dict, form.documents(row))


def _sources(name: str, given: Given, dataset: Dataset) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{name}/{file}",
            "version": "",
            "file": Path(file).name,
            "sha256": found,
            "licences": [dataset.licence],
        }
        for file, found in sorted(given.used.items())
    ]
