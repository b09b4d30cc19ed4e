"""What a video encoder reads of videos: tubes of patches, packed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from model.encoders.grid import Grid
from model.encoders.video import VideoEncoderConfig, VideoSpans
from train.data.spans.clip import read_frames
from train.data.spans.media import Laid
from train.data.spans.picture import resized
from train.data.spans.places import FlatSpans, padded, runs
from train.data.spans.protocol import SpanCapacity


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video as tubes.

    Attributes:
        patches: [n, 3 T P P] uint8, time after time, in each row after row of the grid.
        grid: rows and columns of tubes.
    """

    patches: npt.NDArray[np.uint8]
    grid: Grid


def read_clip(
    data: bytes, encoder: VideoEncoderConfig, *, size: Sequence[int] | None = None
) -> Clip:
    """Tubes of a video, the same for the same bytes everywhere.

    Args:
        data: a file.
        encoder: what is to read it.
        size: what was recorded when the corpus was built, if it was.

    Raises:
        ValueError: it cannot be read, or is not of this size; the message is the end of a sentence.
    """
    P = encoder.patch_pixels
    last, rows, columns = None, 0, 0
    fitted: list[npt.NDArray[np.uint8]] = []
    # Each at once: the frames as they were may be gigabytes.
    for frame in read_frames(data, count=encoder.frames, size=size):
        if last is None:
            rows, columns = encoder.grid((frame.height, frame.width))
        if frame is last:
            fitted.append(fitted[-1])
        else:
            height, width = encoder.size or (rows * P, columns * P)
            whole = np.asarray(resized(frame, (height, width), encoder))
            fitted.append(whole[: rows * P, : columns * P])
        last = frame
    pixels = np.stack(fitted)
    tubes = pixels.reshape(-1, encoder.tube_frames, rows, P, columns, P, 3)
    patches = tubes.transpose(0, 2, 4, 6, 1, 3, 5).reshape(encoder.times * rows * columns, -1)
    return Clip(patches=patches, grid=(rows, columns))


def vectors_of(clip: Clip, encoder: VideoEncoderConfig) -> int:
    """How many vectors the encoder gives of a video."""
    return encoder.kept_rows + len(clip.patches)


def black_clip(grid: Grid, encoder: VideoEncoderConfig) -> Clip:
    """One that shows nothing."""
    channels = 3 * encoder.tube_frames * encoder.patch_pixels**2
    shape = (encoder.times * grid[0] * grid[1], channels)
    return Clip(patches=np.zeros(shape, dtype=np.uint8), grid=grid)


def pack_clips(
    clips: Sequence[Clip],
    spans: FlatSpans,
    *,
    encoder: VideoEncoderConfig,
    capacity: SpanCapacity,
    sequences: int,
    sequence_tokens: int,
) -> VideoSpans:
    """Pack the videos of B sequences tube after tube.

    Args:
        clips: one for each span.
        spans: where their vectors go, as many as each has.
        encoder: what is to read them.
        capacity: room in one sequence; arrays have B times as much.
        sequences: B.
        sequence_tokens: S.
    """
    T, first, kept = encoder.times, encoder.class_rows, encoder.kept_rows
    laid = Laid.of(
        clips,
        spans,
        vectors=lambda clip: vectors_of(clip, encoder),
        # Of one place.
        padding=lambda: replace(black_clip((1, 1), encoder), grid=encoder.fixed_grid or (1, 1)),
        encoder=encoder,
        capacity=capacity,
        sequences=sequences,
        sequence_tokens=sequence_tokens,
    )
    clips = laid.items
    counts = np.array([len(clip.patches) for clip in clips])
    num_rows, num_spans = int(counts.sum()), len(clips)
    places_of = counts // T
    owners = np.repeat(np.arange(num_spans), counts)
    inside = runs(np.zeros_like(counts), counts)
    time, place = np.divmod(inside, places_of[owners])
    grids = np.array([clip.grid for clip in clips])[owners]
    row, column = np.divmod(place, grids[:, 1])
    longest_rows, longest_frame = first + int(counts.max()), first + int(places_of.max())
    places_before = places_of.cumsum() - places_of
    cells = np.stack(
        [
            owners * longest_rows + first + inside,
            (places_before[owners] + place) * T + time,
            (owners * T + time) * longest_frame + first + place,
        ],
        axis=1,
    )
    # Class rows lie before all tubes.
    vectors = first * num_spans + np.arange(num_rows)
    if kept:
        starts = counts.cumsum() - counts
        vectors = np.insert(vectors, starts, np.arange(num_spans))
    room = max(laid.room, num_rows)
    patches = np.zeros((room, clips[0].patches.shape[1]), dtype=np.uint8)
    np.concatenate([clip.patches for clip in clips], out=patches[:num_rows])
    return VideoSpans(
        patches=torch.from_numpy(patches),
        places=_filled(np.stack([time, row, column], axis=1), room, 0),
        grids=_filled(grids, room, 1),
        cells=_filled(cells, room, 0),
        vectors=padded(vectors, laid.room),
        num_rows=num_rows,
        **laid.packed,
        num_spans=num_spans,
        num_places=int(places_of.sum()),
        longest_rows=longest_rows,
        longest_frame=longest_frame,
    )


def _filled(values: npt.NDArray[np.int64], room: int, filler: int) -> torch.Tensor:
    found = np.full((room, values.shape[1]), filler, dtype=np.int64)
    found[: len(values)] = values
    return torch.from_numpy(found)
