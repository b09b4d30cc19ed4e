"""Drawings, and sequences that hold them, for what is timed."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from model.batch import Batch
from model.encoders.image import ImageEncoderConfig, ImageSpans
from tools.bench.shapes import PictureShape
from tools.random_batches import FIRST_WORD
from train.data.collate import Attend, Collator
from train.data.document import Kind
from train.data.sample import Sample, SampleItem
from train.data.spans.image import ImageReader
from train.data.spans.picture import pack_pictures, read_picture
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.tokens import SpecialTokens

SPREAD: Final = 0.7
"""Of the logarithm of a side, around a quarter of the largest: most pictures are small."""
SHAPES: Final = 8
"""In a drawing."""


def drawing(
    random: np.random.Generator, height: int, width: int, *, kind: str = "PNG", quality: int = 90
) -> bytes:
    """A picture of shapes in colours, as a file."""
    image = Image.new("RGB", (width, height), tuple(random.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(SHAPES):
        (left, right), (top, bottom) = (np.sort(random.integers(0, n, 2)) for n in (width, height))
        colour = tuple(random.integers(0, 256, 3).tolist())
        pen.ellipse((int(left), int(top), int(right), int(bottom)), fill=colour)
    content = io.BytesIO()
    image.save(content, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return content.getvalue()


def skewed_sides(random: np.random.Generator, shape: PictureShape, count: int) -> list[list[int]]:
    """[count] height and width in pixels: most are small, the first is the largest there may be."""
    largest = shape.side_pixels
    sides = random.lognormal(np.log(largest / 4), SPREAD, (count, 2)).astype(int)
    sides = sides.clip(shape.patch_pixels, largest)
    sides[0] = largest
    return sides.tolist()


def sequence(
    random: np.random.Generator,
    encoder: ImageEncoderConfig,
    *,
    sizes: Iterable[Sequence[int]],
    text_tokens: int,
    vocabulary: int,
) -> Sample:
    """`<s>`, pictures of these heights and widths, and words behind them."""
    special = SpecialTokens()
    items: list[SampleItem] = []
    at = 1
    for height, width in sizes:
        stop = at + encoder.item_vectors((height, width))
        data = drawing(random, height, width)
        items.append(
            SampleItem(
                kind=Kind.IMAGE,
                size=(height, width),
                data=data,
                start=at,
                stop=stop,
                name="picture",
            )
        )
        at = stop
    tokens = np.full(at + text_tokens, special.padding, dtype=np.int64)
    tokens[0] = special.start
    tokens[at:] = random.integers(FIRST_WORD, vocabulary, text_tokens)
    scored = np.ones(len(tokens), dtype=np.bool_)
    scored[:at] = False
    return Sample(
        id=0,
        tokens=tokens,
        scored=scored,
        documents=np.array([[0, len(tokens)]]),
        items=tuple(items),
    )


def packed(rows: Sequence[Sample], *, slots: int) -> list[Sample]:
    """Rows put into sequences of so many slots, the longest first, each where it fits first."""
    bins: list[list[Sample]] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        for found in bins:
            if sum(len(each.tokens) for each in found) + len(row.tokens) <= slots:
                found.append(row)
                break
        else:
            bins.append([row])
    return [_joined(each) for each in bins]


def _joined(rows: Sequence[Sample]) -> Sample:
    ends = np.cumsum([len(row.tokens) for row in rows])
    starts = [0, *ends[:-1].tolist()]
    scored = [row.scored for row in rows if row.scored is not None]
    return replace(
        rows[0],
        tokens=np.concatenate([row.tokens for row in rows]),
        scored=np.concatenate(scored),
        documents=np.stack([starts, ends], axis=1),
        items=tuple(
            replace(item, start=item.start + start, stop=item.stop + start)
            for row, start in zip(rows, starts, strict=True)
            for item in row.items
        ),
    )


def batch_of(
    samples: Sequence[Sample],
    encoder: ImageEncoderConfig,
    *,
    slots: int,
    attend: Attend = "across",
) -> Batch:
    """One batch of sequences of so many slots."""
    capacity = SpanCapacity(tokens=slots, spans=slots, longest_tokens=encoder.longest_span)
    reader = ImageReader(medium=Kind.IMAGE, capacity=capacity, encoder=encoder)
    collate = Collator(
        sequence_tokens=slots,
        readers={"image": reader},
        padding=SpecialTokens().padding,
        attend=attend,
    )
    return collate([(0, sample) for sample in samples])


def spans_of(sizes: Iterable[Sequence[int]], encoder: ImageEncoderConfig) -> ImageSpans:
    """Pictures of these heights and widths, packed into a sequence of their own."""
    random = np.random.default_rng(0)
    read = [
        read_picture(drawing(random, height, width), encoder) for height, width in sizes
    ]  # fmt: skip
    lengths = np.array([len(picture.patches) for picture in read])
    starts = 1 + lengths.cumsum() - lengths
    slots = int(lengths.sum()) + 1
    return pack_pictures(
        read,
        FlatSpans(np.zeros_like(lengths), starts, lengths),
        encoder=encoder,
        capacity=SpanCapacity(tokens=slots, spans=len(read), longest_tokens=encoder.longest_span),
        sequences=1,
        sequence_tokens=slots,
    )
