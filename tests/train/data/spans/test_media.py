"""Readers of items: many at a time as one by one, and errors that name the item."""

import dataclasses

import numpy as np
import pytest
import torch

from model.encoders.image import ImageEncoderConfig
from tests.pictures import png
from train.data.document import Kind
from train.data.sample import Sample, SampleItem
from train.data.spans.image import ImageReader
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.errors import DataError

S = 64
ENCODER = ImageEncoderConfig(
    kind="image", width=16, num_layers=1, heads=2, feed_forward=32, patch_pixels=8, max_patches=4
)


def reader(threads: int) -> ImageReader:
    capacity = SpanCapacity(tokens=S, spans=16, longest_tokens=4)
    return ImageReader(medium=Kind.IMAGE, capacity=capacity, encoder=ENCODER, threads=threads)


def sample_of(*files: bytes) -> Sample:
    items = [
        SampleItem(
            kind=Kind.IMAGE,
            size=(16, 16),
            data=data,
            start=1 + 5 * place,
            stop=5 + 5 * place,
            name=f"image {place + 1} of document 7",
        )
        for place, data in enumerate(files)
    ]
    return Sample(id=0, tokens=np.full(S + 1, 9), items=tuple(items))


def packed(samples: list[Sample], threads: int) -> dict[str, object]:
    mine = reader(threads)
    spans = FlatSpans.of([mine.choose(sample, epoch=3) for sample in samples])
    return vars(mine.pack(samples, np.zeros((len(samples), S), np.int64), spans))


def colour(number: int) -> bytes:
    return png(16, 16, colour=(20 * number, 10, 200))


def test_many_at_a_time_are_as_one_by_one() -> None:
    samples = [sample_of(*map(colour, range(9))), sample_of(), sample_of(colour(10))]
    one, many = packed(samples, 1), packed(samples, 4)
    assert one["num_spans"] == 10
    assert one.keys() == many.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, many[name]), name  # pyright: ignore[reportArgumentType]
        else:
            assert value == many[name], name


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_that_cannot_be_read_is_named(threads: int) -> None:
    files = [colour(number) for number in range(6)]
    files[2], files[4] = files[2][:50], b""
    told = r"^image 3 of document 7 cannot be read \(.*\): build the corpus again without it, or na"
    with pytest.raises(DataError, match=told):
        packed([sample_of(*files)], threads)


def test_items_of_another_modality_are_left_to_their_reader() -> None:
    sample = sample_of(colour(1), colour(2))
    first = dataclasses.replace(sample.items[0], kind=Kind.AUDIO)
    sample = dataclasses.replace(sample, items=(first, sample.items[1]))
    assert reader(1).choose(sample, epoch=0).tolist() == [[6, 10]]
    assert packed([sample], 1)["num_spans"] == 1


def test_some_readers_at_a_time_where_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = SpanCapacity(tokens=S, spans=16, longest_tokens=4)
    for cpus, threads in ((1, 0), (2, 1), (8, 4), (128, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)))
        found = ImageReader(medium=Kind.IMAGE, capacity=capacity, encoder=ENCODER)
        assert found.threads == threads
