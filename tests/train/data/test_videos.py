"""Corpora with videos, from sizes to microbatches, against loops over their documents."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.encoders.image import ImageEncoderConfig
from model.encoders.video import VideoEncoder, VideoEncoderConfig, VideoSpans
from tests import clips, pictures
from tests.model.encoders.test_video import KINDS, tiny_config, tiny_encoder
from tests.tools.corpus.making import QUIET
from tests.train.data.test_pictures import shapes_of
from tools.corpus.verify import verify
from train.data.collate import Collator
from train.data.corpus import Corpus
from train.data.document import Document, Kind
from train.data.pack import Room
from train.data.sample import Sample
from train.data.sources import Laying, Source
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.image import ImageReader
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import TextReader
from train.data.spans.tubes import pack_clips, read_clip
from train.data.spans.video import VideoReader

S = 96
PADDING = 3
ENCODERS: dict[str, VideoEncoderConfig] = {
    name: tiny_config(**KINDS[name])
    for name in ("videomae", "videomae, native", "timesformer", "timesformer, native")
}
PICTURES = ImageEncoderConfig(
    kind="image", width=16, num_layers=1, heads=2, feed_forward=32, patch_pixels=8, max_patches=4
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("videos")
    return Corpus(str(pictures.build(root / "corpus", clips.interleaved(60))))


def source_of(corpus: Corpus, encoder: VideoEncoderConfig, **laying: Any) -> Source:
    rooms = (
        Room(kind=Kind.TEXT_SPAN, spans=12, slots=60),
        Room(kind=Kind.VIDEO, spans=4, slots=60, vectors=encoder.item_vectors),
        Room(kind=Kind.IMAGE, spans=4, slots=20, vectors=PICTURES.item_vectors),
    )
    return Source("only", 0, corpus, Laying(sequence_tokens=S, window=50, rooms=rooms, **laying))


def documents_of(corpus: Corpus) -> list[Document]:
    store = corpus.train
    return [Document.from_columns(store.columns(number)) for number in range(len(store))]


def vectors_by_hand(data: bytes, encoder: VideoEncoderConfig) -> int:
    """Of a video, from its file rather than from what was recorded."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        rows, columns = encoder.grid((stream.height, stream.width))
    return encoder.frames // encoder.tube_frames * rows * columns + encoder.kept_rows


@pytest.mark.parametrize("name", ENCODERS)
def test_sizes_and_slots(corpus: Corpus, name: str) -> None:
    encoder, seen = ENCODERS[name], 0
    for document in documents_of(corpus):
        for item in document.items():
            if item.kind == Kind.VIDEO:
                with av.open(io.BytesIO(item.data), "r") as container:
                    frames = list(container.decode(video=0))
                height, width = frames[0].height, frames[0].width
                assert item.size == (len(frames), height, width, 40 * len(frames))
                assert encoder.item_vectors(item.size) == vectors_by_hand(item.data, encoder)
                seen += 1
    assert seen > 20


@pytest.mark.parametrize("attend", ["across", "within"])
@pytest.mark.parametrize("name", ["videomae, native", "timesformer"])
def test_an_epoch_holds_every_video_once(corpus: Corpus, name: str, attend: Any) -> None:
    encoder = ENCODERS[name]
    source = source_of(corpus, encoder, attend=attend)
    found: Counter[bytes] = Counter()
    for number in range(source.sequences_for(epochs=1, tokens=None)):
        sample = source.read(source.sequences.sequence(number))
        assert len(sample.tokens) <= S + 1
        mine = [item for item in sample.items if item.kind == Kind.VIDEO]
        assert len(mine) <= 4
        assert sum(item.stop - item.start for item in mine) <= 60
        for item in mine:
            assert item.stop - item.start == vectors_by_hand(item.data, encoder)
            assert (sample.tokens[item.start : item.stop] == PADDING).all()
            assert sample.scored is not None
            assert not sample.scored[item.start : item.stop].any()
            found[item.data] += 1
    stored = Counter(
        item.data
        for document in documents_of(corpus)
        for item in document.items()
        if item.kind == Kind.VIDEO
    )
    assert found == stored


