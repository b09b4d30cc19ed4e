"""Corpora with sounds, from sizes to microbatches, against loops over their documents."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.encoders.audio import AudioEncoder, AudioEncoderConfig, AudioSpans
from model.encoders.image import ImageEncoderConfig
from tests import pictures, sounds
from tests.model.encoders.test_audio import SMALL, tiny_config, tiny_encoder
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
from train.data.spans.audio import AudioReader
from train.data.spans.hearing import pack_sounds, read_sound
from train.data.spans.image import ImageReader
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import TextReader
from train.errors import DataError

S = 96
PADDING = 3
ENCODERS: dict[str, AudioEncoderConfig] = {
    "mel": tiny_config(max_seconds=0.2),
    "mel, padded": tiny_config(max_seconds=0.2, padded_seconds=0.3),
    "wave": tiny_config(
        max_seconds=0.2, front=SMALL | {"kernels": [30, 8, 4], "strides": [20, 8, 4]}
    ),
}  # fmt: skip
PICTURES = ImageEncoderConfig(
    kind="image", width=16, num_layers=1, heads=2, feed_forward=32, patch_pixels=8, max_patches=4
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("sounds")
    return Corpus(str(pictures.build(root / "corpus", sounds.interleaved(90))))


def source_of(corpus: Corpus, encoder: AudioEncoderConfig, **laying: Any) -> Source:
    rooms = (
        Room(kind=Kind.TEXT_SPAN, spans=12, slots=60),
        Room(kind=Kind.AUDIO, spans=6, slots=48, vectors=encoder.item_vectors),
        Room(kind=Kind.IMAGE, spans=4, slots=20, vectors=PICTURES.item_vectors),
    )
    return Source("only", 0, corpus, Laying(sequence_tokens=S, window=50, rooms=rooms, **laying))


def documents_of(corpus: Corpus) -> list[Document]:
    store = corpus.train
    return [Document.from_columns(store.columns(number)) for number in range(len(store))]


def vectors_by_hand(data: bytes, encoder: AudioEncoderConfig) -> int:
    """Of a sound, from its file and torch's convolutions rather than from what was recorded."""
    info = soundfile.info(io.BytesIO(data))
    samples = int(np.ceil(info.frames * 16_000 / info.samplerate))
    if encoder.front.kind == "log_mel":
        frames = -(-samples // 160)
        return torch.nn.functional.conv1d(
            torch.zeros(1, 1, frames), torch.zeros(1, 1, 3), stride=2, padding=1
        ).shape[-1]
    front, count = encoder.front, max(samples, 30 + 20 * 7 + 20 * 8 * 3)
    assert not isinstance(front, str)
    for kernel, stride in ((30, 20), (8, 8), (4, 4)):
        count = (count - kernel) // stride + 1
    return count


@pytest.mark.parametrize("name", ENCODERS)
def test_sizes_and_slots(corpus: Corpus, name: str) -> None:
    encoder, seen = ENCODERS[name], 0
    for document in documents_of(corpus):
        for item in document.items():
            if item.kind == Kind.AUDIO:
                info = soundfile.info(io.BytesIO(item.data))
                assert item.size == (info.frames, info.samplerate)
                assert encoder.item_vectors(item.size) == vectors_by_hand(item.data, encoder)
                seen += 1
    assert seen > 60


@pytest.mark.parametrize("attend", ["across", "within"])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_epoch_holds_every_sound_once(corpus: Corpus, name: str, attend: Any) -> None:
    encoder = ENCODERS[name]
    source = source_of(corpus, encoder, attend=attend)
    found: Counter[bytes] = Counter()
    for number in range(source.sequences_for(epochs=1, tokens=None)):
        sample = source.read(source.sequences.sequence(number))
        assert len(sample.tokens) <= S + 1
        mine = [item for item in sample.items if item.kind == Kind.AUDIO]
        assert len(mine) <= 6
        assert sum(item.stop - item.start for item in mine) <= 48
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
        if item.kind == Kind.AUDIO
    )
    assert found == stored


