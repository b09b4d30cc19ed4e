"""Pictures and clips with captions: COCO, Flickr30k, NoCaps, CC3M, SBU, Visual Genome, MSR-VTT."""

import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Final

from tools.media.public.given import Given, Row, file_name, number, text, within

FLICKR_IMAGES: Final = ("flickr30k-images", "flickr30k_images", "images", "")
_NOCAPS_IMAGES: Final = ("val", "images", "validation", "")
_VIDEOS: Final = ("TrainValVideo", "TestVideo", "videos/all", "videos", "all", "")
_CC3M: Final = {
    "train": ("training", "Train_GCC-training.tsv", "Train-GCC-training.tsv"),
    "validation": ("validation", "Validation_GCC-1.1.0-Validation.tsv"),
}
_SHARD: Final = 10_000
"""Pictures in a directory of img2dataset."""


def coco(given: Given, split: str) -> Iterator[Row]:
    """Karpathy's splits (`dataset_coco.json`), or the official ones (`captions_val2014.json`).

    Source: Karpathy and Li, caption_datasets.zip; cocodataset.org, "Data format".
    """
    if split[-4:].isdecimal():
        found = given.json(f"captions_{split}.json")
        yield from _in_coco_format(given, found, (split, f"images/{split}", ""))
        return
    for image in _karpathy(given, "dataset_coco.json", split):
        directory = file_name(text(image, "filepath"))
        name = file_name(text(image, "filename"))
        yield _captioned(
            str(number(image, "cocoid")),
            within((directory, f"images/{directory}", ""), name),
            [text(sentence, "raw") for sentence in image["sentences"]],
        )


def flickr30k(given: Given, split: str) -> Iterator[Row]:
    """Karpathy's splits (`dataset_flickr30k.json`), or `all` that `results_20130124.token` has.

    Source: Karpathy and Li, caption_datasets.zip; Young et al. 2014, readme of flickr30k.tar.gz.
    """
    if split == "all":
        captions: dict[str, list[str]] = {}
        for place, caption in given.tabbed(given.path("results_20130124.token"), 2):
            captions.setdefault(file_name(place.rpartition("#")[0]), []).append(caption.strip())
        for name, told in captions.items():
            yield _captioned(PurePosixPath(name).stem, within(FLICKR_IMAGES, name), told)
        return
    for image in _karpathy(given, "dataset_flickr30k.json", split):
        name = file_name(text(image, "filename"))
        told = [text(sentence, "raw") for sentence in image["sentences"]]
        yield _captioned(PurePosixPath(name).stem, within(FLICKR_IMAGES, name), told)


def nocaps(given: Given, split: str) -> Iterator[Row]:
    """Validation, with the domain of each picture: `in-domain`, `near-domain` or `out-domain`.

    Source: nocaps.org/download; `nocaps_val_4500_captions.json`.
    """
    yield from _in_coco_format(given, given.json("nocaps_val_4500_captions.json"), _NOCAPS_IMAGES)


def cc3m(given: Given, split: str) -> Iterator[Row]:
    """Captions with the addresses of their pictures, as whoever downloads them calls these.

    A picture is called by the CRC-32 of its address, or by its row and that, in `training` or
    `validation` (the two public versions of DownloadConceptualCaptions); or by its row, as
    img2dataset calls files (`00012/000120034.jpg`).

    Source: ai.google.com/research/ConceptualCaptions; igorbrigadir/DownloadConceptualCaptions,
    `download_data.py`; rom1504/img2dataset, README.
    """
    directory, *names = _CC3M[split]
    first = 0
    for at, (caption, url) in enumerate(given.tabbed(given.path(*names), 2)):
        if (caption, url) == ("caption", "url"):  # img2dataset wants a header
            first = at + 1
            continue
        row, code = at - first, zlib.crc32(url.encode())
        shard = f"{row // _SHARD:05d}/{row // _SHARD:05d}{row % _SHARD:04d}.jpg"
        places = (f"{directory}/{code}", f"{directory}/{row}_{code}", f"{directory}/{shard}", shard)
        yield _captioned(str(row), places, [caption.strip()])


def sbu(given: Given, split: str) -> Iterator[Row]:
    """Captions and addresses line by line; a picture is called as its address ends.

    Source: Ordonez et al. 2011; pytorch/vision, `torchvision/datasets/sbu.py`.
    """
    files = [given.path(f"SBU_captioned_photo_dataset_{part}.txt") for part in ("urls", "captions")]
    urls, captions = ([*given.lines(path)] for path in files)
    if len(urls) != len(captions):
        raise ValueError(f"there are {len(urls):,} addresses and {len(captions):,} captions")
    for at, (url, caption) in enumerate(zip(urls, captions, strict=True), 1):
        given.at = f"{files[0]}:{at}"
        name = file_name(url.strip())
        places = within(("dataset", "images", ""), name)
        yield _captioned(PurePosixPath(name).stem, places, [caption.strip()])


def regions(given: Given, split: str) -> Iterator[Row]:
    """Visual Genome's phrases on regions of pictures (`region_descriptions.json`), in their order.

    Source: homes.cs.washington.edu/~ranjay/visualgenome/api, "region descriptions".
    """
    for image in given.listed("", given.json("region_descriptions.json")):
        id = number(image, "id")
        told = [text(region, "phrase") for region in image["regions"]]
        yield _captioned(str(id), genome_places(id), told)


def genome_places(id: int) -> tuple[str, ...]:
    """Where a picture of Visual Genome may lie: both archives, as they unpack."""
    directories = ("VG_100K", "VG_100K_2")
    return within((*directories, *(f"images/{each}" for each in directories)), f"{id}.jpg")


def msrvtt(given: Given, split: str) -> Iterator[Row]:
    """Clips of `TrainValVideo` and `TestVideo`, twenty captions each.

    Source: ms-multimedia-challenge.com/2016/dataset; `train_val_videodatainfo.json`.
    """
    is_test = split == "test"
    found = given.json(f"{'test' if is_test else 'train_val'}_videodatainfo.json")
    captions: dict[str, list[str]] = {}
    for sentence in given.listed("sentences", found["sentences"]):
        captions.setdefault(text(sentence, "video_id"), []).append(text(sentence, "caption"))
    for video in given.listed("videos", found["videos"]):
        id = file_name(text(video, "video_id"))
        if is_test or text(video, "split") == split:
            row = _captioned(id, within(_VIDEOS, f"{id}.mp4"), captions.get(id, []))
            yield {"video": row.pop("image"), **row}


def _karpathy(given: Given, name: str, split: str) -> Iterator[Row]:
    for image in given.listed("images", given.json(name)["images"]):
        if text(image, "split") == split:
            yield image


def _in_coco_format(given: Given, found: Any, directories: tuple[str, ...]) -> Iterator[Row]:
    captions: dict[int, list[str]] = {}
    for told in given.listed("annotations", found["annotations"]):
        captions.setdefault(number(told, "image_id"), []).append(text(told, "caption"))
    for image in given.listed("images", found["images"]):
        id, name = number(image, "id"), file_name(text(image, "file_name"))
        row = _captioned(str(id), within(directories, name), captions.pop(id, []))
        yield {**row, "domain": image.get("domain")}
    if captions:
        raise ValueError(f"it has captions of image {min(captions)}, which is none of its images")


def _captioned(id: str, places: tuple[str, ...], captions: list[str]) -> Row:
    return {"id": id, "group": id, "image": places, "captions": captions, "domain": None}
