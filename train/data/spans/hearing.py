"""What an audio encoder reads of sounds: blocks of frames or samples, packed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.encoders.audio import AudioEncoderConfig, AudioSpans
from model.encoders.fronts import LogMelConfig
from train.data.spans.media import Laid
from train.data.spans.mel import log_mel
from train.data.spans.places import FlatSpans, padded, runs
from train.data.spans.protocol import SpanCapacity
from train.data.spans.sound import read_samples


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One sound in blocks.

    Attributes:
        blocks: [k, D] what the front reads of it, zeros behind its end.
        samples: T, at the encoder's rate; without silence that follows it.
    """

    blocks: npt.NDArray[np.float32]
    samples: int


def read_sound(
    data: bytes, encoder: AudioEncoderConfig, *, size: Sequence[int] | None = None
) -> Sound:
    """What an encoder reads of a sound, the same for the same bytes everywhere.

    Args:
        data: a file.
        encoder: what is to read it.
        size: samples and rate that were recorded when the corpus was built, if it was.

    Raises:
        ValueError: it cannot be read, is too long, or is not of this size; the message is the end
            of a sentence.
    """
    samples = read_samples(data, rate=encoder.rate, size=size, most=encoder.most_samples)
    return in_blocks(samples, encoder)


def in_blocks(samples: npt.NDArray[np.float32], encoder: AudioEncoderConfig) -> Sound:
    """Samples at the encoder's rate, as its front reads them."""
    front, count = encoder.front, len(samples)
    whole = np.zeros(max(count, encoder.padded_samples), dtype=np.float32)
    whole[:count] = samples
    if isinstance(front, LogMelConfig):
        frames = log_mel(whole, rate=encoder.rate, mels=front.mels)
    else:
        # Silence that is added is 0, as wav2vec 2.0 adds it.
        if front.normalized:
            own = samples.astype(np.float64)
            whole[:count] = (own - own.mean()) / np.sqrt(own.var() + 1e-7)
        frames = whole
    blocks = np.zeros((front.num_blocks(len(whole)), front.block_width), dtype=np.float32)
    blocks.reshape(-1)[: frames.size] = frames.reshape(-1)
    return Sound(blocks=blocks, samples=count)


def vectors_of(sound: Sound, encoder: AudioEncoderConfig) -> int:
    """How many vectors the encoder gives of a sound: none of the silence behind it."""
    return encoder.front.num_rows(sound.samples)


def pack_sounds(
    sounds: Sequence[Sound],
    spans: FlatSpans,
    *,
    encoder: AudioEncoderConfig,
    capacity: SpanCapacity,
    sequences: int,
    sequence_tokens: int,
) -> AudioSpans:
    """Pack the sounds of B sequences block after block.

    Args:
        sounds: one for each span.
        spans: where their vectors go, as many as each has.
        encoder: what is to read them.
        capacity: room in one sequence; arrays have B times as much.
        sequences: B.
        sequence_tokens: S.
    """
    B, front = sequences, encoder.front
    laid = Laid.of(
        sounds,
        spans,
        vectors=lambda sound: vectors_of(sound, encoder),
        padding=lambda: in_blocks(np.zeros(1, dtype=np.float32), encoder),
        encoder=encoder,
        capacity=capacity,
        sequences=B,
        sequence_tokens=sequence_tokens,
    )
    sounds = laid.items
    counts = np.array([len(sound.blocks) for sound in sounds])
    wholes = [max(sound.samples, encoder.padded_samples) for sound in sounds]
    rows_of = np.array([front.num_rows(whole) for whole in wholes])
    heard_of = np.array([vectors_of(sound, encoder) for sound in sounds])
    firsts = counts.cumsum() - counts
    inside = runs(np.zeros_like(counts), counts)
    frames_of = np.array([front.num_frames(whole) for whole in wholes])
    frames_left = np.repeat(frames_of, counts) - inside * front.block_frames
    places = runs(np.zeros_like(rows_of), rows_of)
    longest, num_blocks, num_rows = int(rows_of.max()), int(counts.sum()), int(rows_of.sum())
    heard = places < np.repeat(heard_of, rows_of)
    spans_rows = capacity.spans * front.num_rows(encoder.padded_samples)
    room_rows = max(laid.room, B * spans_rows if encoder.padded_samples else 0, num_rows)
    room_blocks = max(room_rows + B * capacity.spans * front.more_blocks, num_blocks)
    blocks = np.zeros((room_blocks, front.block_width), dtype=np.float32)
    np.concatenate([sound.blocks for sound in sounds], out=blocks[:num_blocks])
    return AudioSpans(
        blocks=torch.from_numpy(blocks),
        valid=padded(frames_left.clip(0, front.block_frames), room_blocks),
        owners=padded(np.repeat(np.arange(len(sounds)), counts), room_blocks),
        rows=padded(runs(firsts, rows_of), room_rows),
        positions=padded(places, room_rows),
        cells=padded(np.repeat(np.arange(len(sounds)) * longest, rows_of) + places, room_rows),
        vectors=padded(np.flatnonzero(heard), laid.room),
        num_blocks=num_blocks,
        num_rows=num_rows,
        **laid.packed,
        num_spans=len(sounds),
        longest_rows=longest,
    )