def collator(source: Source, encoder: AudioEncoderConfig) -> Collator:
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
            "audio": AudioReader(
                medium=Kind.AUDIO, capacity=room(48, 6, encoder.longest_span), encoder=encoder
            ),
            "image": ImageReader(
                medium=Kind.IMAGE, capacity=room(20, 4, PICTURES.longest_span), encoder=PICTURES
            ),
        },
        padding=PADDING,
        attend=source.laying.attend,
    )


def one_by_one(
    model: AudioEncoder, encoder: AudioEncoderConfig, samples: list[Sample]
) -> tuple[list[int], torch.Tensor]:
    """Slots and vectors of all sounds, each packed alone."""
    slots: list[int] = []
    vectors: list[torch.Tensor] = []
    for row, sample in enumerate(samples):
        for item in sample.items:
            if item.kind != Kind.AUDIO:
                continue
            length = item.stop - item.start
            slots += range(row * S + item.start, row * S + item.stop)
            alone = pack_sounds(
                [read_sound(item.data, encoder)],
                FlatSpans(np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([length])),
                encoder=encoder,
                capacity=SpanCapacity(tokens=length, spans=1, longest_tokens=length),
                sequences=1,
                sequence_tokens=length,
            )
            vectors.append(model(alone))
    return slots, torch.cat(vectors) if vectors else torch.zeros(0, encoder.width)


@settings(max_examples=30, deadline=None)
@given(st.data())
@torch.no_grad()
def test_what_a_microbatch_holds(corpus: Corpus, data: st.DataObject) -> None:
    """Vectors of packed sounds are those of each one alone, in its own slots."""
    encoder = ENCODERS[data.draw(st.sampled_from(list(ENCODERS)))]
    source = source_of(corpus, encoder, attend=data.draw(st.sampled_from(["across", "within"])))
    first, B = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 4))
    samples = [source.read(source.sequences.sequence(first + row)) for row in range(B)]
    batch = collator(source, encoder)([(0, sample) for sample in samples])
    found = batch.spans["audio"]
    assert isinstance(found, AudioSpans)
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
    samples = [source.read(source.sequences.sequence(number)) for number in range(40)]
    kinds = {item.kind for sample in samples for item in sample.items}
    assert kinds == {Kind.AUDIO, Kind.IMAGE}
    found = [shapes_of(collate([(0, sample)])) for sample in samples]
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("name", ENCODERS)
def test_silence_of_so_many_vectors(name: str) -> None:
    """What room is tried with: as much as there is for one sound, and less."""
    encoder = ENCODERS[name]
    room = SpanCapacity(tokens=48, spans=6, longest_tokens=encoder.longest_span)
    reader = AudioReader(medium=Kind.AUDIO, capacity=room, encoder=encoder)
    for vectors in range(1, encoder.longest_span + 1):
        sound = reader.blank(vectors)
        assert sound is not None
        assert encoder.front.num_rows(sound.samples) == vectors
        assert sound.samples <= encoder.most_samples
        if vectors > 1:
            assert encoder.front.num_rows(sound.samples - 1) == vectors - 1


def test_a_sound_that_is_too_long_names_its_document(corpus: Corpus) -> None:
    source = source_of(corpus, tiny_config(max_seconds=0.1))
    told = (
        r"document (\d+) of .*/train has a sound of 0\.1\d+ seconds, and its encoder reads 0\.1 at "
        r"most: raise max_seconds of the encoder, or leave the sound out"
    )
    with pytest.raises(DataError, match=told) as raised:
        source.sequences.sequence(0)
    number = int(str(raised.value).split()[1])
    sizes = [item.size for item in documents_of(corpus)[number].items() if item.kind == Kind.AUDIO]
    assert max(count / rate for count, rate in sizes) > 0.1


def test_a_corpus_with_sounds_is_whole(corpus: Corpus) -> None:
    root = str(Path(corpus.train.root).parent)
    assert verify(root, workers=1, console=QUIET) == []
