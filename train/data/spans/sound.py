"""Sounds: from the bytes of a file to the samples that an audio encoder reads."""

import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from math import gcd
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FORMATS: Final = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
"""What a file may be, by libsndfile's names; Opus comes in Ogg."""
MOST_SAMPLES: Final = 2**28
"""Of all channels together: an hour and a half at 48 kHz. More is a mistake, or an attack."""
RATES: Final = (1_000, 384_000)
"""Least and most samples a second of a file."""

Samples = npt.NDArray[np.float64]

_UNTOLD: Final = 0x7FFF_F000
"""Bytes of a .wav that says so many or more were written before their number was known."""
_BLOCK: Final = 2**18
_LAST_PAGE: Final = 4
"""Flag of a page of Ogg."""
_UNKNOWN, _SYSTEM = 1, 2
"""Codes of libsndfile."""


def measured(data: bytes, *, most_seconds: float | None = None) -> tuple[int, int]:
    """Samples of a sound that is whole, of one channel, and how many of them a second has.

    It is decoded to its end: what a header promises is not always there.

    Args:
        data: a file.
        most_seconds: of a longer one no more is decoded.

    Raises:
        ValueError: it cannot be read, or is longer; the message is the end of a sentence.
    """
    with _opened(data) as file:
        count = 0
        for part in _decoded(file):
            count += len(part)
            if most_seconds is not None and count > most_seconds * file.samplerate:
                raise ValueError(f"is longer than {most_seconds:g} seconds")
        return count, file.samplerate


def read_samples(
    data: bytes, *, rate: int, size: Sequence[int] | None = None, most: int | None = None
) -> npt.NDArray[np.float32]:
    """A sound between -1 and 1, of one channel and at one rate, the same for the same bytes.

    Channels are averaged. Another rate is reached by SciPy's `resample_poly`: a low-pass filter
    with a Kaiser window (beta 5, 10 zero crossings on either side) through which ceil(n rate /
    its own) samples go, in 64 bits.

    Args:
        data: a file.
        rate: samples a second that are wanted.
        size: samples and rate that were recorded when the corpus was built, if it was.
        most: samples at the wanted rate, if there is a bound.

    Raises:
        ValueError: it cannot be read, is not of this size or longer than that; the message is the
            end of a sentence.
    """
    with _opened(data) as file:
        own = file.samplerate
        bound = MOST_SAMPLES if most is None else most * own // rate
        parts: list[Samples] = []
        count = 0
        for part in _decoded(file):
            parts.append(part)
            count += len(part)
            if count > bound:
                raise ValueError(f"is longer than {bound / own:g} seconds")
    if size is not None and tuple(size) != (count, own):
        raise ValueError(
            f"has {count} samples at {own} Hz and had {size[0]} at {size[1]} Hz when the corpus "
            "was built"
        )
    return resampled(np.concatenate(parts), own, rate).astype(np.float32)


def resampled(samples: Samples, own: int, rate: int) -> Samples:
    """Samples at another rate."""
    if own == rate:
        return samples
    from scipy.signal import resample_poly  # takes a second, and many sounds do not need it

    common = gcd(own, rate)
    return resample_poly(samples, rate // common, own // common)


@contextmanager
def _opened(data: bytes) -> Generator[Any]:
    """The file, whose faults are told alike."""
    if not data:
        raise ValueError("is empty")
    _require_all_of_wav(data)
    _require_all_of_ogg(data)
    import soundfile  # loads a library, a tenth of a second that most runs need not wait for

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in FORMATS:
                raise ValueError(
                    f"cannot be read (it is {file.format}): use one of WAV, FLAC, Ogg and MP3"
                )
            least, most = RATES
            if not least <= file.samplerate <= most:
                raise ValueError(
                    f"has {file.samplerate} samples a second: rates are from {least} to {most}"
                )
            yield file
    except soundfile.LibsndfileError as error:
        raise ValueError(f"cannot be read ({_reason(error, data)})") from error


def _reason(error: Any, data: bytes) -> str:
    if error.code == _UNKNOWN:
        return f"no format that is known begins with {data[:8]!r}"
    if error.code == _SYSTEM:  # what it says then is of files, of which there is none
        return "it ends where its header would"
    return error.error_string.strip().rstrip(".")


def _decoded(file: Any) -> Iterator[Samples]:
    """Its samples, channels averaged, part after part."""
    count = 0
    while True:
        part = file.read(_BLOCK // file.channels, dtype="float64", always_2d=True)
        if not len(part):
            break
        count += len(part)
        if count * file.channels > MOST_SAMPLES:
            raise ValueError(f"has more than {MOST_SAMPLES:,} samples: cut it, or leave it out")
        mono = part.mean(axis=1)
        if not np.isfinite(mono).all():
            raise ValueError("has samples that are no numbers")
        yield mono
    if not count:
        raise ValueError("has no samples, or is cut off")
    if count < file.frames < MOST_SAMPLES:
        raise ValueError(f"is cut off: {count} of {file.frames} samples are there")


def _require_all_of_wav(data: bytes) -> None:
    """Refuse a .wav that says it is longer than it is, which libsndfile reads as far as it goes."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"data":
            there = len(data) - at - 8
            if there < size < _UNTOLD:
                raise ValueError(f"is cut off: {there} of {size} bytes of samples are there")
            return
        at += 8 + size + size % 2


def _require_all_of_ogg(data: bytes) -> None:
    """Refuse an Ogg whose last page is not there, which libsndfile reads as far as it goes."""
    at, flags = 0, _LAST_PAGE
    while data[at : at + 4] == b"OggS":
        table = data[at + 27 : at + 27 + data[at + 26]] if len(data) > at + 26 else b""
        flags = data[at + 5] if table else 0
        at += 27 + len(table) + sum(table)
        if at > len(data) or not table:
            flags = 0
            break
    if not flags & _LAST_PAGE:
        raise ValueError("is cut off: its last page is missing")
