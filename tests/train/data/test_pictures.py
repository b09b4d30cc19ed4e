"""Corpora with pictures, from sizes to microbatches, against loops over their documents."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.batch import UNSCORED, Batch
from model.encoders.image import ImageEncoderConfig, ImageSpans
from model.encoders.text import TextSpans
from model.resampler import ResamplerConnectorConfig
from model.semicausal import EncoderConfig
from tests import pictures
from train.data.collate import Collator
from train.data.corpus import Corpus
from train.data.document import Document, Kind
from train.data.feed import Feed
from train.data.mixture import Mixture, SourceConfig, shares
from train.data.pack import Room
from train.data.plan import StepPlan
from train.data.sample import Sample
from train.data.sources import Laying, Source, Sources
from train.data.spans.at_random import RandomSpansConfig
from train.data.spans.augment import AugmentConfig
from train.data.spans.image import ImageReader
from train.data.spans.picture import read_picture
from train.data.spans.protocol import SpanCapacity
from train.data.spans.rules import RuleSpansConfig
from train.data.spans.text import TextReader
from train.errors import DataError

S = 96
PADDING = 3
SHAPE: dict[str, Any] = {
    "kind": "image", "width": 16, "num_layers": 1, "heads": 2, "feed_forward": 32,
}  # fmt: skip
ENCODERS = {
    "native": ImageEncoderConfig(**SHAPE, patch_pixels=8, max_patches=16),
    "one size": ImageEncoderConfig(**SHAPE, patch_pixels=8, size=[16, 24]),
    "class kept": ImageEncoderConfig(**SHAPE, patch_pixels=8, max_patches=9, class_token="kept"),
    "class dropped": ImageEncoderConfig(
        **SHAPE, patch_pixels=8, size=[16, 16], class_token="dropped"
    ),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("pictures")
    rows = [*pictures.interleaved(90), *pictures.albums(20), *pictures.albums(5, each=7)]
    return Corpus(str(pictures.build(root / "corpus", rows)))


def source_of(corpus: Corpus, encoder: ImageEncoderConfig, **laying: Any) -> Source:
    rooms = (
        Room(kind=Kind.TEXT_SPAN, spans=12, slots=60),
        Room(kind=Kind.IMAGE, spans=6, slots=64, vectors=encoder.item_vectors),
    )
    return Source("only", 0, corpus, Laying(sequence_tokens=S, window=50, rooms=rooms, **laying))


def documents_of(corpus: Corpus) -> list[Document]:
    store = corpus.train
    return [Document.from_columns(store.columns(number)) for number in range(len(store))]


def vectors_by_hand(data: bytes, encoder: ImageEncoderConfig) -> int:
    """Of a picture, from its pixels rather than from what was recorded."""
    with Image.open(io.BytesIO(data)) as image:
        height, width = image.height, image.width
    patches = len(read_picture(data, encoder, size=(height, width)).patches)
    return patches + (encoder.class_token == "kept")


def laid_by_loops(document: Document, encoder: ImageEncoderConfig) -> list[tuple[Any, bool, int]]:
    """Each slot of a document: its token, whether it may be a target, and its picture or -1."""
    slots: list[tuple[Any, bool, int]] = []
    token = byte = picture = 0
    for kind, size, scored in document.segments.tolist():
        if kind == Kind.IMAGE:
            count = vectors_by_hand(document.payload[byte : byte + size], encoder)
            slots += [(PADDING, False, picture)] * count
            byte += size
            picture += 1
        else:
            mine = document.tokens[token : token + size].tolist()
            slots += [(each, scored != 0, -1) for each in mine]
            token += size
    return slots


@pytest.mark.parametrize("attend", ["across", "within"])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_epoch_holds_every_slot_of_every_document_once(
    corpus: Corpus, name: str, attend: Any
) -> None:
    encoder = ENCODERS[name]
    source = source_of(corpus, encoder, attend=attend)
    stored = documents_of(corpus)
    laid = [laid_by_loops(document, encoder) for document in stored]
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(source.sequences_for(epochs=1, tokens=None)):
        planned = source.sequences.sequence(number)
        assert planned.epoch == 0
        sample = source.read(planned)
        assert len(sample.tokens) <= S + 1
        at = int(attend == "across")
        pictures_of = iter(sample.items)
        num_items = num_vectors = 0
        for document, begin, end in planned.parts.tolist():
            slots = laid[document]
            counts = Counter(picture for _, _, picture in slots if picture >= 0)
            fits = len(slots) <= S and sum(counts.values()) <= 64 and len(counts) <= 6
            if counts and fits:
                assert (begin, end) == (0, len(slots)), "a document with pictures was cut"
            inside = Counter(picture for _, _, picture in slots[begin:end] if picture >= 0)
            assert all(counts[picture] == inside[picture] for picture in inside), "a picture was"
            seen.update((document, slot) for slot in range(begin, end))
            if attend == "within":
                assert sample.tokens[at] == source.corpus.special.start
                at += 1
            assert sample.scored is not None or all(scored for _, scored, _ in slots)
            for slot in range(begin, end):
                token, scored, _ = slots[slot]
                assert sample.tokens[at + slot - begin] == token
                if sample.scored is not None:
                    assert sample.scored[at + slot - begin] == scored
            for picture, item in enumerate(stored[document].items()):
                if picture not in inside:
                    continue
                mine = [slot - begin for slot, each in enumerate(slots) if each[2] == picture]
                found = next(pictures_of)
                assert (found.start, found.stop) == (at + mine[0], at + mine[-1] + 1)
                assert f"image {picture + 1} of document {document} of" in found.name
                assert found.data == item.data
                num_items += 1
                num_vectors += len(mine)
            at += end - begin
        if sample.items and sample.items[-1].stop == at:
            at += 1
            assert (sample.tokens[-1], sample.scored[-1]) == (PADDING, False)  # pyright: ignore[reportOptionalSubscript]
        assert at == len(sample.tokens)
        assert next(pictures_of, None) is None
        assert num_items <= 6
        assert num_vectors <= 64
    counted = Counter((n, slot) for n, slots in enumerate(laid) for slot in range(len(slots)))
    assert seen == counted


def collator(
    source: Source,
    encoder: ImageEncoderConfig,
    *,
    augment: AugmentConfig | None = None,
    **text: Any,
) -> Collator:
    kind = RuleSpansConfig(**text) if text.get("kind") == "rules" else RandomSpansConfig(**text)
    capacity = SpanCapacity(tokens=64, spans=6, longest_tokens=encoder.longest_span)
    return Collator(
        sequence_tokens=S,
        readers={
            "text": TextReader(
                kind=kind, capacity=SpanCapacity(tokens=90, spans=45, longest_tokens=S), seed=3
            ),
            "image": ImageReader(
                medium=Kind.IMAGE, capacity=capacity, seed=3, encoder=encoder, augment=augment
            ),
        },
        padding=PADDING,
        attend=source.laying.attend,
    )


def targets_by_loops(sample: Sample, spans: list[tuple[int, int]], attend: str) -> set[int]:
    """Tokens of a sample that are predicted: none of a picture, of a text span the first."""
    found: set[int] = set()
    assert sample.documents is not None
    starts = {start for start, _ in sample.documents.tolist()}
    for t in range(1, len(sample.tokens)):
        in_picture = any(item.start <= t < item.stop for item in sample.items)
        in_span = any(start < t < stop for start, stop in spans)
        is_told = sample.scored is None or bool(sample.scored[t])
        opens = attend == "within" and t in starts
        if is_told and not (in_picture or in_span or opens):
            found.add(t)
    return found


RULES = {"kind": "rules", "which": "random", "min_tokens": 2, "max_tokens": 8}
TEXT: list[dict[str, Any]] = [
    {"ratio": 0.2, "min_tokens": 32, "max_tokens": 64},
    {"ratio_by_tokens": [[4, 0.1], [40, 0.5]], "min_tokens": 32, "max_tokens": 64},
    RULES,
    {**RULES, "unit": "block", "which": "longest"},
    {"ratio": 0.0},
]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_a_microbatch_holds(corpus: Corpus, data: st.DataObject) -> None:
    encoder = ENCODERS[data.draw(st.sampled_from(list(ENCODERS)))]
    attend: Any = data.draw(st.sampled_from(["across", "within"]))
    source = source_of(corpus, encoder, attend=attend)
    first = data.draw(st.integers(0, 60))
    B = data.draw(st.integers(1, 4))
    samples = [source.read(source.sequences.sequence(first + row)) for row in range(B)]
    collate = collator(source, encoder, **data.draw(st.sampled_from(TEXT)))

    batch = collate([(0, sample) for sample in samples])

    text, images = batch.spans["text"], batch.spans["image"]
    assert isinstance(text, TextSpans)
    assert isinstance(images, ImageSpans)
    chosen = [
        [tuple(span) for span in collate.readers["text"].choose(sample, epoch=0).tolist()]
        for sample in samples
    ]
    scored: list[int] = []
    filled: list[int] = []
    patches: list[Any] = []
    for row, (sample, spans) in enumerate(zip(samples, chosen, strict=True)):
        for start, stop in spans:
            assert not any(i.start < stop and start < i.stop for i in sample.items), "they meet"
        scored += [row * S + t - 1 for t in sorted(targets_by_loops(sample, spans, attend))]
        for item in sample.items:
            filled += range(row * S + item.start, row * S + item.stop)
            patches.append(read_picture(item.data, encoder, size=item.size).patches)
    assert batch.scored[: batch.num_scored].tolist() == scored
    labels = batch.labels.reshape(-1)
    assert sorted((labels != UNSCORED).nonzero().flatten().tolist()) == scored
    assert images.num_vectors == max(1, len(filled)) or encoder.class_token == "kept"
    if not filled:
        assert images.num_spans == 1
        assert set(images.slots.tolist()) == {B * S}, "the bin"
        return
    assert images.slots[: images.num_vectors].tolist() == filled
    assert images.num_spans == len(patches)
    class_rows = encoder.class_token != "none"
    at = 0
    for each in patches:
        rows = images.patches[at : at + class_rows + len(each)]
        np.testing.assert_array_equal(rows[int(class_rows) :].numpy(), each)
        at += len(rows)
    assert at == images.num_rows
    tokens = batch.tokens.reshape(-1)
    assert (tokens[images.slots[: images.num_vectors]] == PADDING).all()


def test_behind_a_resampler_every_picture_takes_as_many_slots(corpus: Corpus) -> None:
    """Whatever its size, from the plan to the microbatch; its patches are all read."""
    encoder, Q = ENCODERS["native"], 5
    resampler = ResamplerConnectorConfig(kind="resampler", queries=Q)
    part = EncoderConfig(encoder=encoder, connector=resampler)
    room = Room(kind=Kind.IMAGE, spans=6, slots=64, vectors=part.item_slots)
    laying = Laying(sequence_tokens=S, window=50, rooms=(room,))
    source = Source("only", 0, corpus, laying)
    capacity = SpanCapacity(tokens=64, spans=6, longest_tokens=Q, item_slots=Q)
    reader = ImageReader(medium=Kind.IMAGE, capacity=capacity, seed=3, encoder=encoder)
    collate = Collator(sequence_tokens=S, readers={"image": reader}, padding=PADDING)
    unlike = set[int]()
    for number in range(12):
        samples = [source.read(source.sequences.sequence(2 * number + row)) for row in range(2)]
        images = collate([(0, sample) for sample in samples]).spans["image"]
        assert isinstance(images, ImageSpans)
        assert images.item_cells is not None
        filled: list[int] = []
        cells: list[int] = []
        lengths: list[int] = []
        for row, sample in enumerate(samples):
            for item in sample.items:
                assert item.stop - item.start == Q
                filled += range(row * S + item.start, row * S + item.stop)
                lengths.append(len(read_picture(item.data, encoder, size=item.size).patches))
        for picture, length in enumerate(lengths):
            cells += range(picture * max(lengths), picture * max(lengths) + length)
        unlike |= set(lengths)
        assert images.slots[: len(filled)].tolist() == filled
        assert set(images.slots[len(filled) :].tolist()) <= {2 * S}, "the bin"
        if lengths:
            assert (images.num_items, images.longest_item) == (len(lengths), max(lengths))
            assert images.num_vectors == sum(lengths) == images.num_rows
            assert images.item_cells[: len(cells)].tolist() == cells
        else:
            assert (images.num_items, images.num_vectors) == (1, 1)
            assert len(images.slots) >= Q
        assert len(images.item_cells) == len(images.vectors) == 2 * 6 * 16, "room is static"
    assert len(unlike) > 3


def test_what_is_read_does_not_depend_on_what_stands_in_a_pictures_slots(corpus: Corpus) -> None:
    """One kind of spans alone, and none: the same targets but for the spans."""
    encoder = ENCODERS["native"]
    source = source_of(corpus, encoder)
    sample = source.read(source.sequences.sequence(0))
    assert sample.items
    with_items = {slot for item in sample.items for slot in range(item.start, item.stop)}
    batch = collator(source, encoder, ratio=0.0)([(0, sample)])
    targets = set((batch.scored[: batch.num_scored] + 1).tolist())
    assert not targets & with_items
    last = {item.stop for item in sample.items} - with_items
    assert sample.scored is not None
    assert {t for t in last if sample.scored[t]} <= targets, "read off the last vector"


def shapes_of(batch: Batch) -> set[tuple[str, torch.Size]]:
    found = set()
    for name, spans in batch.spans.items():
        for field in vars(spans):
            value = getattr(spans, field)
            if isinstance(value, torch.Tensor):
                found.add((f"{name}.{field}", value.shape))
    return found


@pytest.mark.parametrize("name", ENCODERS)
def test_batches_have_one_shape(corpus: Corpus, name: str) -> None:
    source = source_of(corpus, ENCODERS[name])
    collate = collator(source, ENCODERS[name], ratio=0.1)
    samples = [source.read(source.sequences.sequence(number)) for number in range(40)]
    samples.append(Sample(id=40, tokens=np.arange(10, 11 + S)))
    assert {bool(sample.items) for sample in samples} == {True, False}
    found = [shapes_of(collate([(0, sample)])) for sample in samples]
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("micro", [1, 4])
def test_pictures_change_where_they_train_alone(corpus: Corpus, micro: int) -> None:
    """In every step and on every rank the same, wherever a run begins to read."""
    encoder = ENCODERS["native"]
    source = source_of(corpus, encoder)
    collate = collator(source, encoder, augment=AugmentConfig(area=[0.2, 0.8]), ratio=0.1)
    mixture = Mixture(
        shares({"only": SourceConfig(corpus="x")}, {}, steps=9, sequences=4), sequences=4, seed=0
    )
    plan = StepPlan(Sources([source]), mixture, entries=4)

    def read(first: int, *, ranks: int) -> list[list[Batch]]:
        found: list[list[Batch]] = []
        for rank in range(ranks):
            with Feed(
                plan, collate, micro_sequences=min(micro, 4 // ranks), rank=rank, ranks=ranks,
                timeout_seconds=30, last_step=9,
            ) as feed:  # fmt: skip
                found.append(
                    [batch for step in range(first, 10) for batch in feed.step(step).batches]
                )
        return found

    def pictures_of(batches: list[list[Batch]]) -> Counter[bytes]:
        seen: Counter[bytes] = Counter()
        for batch in (batch for of_rank in batches for batch in of_rank):
            spans = batch.spans["image"]
            assert isinstance(spans, ImageSpans)
            if (spans.slots[: spans.num_vectors] < batch.tokens.numel()).all():
                seen.update(row.numpy().tobytes() for row in spans.patches[: spans.num_rows])
        return seen

    whole = pictures_of(read(1, ranks=1))
    assert pictures_of(read(1, ranks=2)) == whole
    entries = [entry for step in range(1, 10) for entry in plan.step(step)]
    pairs = [(entry.sequence.epoch, entry.source.read(entry.sequence)) for entry in entries]
    plain = [[collate([pair]) for pair in pairs]]
    assert pictures_of([[collate([pair], trains=True) for pair in pairs]]) == whole
    assert sum((whole & pictures_of(plain)).values()) < whole.total() / 2
    late = pictures_of(read(6, ranks=1))
    assert late <= whole
    assert late.total() < whole.total()


def test_a_budget_counts_text(corpus: Corpus) -> None:
    """Tokens of a budget are those of text: half of them are half of the documents."""
    source = source_of(corpus, ENCODERS["native"])
    tokens = int(corpus.train.totals[:, 0].sum())
    whole = source.sequences_for(epochs=1, tokens=None)
    assert source.sequences_for(epochs=None, tokens=tokens) == whole
    assert source.sequences_for(epochs=None, tokens=tokens // 2) == pytest.approx(whole / 2, abs=1)
    assert source.sequences.sequence(whole).epoch == 1
    assert source.sequences.sequence(whole - 1).epoch == 0


def test_some_documents_are_cut_beside_their_pictures(corpus: Corpus) -> None:
    source = source_of(corpus, ENCODERS["native"])
    planned = [source.sequences.sequence(number).parts.tolist() for number in range(100)]
    parts = [part for sequence in planned for part in sequence]
    cut = Counter(document for document, begin, _ in parts if begin)
    with_pictures = {n for n, document in enumerate(documents_of(corpus)) if document.payload}
    assert len(set(cut) & with_pictures) >= 5


def test_a_document_that_fits_no_sequence_is_named(tmp_path: Path) -> None:
    """Its spans of text were stored, and nobody knows where it may be cut."""
    rows = pictures.albums(20)
    for row in rows:
        row["segments"].append({"text": "the bus", "span": True})
    corpus = Corpus(str(pictures.build(tmp_path / "corpus", rows)))
    source = source_of(corpus, ENCODERS["native"])
    told = (
        r"document \d+ of .*/train has \d+ slots, \d+ of them in 1 spans, \d+ of them in 9 spans "
        r"of image, but a sequence holds 96, 60 in 12 spans, 64 in 6 spans of image: raise data"
    )
    with pytest.raises(DataError, match=told):
        source.sequences.sequence(0)


def test_a_document_of_padding_stands_in_for_one_that_is_left_out(corpus: Corpus) -> None:
    encoder = ENCODERS["native"]
    document = next(each for each in documents_of(corpus) if each.payload)
    left_out = source_of(corpus, encoder, unscored_ids=frozenset({document.name}))
    plain = source_of(corpus, encoder)
    number = next(
        number
        for number in range(60)
        if any(
            f"({document.name})" in item.name
            for item in plain.read(plain.sequences.sequence(number)).items
        )
    )
    sequence = left_out.sequences.sequence(number)
    np.testing.assert_array_equal(sequence.parts, plain.sequences.sequence(number).parts)
    one, other = left_out.read(sequence), plain.read(sequence)
    assert len(one.tokens) == len(other.tokens)
    assert not any(f"({document.name})" in item.name for item in one.items)
    collator(left_out, encoder, ratio=0.0)([(0, one)])


def test_sources_are_told_all_that_they_lack(corpus: Corpus, tmp_path: Path) -> None:
    source = Source("one", 0, corpus, Laying(sequence_tokens=S))
    again = Source("two", 1, corpus, Laying(sequence_tokens=S))
    with pytest.raises(DataError) as told:
        Sources([source, again])
    lines = str(told.value).splitlines()
    assert len(lines) == 4
    for line in lines:
        assert "spans of image, and the model has no encoder of them: add model.encoders" in line
