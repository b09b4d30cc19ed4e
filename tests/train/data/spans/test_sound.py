"""From files to samples: every kind of file that there is, and those that cannot be read."""

import struct
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.model.encoders.test_audio import MEL, WAVE, tiny_config
from tests.sounds import noise, saved, tone
from tools.corpus.media import RowError
from tools.corpus.media import measured as measured_in_a_build
from train.data.document import Kind
from train.data.spans.hearing import read_sound
from train.data.spans.sound import MOST_SAMPLES, measured, read_samples

LOSSLESS: dict[str, dict[str, Any]] = {
    "wav": {"format": "WAV"},
    "wav of 24 bits": {"format": "WAV", "subtype": "PCM_24"},
    "wav of floats": {"format": "WAV", "subtype": "DOUBLE"},
    "wav, extensible": {"format": "WAVEX"},
    "flac": {"format": "FLAC"},
}
LOSSY: dict[str, dict[str, Any]] = {
    "mp3": {"format": "MP3"},
    "vorbis": {"format": "OGG"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "wav of mu-law": {"format": "WAV", "subtype": "ULAW"},
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_samples_are_those_of_the_file(kind: str) -> None:
    samples = noise(5001)
    data = saved(samples, 16_000, **LOSSLESS[kind])
    assert measured(data) == (5001, 16_000)
    found = read_samples(data, rate=16_000, size=(5001, 16_000))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, samples[:, 0], atol=2**-15)


@pytest.mark.parametrize("kind", LOSSY)
def test_other_files_sound_alike(kind: str) -> None:
    """A sine of 440 Hz stays the loudest."""
    wave = 0.3 * np.sin(2 * np.pi * 440 / 48_000 * np.arange(24_000))
    data = saved(wave, 48_000, **LOSSY[kind])
    assert measured(data) == (24_000, 48_000)
    found = read_samples(data, rate=16_000, size=(24_000, 48_000))
    assert found.shape == (8000,)
    assert np.abs(np.fft.rfft(found)).argmax() == 220


def test_channels_are_averaged() -> None:
    samples = noise(900, channels=2)
    found = read_samples(saved(samples, 8000), rate=8000)
    np.testing.assert_allclose(found, samples.mean(axis=1), atol=2**-15)
    opposite = np.stack([samples[:, 0], -samples[:, 0]], axis=1)
    quiet = read_samples(saved(opposite, 8000, subtype="DOUBLE"), rate=8000)
    assert not quiet.any()


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000, 16_001])
def test_another_rate_keeps_tones(rate: int) -> None:
    """A sine is the same sine, but for the ends, where the filter reads beyond the sound."""
    data = tone(440, rate, rate)
    found = read_samples(data, rate=16_000)
    assert len(found) == 16_000
    wanted = 0.3 * np.sin(2 * np.pi * 440 / 16_000 * np.arange(16_000))
    np.testing.assert_allclose(found[200:-200], wanted[200:-200], atol=2e-3)


def test_what_is_beyond_the_band_is_gone() -> None:
    """7 kHz at 16 kHz would be heard as 1 kHz at 8 kHz, were samples only left out."""
    found = read_samples(tone(7000, 16_000, 16_000), rate=8000)
    assert np.abs(found[100:-100]).max() < 1e-3


def test_silence_is_read() -> None:
    data = saved(np.zeros(800), 8000)
    assert measured(data) == (800, 8000)
    for options in (MEL, WAVE | {"max_seconds": 0.2}):
        sound = read_sound(data, tiny_config(**options), size=(800, 8000))
        assert sound.samples == 1600
        assert np.isfinite(sound.blocks).all()


def test_a_wav_whose_length_was_not_known_is_read_to_its_end() -> None:
    """As programs write it that write to a pipe."""
    samples = noise(700)
    data = bytearray(saved(samples, 8000))
    at = data.index(b"data") + 4
    for untold in (0xFFFF_FFFF, 0x7FFF_F000):
        data[at : at + 4] = struct.pack("<I", untold)
        assert measured(bytes(data)) == (700, 8000)


def cut(kind: str, share: float) -> bytes:
    data = saved(noise(60_000), 48_000, **(LOSSLESS | LOSSY)[kind])
    return data[: int(len(data) * share)]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_what_is_cut_off_is_refused(kind: str, share: float) -> None:
    data = cut(kind, share)
    with pytest.raises(ValueError, match=r"cut off|cannot be read"):
        measured(data)
    with pytest.raises(ValueError, match=r"cut off|cannot be read"):
        read_samples(data, rate=16_000)


def floats(*values: float) -> bytes:
    return saved(np.array(values), 8000, subtype="FLOAT")


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "no format that is known begins with b'.x89P"),
    "a word": (b"abc", "no format that is known begins with b'abc'"),
    "no frames": (b"ID3" + bytes(99), "cannot be read"),
    "no length": (saved(np.zeros((0, 1)), 8000), "has no samples"),
    "another format": (saved(noise(9), 8000, "AIFF"), "it is AIFF.*use one of WAV, FLAC, Ogg and"),
    "not a number": (floats(0.1, float("nan")), "has samples that are no numbers"),
    "infinite": (floats(float("inf")), "has samples that are no numbers"),
    "slow": (saved(noise(9), 999), "has 999 samples a second: rates are from 1000 to 384000"),
    "fast": (saved(noise(9), 400_000), "has 400000 samples a second"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_told(name: str) -> None:
    data, told = BAD[name]
    with pytest.raises(ValueError, match=told):
        measured(data)
    with pytest.raises(ValueError, match=told):
        read_samples(data, rate=16_000)
    with pytest.raises(RowError, match=f"the audio .*{told}"):
        measured_in_a_build(Kind.AUDIO, data)


def test_a_file_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_SAMPLES > 3600 * 48_000
    monkeypatch.setattr("train.data.spans.sound.MOST_SAMPLES", 1000)
    data = saved(np.zeros((501, 2)), 8000, "FLAC")
    with pytest.raises(ValueError, match="has more than 1,000 samples: cut it, or leave it out"):
        measured(data)
    assert measured(saved(np.zeros((500, 2)), 8000, "FLAC")) == (500, 8000)


def test_what_was_recorded_must_be_there() -> None:
    data = saved(noise(900), 8000)
    for size in ((901, 8000), (900, 16_000)):
        with pytest.raises(
            ValueError, match=r"has 900 samples at 8000 Hz and had .* at .* Hz when"
        ):
            read_samples(data, rate=16_000, size=size)


def test_a_sound_that_is_too_long_is_not_decoded_to_its_end() -> None:
    encoder = tiny_config(**MEL)
    assert len(read_sound(saved(noise(1600), 8000), encoder).blocks) == 11
    with pytest.raises(ValueError, match=r"is longer than 0\.2 seconds"):
        read_sound(saved(noise(1601), 8000), encoder)


def test_files_are_closed_and_bytes_alone_are_read(tmp_path: Any) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(saved(noise(90), 8000))
    with pytest.raises(ValueError, match="cannot be read"):
        measured(str(path).encode())
    assert soundfile.info(path).frames == 90
