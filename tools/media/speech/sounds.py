"""Sounds as records hold them: FLAC, one channel, 16 kHz, equally loud, no silence around."""

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

RATE: Final = 16_000
"""Samples a second."""
_PEAK: Final = 0.5
_SILENT: Final = 0.01
"""Share of the peak below which it is silence, at the beginning and the end."""
_KEPT_SAMPLES: Final = 800
"""Of that silence, on either side."""

Samples = npt.NDArray[np.float32]


def trimmed(samples: Samples) -> Samples:
    """A sound without the silence around it, all but 50 ms; its peak at one half."""
    loud = np.abs(samples)
    peak = float(loud.max(initial=0))
    if not peak:
        return samples
    [places] = np.nonzero(loud > _SILENT * peak)
    first, last = max(0, int(places[0]) - _KEPT_SAMPLES), int(places[-1]) + _KEPT_SAMPLES
    return samples[first : last + 1] * np.float32(_PEAK / peak)


def joined(parts: Sequence[Samples]) -> Samples:
    """Trimmed sounds one behind the other."""
    return np.concatenate(list(parts))


def encoded(samples: Samples) -> bytes:
    """A FLAC file of 16 bits, the same for the same samples."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format="FLAC", subtype="PCM_16")
    return content.getvalue()
