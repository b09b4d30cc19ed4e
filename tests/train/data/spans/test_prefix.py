"""How much text is read with a picture: by loops over the documents of a corpus."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.batch import UNSCORED, Batch
from model.encoders.image import ImageEncoderConfig, ImageSpans
from model.layers import initialize
from model.loss import Loss
from model.semicausal import ModelConfig, SemiCausal
from tests import pictures
from train.data.collate import Collator
from train.data.corpus import Corpus
from train.data.document import Kind
from train.data.pack import Room
from train.data.sample import Sample
from train.data.sources import Laying, Source
from train.data.spans.image import ImageReader
from train.data.spans.prefix import PrefixConfig
from train.data.spans.protocol import SpanCapacity

S, MOST = 96, 6
ENCODER = ImageEncoderConfig.model_validate(
    {
        "kind": "image", "width": 16, "num_layers": 2, "heads": 2, "feed_forward": 32,
        "patch_pixels": 8, "max_patches": 9, "text": {"max_tokens": MOST, "shared_layers": 1},
    }
)  # fmt: skip
PREFIX = PrefixConfig(max_tokens=MOST, share=0.7)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rows = [*pictures.interleaved(60), *pictures.albums(8), *pictures.colours(40)]
    return Corpus(str(pictures.build(tmp_path_factory.mktemp("pictures") / "corpus", rows)))


def source_of(corpus: Corpus, **laying: Any) -> Source:
    rooms = (Room(kind=Kind.IMAGE, spans=6, slots=64, vectors=ENCODER.item_vectors),)
    return Source("only", 0, corpus, Laying(sequence_tokens=S, window=50, rooms=rooms, **laying))


def reader_of(source: Source, prefix: PrefixConfig | None = PREFIX, seed: int = 3) -> ImageReader:
    room = SpanCapacity(
        tokens=64, spans=6, longest_tokens=9, prefix_tokens=0 if prefix is None else MOST
    )
    special = source.corpus.special
    return ImageReader(
        medium=Kind.IMAGE, capacity=room, seed=seed, encoder=ENCODER, prefix=prefix, special=special
    )


def collator_of(source: Source, prefix: PrefixConfig | None = PREFIX) -> Collator:
    readers = {"image": reader_of(source, prefix)}
    return Collator(sequence_tokens=S, readers=readers, padding=3, attend=source.laying.attend)


def most_by_loop(sample: Sample, number: int) -> int:
    """Tokens behind an item that may be read with it, one left over besides the document's end."""
    item = sample.items[number]
    assert sample.documents is not None
    (end,) = (stop for start, stop in sample.documents.tolist() if start <= item.start < stop)
    most, at = 0, item.stop
    begins = {other.start for other in sample.items}
    while at < end - 1 and at not in begins:
        most, at = most + 1, at + 1
    return max(0, min(MOST, most - 1))


@pytest.mark.parametrize("attend", ["across", "within"])
def test_lengths(corpus: Corpus, attend: Any) -> None:
    """Up to the next item or the end of the document; all there are, and as many as are to be."""
    source = source_of(corpus, attend=attend)
    reader, seen = reader_of(source), Counter[int]()
    for number in range(20):
        sample = source.read(source.sequences.sequence(number))
        for epoch in range(4):
            spans = reader.choose(sample, epoch=epoch)
            assert len(spans) == len(sample.items)
            for place, (start, stop) in enumerate(spans.tolist()):
                item, most = sample.items[place], most_by_loop(sample, place)
                assert start == item.start
                assert 0 <= stop - item.stop <= most
                if most == MOST:
                    seen[stop - item.stop] += 1
    assert set(seen) == set(range(MOST + 1))
    assert seen[0] / seen.total() == pytest.approx(1 - PREFIX.share, abs=0.12)


