"""Log-mel spectrograms as Whisper reads them."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from model.encoders.fronts import HOP_SAMPLES, WINDOW_SAMPLES

_FLOOR = 1e-10
_RANGE = 8.0
"""Powers of ten that are kept below the loudest."""


def log_mel(samples: npt.NDArray[np.float32], *, rate: int, mels: int) -> npt.NDArray[np.float32]:
    """Loudness by time and band, [ceil(T / 160), mels]; computed in 64 bits.

    The sound is mirrored at both ends, and ends in silence if it does not end with a hop.

    Args:
        samples: [T].
        rate: samples a second.
        mels: bands.

    Source: Whisper (2212.04356) §2.2, as `openai/whisper` computes it.
    """
    count = max(1, -(-len(samples) // HOP_SAMPLES))
    whole = np.zeros(count * HOP_SAMPLES)
    whole[: len(samples)] = samples
    whole = np.pad(whole, WINDOW_SAMPLES // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(whole, WINDOW_SAMPLES)[::HOP_SAMPLES]
    hann = np.hanning(WINDOW_SAMPLES + 1)[:-1]
    power = np.abs(np.fft.rfft(windows[:count] * hann)) ** 2
    loudness = np.log10(np.maximum(power @ _filters(rate, mels), _FLOOR))
    loudness = np.maximum(loudness, loudness.max() - _RANGE)
    return ((loudness + 4) / 4).astype(np.float32)


@lru_cache(maxsize=8)
def _filters(rate: int, mels: int) -> npt.NDArray[np.float64]:
    """[bins, mels] triangles of equal area, from 0 to half the rate (Slaney's)."""
    bins = np.linspace(0, rate / 2, WINDOW_SAMPLES // 2 + 1)
    edges = _hertz(np.linspace(0, _mel(rate / 2), mels + 2))
    widths = np.diff(edges)
    slopes = edges[None] - bins[:, None]
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2 / (edges[2:] - edges[:-2]))


_LINEAR = 200 / 3
"""Hertz of a mel, up to `_BEND` hertz; beyond, 27 mels are a factor of 6.4."""
_BEND = 1000.0
_STEP = np.log(6.4) / 27


def _mel(hertz: float) -> float:
    if hertz < _BEND:
        return hertz / _LINEAR
    return float(_BEND / _LINEAR + np.log(hertz / _BEND) / _STEP)


def _hertz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    bend = _BEND / _LINEAR
    return np.where(mels < bend, mels * _LINEAR, _BEND * np.exp(_STEP * (mels - bend)))