def collator(source: Source, encoder: VideoEncoderConfig) -> Collator:
    def room(tokens: int, spans: int, longest: int) -> SpanCapacity:
        return SpanCapacity(tokens=tokens, spans=spans, longest_tokens=longest)

    return Collator(
        sequence_tokens=S,
        readers={
            "text": TextReader(
                kind=RandomSpansConfig(ratio=0.2, min_tokens=2, max_tokens=8),
                capacity=room(90, 45, S),
                seed=3,
            ),
            "video": VideoReader(
                medium=Kind.VIDEO, capacity=room(60, 4, encoder.longest_span), encoder=encoder
            ),
            "image": ImageReader(
                medium=Kind.IMAGE, capacity=room(20, 4, PICTURES.longest_span), encoder=PICTURES
            ),
        },
        padding=PADDING,
        attend=source.laying.attend,
    )


def one_by_one(
    model: VideoEncoder, encoder: VideoEncoderConfig, samples: list[Sample]
) -> tuple[list[int], torch.Tensor]:
    """Slots and vectors of all videos, each packed alone."""
    slots: list[int] = []
    vectors: list[torch.Tensor] = []
    for row, sample in enumerate(samples):
        for item in sample.items:
            if item.kind != Kind.VIDEO:
                continue
            length = item.stop - item.start
            slots += range(row * S + item.start, row * S + item.stop)
            alone = pack_clips(
                [read_clip(item.data, encoder)],
                FlatSpans(np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([length])),
                encoder=encoder,
                capacity=SpanCapacity(tokens=length, spans=1, longest_tokens=length),
                sequences=1,
                sequence_tokens=length,
            )
            vectors.append(model(alone))
    return slots, torch.cat(vectors) if vectors else torch.zeros(0, encoder.width)


@settings(max_examples=20, deadline=None)
@given(st.data())
@torch.no_grad()
def test_what_a_microbatch_holds(corpus: Corpus, data: st.DataObject) -> None:
    """Vectors of packed videos are those of each one alone, in its own slots."""
    encoder = ENCODERS[data.draw(st.sampled_from(list(ENCODERS)))]
    source = source_of(corpus, encoder, attend=data.draw(st.sampled_from(["across", "within"])))
    first, B = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 4))
    samples = [source.read(source.sequences.sequence(first + row)) for row in range(B)]
    batch = collator(source, encoder)([(0, sample) for sample in samples])
    found = batch.spans["video"]
    assert isinstance(found, VideoSpans)
    model = tiny_encoder(encoder)
    slots, wanted = one_by_one(model, encoder, samples)
    if not slots:
        assert set(found.slots.tolist()) == {B * S}, "the bin"
        return
    assert found.slots[: found.num_vectors].tolist() == slots
    vectors = model(found)[: found.num_vectors]
    torch.testing.assert_close(vectors, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_batches_have_one_shape(corpus: Corpus, name: str) -> None:
    source = source_of(corpus, ENCODERS[name])
    collate = collator(source, ENCODERS[name])
    samples = [source.read(source.sequences.sequence(number)) for number in range(15)]
    kinds = {item.kind for sample in samples for item in sample.items}
    assert kinds == {Kind.VIDEO, Kind.IMAGE}
    found = [shapes_of(collate([(0, sample)])) for sample in samples]
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("name", ENCODERS)
def test_blackness_of_so_many_vectors(name: str) -> None:
    """What room is tried with: as much as there is for one video, and less."""
    encoder = ENCODERS[name]
    room = SpanCapacity(tokens=60, spans=4, longest_tokens=encoder.longest_span)
    reader = VideoReader(medium=Kind.VIDEO, capacity=room, encoder=encoder)
    there = {
        vectors
        for vectors in range(1, encoder.longest_span + 1)
        if (clip := reader.blank(vectors)) is not None
        and len(clip.patches) + encoder.kept_rows == vectors
    }
    places = range(1, 7) if encoder.size is None else [6]
    assert there == {encoder.times * count + encoder.kept_rows for count in places}


def test_a_corpus_with_videos_is_whole(corpus: Corpus) -> None:
    root = str(Path(corpus.train.root).parent)
    assert verify(root, workers=1, console=QUIET) == []
