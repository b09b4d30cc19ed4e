"""Masked patches of pictures and videos."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from model.encoders.image import ImageSpans
from model.encoders.video import VideoSpans
from model.objectives.patches import MaskedPatches
from model.steady import ROWS_MULTIPLE
from train.data.masks.protocol import Masked, Masking, chosen
from train.data.spans.places import Ints, padded

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PatchMasking(Masking):
    """Masks patches of a picture; of a video the same places at all of its times.

    Attributes:
        share: of its patches, or places.
        times: T, of a video; 1 of a picture.
        class_rows: of a video, whose packed rows do not hold them.
    """

    share: float
    times: int = 1
    class_rows: int = 0

    def masked(
        self, spans: ImageSpans | VideoSpans, draws: Sequence[np.random.Generator | None]
    ) -> Masked:
        """Without the patches that are masked."""
        R = spans.num_rows
        places = spans.places[:R].numpy()
        cells = spans.cells[:R].numpy()
        is_patch = places[:, -1] >= 0
        owners = (cells if cells.ndim == 1 else cells[:, 0]) // spans.longest_rows
        owners = owners[is_patch]
        counts = np.bincount(owners, minlength=spans.num_spans)
        hidden = np.concatenate(
            [self._hidden(count, draw) for count, draw in zip(counts.tolist(), draws, strict=True)]
        )
        row_hidden = np.zeros(R, dtype=np.bool_)
        row_hidden[is_patch] = hidden
        # A span of which nothing is scored is seen whole, and scores nothing.
        longest = int(counts.max())
        inside = np.arange(len(owners)) - (counts.cumsum() - counts)[owners]
        seen = (
            _seen_pictures(spans, ~row_hidden)
            if isinstance(spans, ImageSpans)
            else _seen_videos(spans, ~row_hidden, times=self.times, class_rows=self.class_rows)
        )
        vector_of = np.full(self._all_rows(spans), -1)
        vectors = spans.vectors[: spans.num_vectors].numpy()
        vector_of[vectors] = np.arange(len(vectors))
        rows = np.flatnonzero(row_hidden) + self._rows_before(spans)
        return Masked(
            spans=MaskedPatches(
                seen=seen,
                rows=spans.patches[:R][torch.from_numpy(is_patch)],
                places=torch.from_numpy(places[is_patch]),
                cells=torch.from_numpy(owners * longest + inside),
                kept=torch.from_numpy(np.flatnonzero(~hidden)),
                masked=torch.from_numpy(np.flatnonzero(hidden)),
                num_spans=spans.num_spans,
                longest_rows=longest,
                slots=spans.slots,
                num_vectors=spans.num_vectors,
            ),
            vectors=vector_of[rows],
        )

    def _rows_before(self, spans: ImageSpans | VideoSpans) -> int:
        return self.class_rows * spans.num_spans if isinstance(spans, VideoSpans) else 0

    def _all_rows(self, spans: ImageSpans | VideoSpans) -> int:
        return self._rows_before(spans) + spans.num_rows

    def _hidden(self, patches: int, draw: np.random.Generator | None) -> Bools:
        places = patches // self.times
        kept = max(1, round((1 - self.share) * places))
        return np.tile(chosen(places - kept, places, draw), self.times)


def _seen_pictures(spans: ImageSpans, is_seen: Bools) -> ImageSpans:
    """Pictures without some patches; of their rows, those of patches give vectors."""
    R = len(is_seen)
    owners = spans.cells[:R].numpy() // spans.longest_rows
    rows = np.flatnonzero(is_seen)
    owners, counts = owners[rows], np.bincount(owners[rows], minlength=spans.num_spans)
    longest = int(counts.max())
    inside = np.arange(len(rows)) - (counts.cumsum() - counts)[owners]
    places = spans.places[torch.from_numpy(rows)]
    vectors = np.flatnonzero(places[:, 0].numpy() >= 0)
    room = _room(len(rows), len(spans.patches))
    return replace(
        spans,
        patches=_taken(spans.patches, rows, room),
        places=_taken(spans.places, rows, room),
        grids=_taken(spans.grids, rows, room, filler=1),
        cells=padded(owners * longest + inside, room),
        vectors=padded(vectors, room),
        slots=torch.zeros(room, dtype=torch.int64),
        num_rows=len(rows),
        num_vectors=len(vectors),
        longest_rows=longest,
    )


def _seen_videos(spans: VideoSpans, is_seen: Bools, *, times: int, class_rows: int) -> VideoSpans:
    """Videos without some places, at all times; of their rows, those of tubes give vectors."""
    R, T, N = len(is_seen), times, spans.num_spans
    owners = spans.cells[:R, 0].numpy() // spans.longest_rows
    rows = np.flatnonzero(is_seen)
    owners = owners[rows]
    counts = np.bincount(owners, minlength=N)
    places_of = counts // T
    inside = np.arange(len(rows)) - (counts.cumsum() - counts)[owners]
    time, place = np.divmod(inside, places_of[owners])
    longest_rows, longest_frame = class_rows + int(counts.max()), class_rows + int(places_of.max())
    before = places_of.cumsum() - places_of
    cells = np.stack(
        [
            owners * longest_rows + class_rows + inside,
            (before[owners] + place) * T + time,
            (owners * T + time) * longest_frame + class_rows + place,
        ],
        axis=1,
    )
    room = _room(len(rows), len(spans.patches))
    filled = np.zeros((room, 3), dtype=np.int64)
    filled[: len(rows)] = cells
    return replace(
        spans,
        patches=_taken(spans.patches, rows, room),
        places=_taken(spans.places, rows, room),
        grids=_taken(spans.grids, rows, room, filler=1),
        cells=torch.from_numpy(filled),
        vectors=padded(class_rows * N + np.arange(len(rows)), room),
        slots=torch.zeros(room, dtype=torch.int64),
        num_rows=len(rows),
        num_vectors=len(rows),
        num_places=int(places_of.sum()),
        longest_rows=longest_rows,
        longest_frame=longest_frame,
    )


def _room(rows: int, most: int) -> int:
    """Rows that keep shapes steady, see `model.steady`."""
    return min(most, rows + -rows % ROWS_MULTIPLE)


def _taken(values: torch.Tensor, rows: Ints, room: int, *, filler: int = 0) -> torch.Tensor:
    found = torch.full((room, *values.shape[1:]), filler, dtype=values.dtype)
    found[: len(rows)] = values[torch.from_numpy(rows)]
    return found
