"""How much of the text behind a picture its encoder reads with it, as one span."""

from typing import Annotated, Final

import numpy as np
from pydantic import Field

from model.config import Config, Tokens
from train.data.sample import Sample, SampleItem
from train.data.spans.places import NO_SPANS, Spans, places
from train.data.spans.protocol import Draw
from train.data.tokens import SpecialTokens

_DRAWN_FOR: Final = 0x707265
"""Tells these draws from those that change pictures."""


class PrefixConfig(Config):
    """A beginning of random length of the text behind each picture.

    The encoder reads it with the picture: its slots hold vectors as the picture's do, the decoder
    sees none of its tokens, and none of them is predicted but what follows.

    Source: MetaLM (2206.06336) §4, which does not say how lengths are drawn.
    """

    max_tokens: Tokens = 64
    """Of the longest."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of pictures that have a prefix; the others are read alone, as they are in prompts."""


def spans_with_text(
    sample: Sample,
    items: list[SampleItem],
    config: PrefixConfig,
    special: SpecialTokens,
    *,
    seed: int,
    draw: Draw,
) -> Spans:
    """The slots of items, each with as much text as it is read with.

    A function of seed, draw, source, document and place of the item in it, however documents are
    packed. Each length is as likely from one token to all but the last of the text that follows,
    up to the next item or the end of the document.

    Args:
        sample: a sequence.
        items: those that are read so, in rising order.
        config: how much.
        special: ids of the special tokens.
        seed: of the run.
        draw: which time it is that the sample trains.
    """
    ranges = places(sample, special)
    begins = np.array([item.start for item in sample.items], dtype=np.int64)
    spans: list[tuple[int, int]] = []
    for item in items:
        ends = [stop for start, stop in ranges if start <= item.start and item.stop <= stop]
        stop = ends[0] if ends else item.stop
        later = begins[begins >= item.stop]
        if len(later):
            stop = min(stop, int(later[0]))
        most = min(config.max_tokens, stop - item.stop - 1)
        length = 0
        if most > 0:
            key = [seed, draw.epoch, item.document, _DRAWN_FOR]
            place = (sample.source, item.place, draw.choice)
            random = np.random.default_rng(np.random.SeedSequence(key, spawn_key=place))
            if random.random() < config.share:
                length = int(random.integers(1, most + 1))
        spans.append((item.start, item.stop + length))
    return np.array(spans, dtype=np.int64) if spans else NO_SPANS