def test_they_are_of_document_and_epoch_alone(corpus: Corpus) -> None:
    """However documents are packed; another epoch, seed or choice draws others."""
    drawn: list[dict[tuple[int, int], int]] = []
    for laying in ({}, {"window": 7}):
        source = source_of(corpus)
        source = Source("only", 0, corpus, replace(source.laying, **laying))
        reader, found = reader_of(source), {}
        for number in range(source.sequences_for(epochs=1, tokens=None)):
            sample = source.read(source.sequences.sequence(number))
            spans = reader.choose(sample, epoch=0)
            for place, item in enumerate(sample.items):
                if most_by_loop(sample, place) == MOST:
                    found[item.document, item.place] = int(spans[place, 1]) - item.stop
        drawn.append(found)
    both = drawn[0].keys() & drawn[1].keys()
    assert len(both) > 20
    assert all(drawn[0][key] == drawn[1][key] for key in both)
    sample = next(
        found
        for number in range(20)
        if len((found := source.read(source.sequences.sequence(number))).items) > 3
    )
    usual = [reader.choose(sample, epoch=epoch).tolist() for epoch in range(6)]
    assert usual == [reader_of(source).choose(sample, epoch=epoch).tolist() for epoch in range(6)]
    assert len({str(each) for each in usual}) > 1
    other = [reader_of(source, seed=4).choose(sample, epoch=epoch).tolist() for epoch in range(6)]
    again = [reader.choose(sample, epoch=epoch, choice=1).tolist() for epoch in range(6)]
    assert usual != other
    assert usual != again


def model_of() -> SemiCausal:
    decoder = {
        "vocabulary": 512, "width": 16, "num_layers": 1, "heads": 2, "feed_forward": 32,
        "max_tokens": S,
    }  # fmt: skip
    parts = {"image": {"encoder": ENCODER.model_dump()}}
    model = SemiCausal(ModelConfig.model_validate({"decoder": decoder, "encoders": parts})).double()
    initialize(model, seed=1)
    return model.eval()


def batch_of(source: Source, collate: Collator) -> tuple[list[Sample], Batch]:
    samples = [source.read(source.sequences.sequence(number)) for number in (1, 2)]
    return samples, collate([(0, sample) for sample in samples])


@pytest.mark.parametrize("attend", ["across", "within"])
def test_what_is_predicted(corpus: Corpus, attend: Any) -> None:
    """Nothing of pictures and their text, and what follows them; the encoder reads that text."""
    source = source_of(corpus, attend=attend)
    collate = collator_of(source)
    samples, batch = batch_of(source, collate)
    images = batch.spans["image"]
    assert isinstance(images, ImageSpans)
    _, plain = batch_of(source, collator_of(source, None))
    texts: list[int] = []
    slots: list[int] = []
    wanted = plain.labels.clone()
    for row, sample in enumerate(samples):
        for start, stop in collate.readers["image"].choose(sample, epoch=0).tolist():
            (item,) = (each for each in sample.items if each.start == start)
            texts += sample.tokens[item.stop : stop].tolist()
            slots += range(row * S + start, row * S + stop)
            wanted[row, start - 1 : stop - 1] = UNSCORED
            assert wanted[row, stop - 1] == sample.tokens[stop], "what follows is predicted"
    assert texts
    assert batch.labels.equal(wanted)
    assert images.tokens is not None
    assert images.tokens[: images.num_tokens].tolist() == texts
    assert images.slots[: images.num_vectors].tolist() == slots
    assert images.num_vectors == len(slots) == images.num_rows


@torch.no_grad()
def test_the_decoder_never_sees_text_that_the_encoder_reads(corpus: Corpus) -> None:
    source, model = source_of(corpus), model_of()
    _, batch = batch_of(source, collator_of(source))
    images = batch.spans["image"]
    assert isinstance(images, ImageSpans)
    assert images.tokens is not None

    def loss_of(batch: Batch) -> float:
        found = model(batch)
        assert isinstance(found, Loss)
        return found.total.item()

    whole = loss_of(batch)
    hidden = batch.tokens.clone()
    hidden.view(-1)[images.slots[: images.num_vectors]] = 7
    assert loss_of(replace(batch, tokens=hidden)) == whole
    other = {"image": replace(images, tokens=(images.tokens + 1) % 500)}
    assert abs(loss_of(replace(batch, spans=other)) - whole) > 1e-6


def test_room_is_static(corpus: Corpus) -> None:
    """Arrays have one shape in every microbatch, those without pictures too."""
    source = source_of(corpus)
    collate = collator_of(source)
    shapes = set[Any]()
    bare = Sample(id=0, tokens=np.full(S + 1, 9), documents=np.array([[0, S + 1]]))
    for number in range(8):
        samples = [source.read(source.sequences.sequence(2 * number + row)) for row in range(2)]
        for some in (samples, [bare, bare]):
            images = collate([(0, sample) for sample in some]).spans["image"]
            tensors = {k: v for k, v in vars(images).items() if isinstance(v, torch.Tensor)}
            shapes.add(tuple(sorted((name, value.shape) for name, value in tensors.items())))
    assert len(shapes) == 1
