"""Spectrograms are Whisper's."""

import numpy as np
import pytest

from model import torchvision_free

torchvision_free.install()

from transformers import WhisperFeatureExtractor  # noqa: E402  # behind what lets it be imported

from tests.model.encoders.test_audio import tiny_config  # noqa: E402
from train.data.spans.hearing import in_blocks  # noqa: E402
from train.data.spans.mel import log_mel  # noqa: E402


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("count", [48_000, 16_001, 300, 480_000])
def test_of_sounds_up_to_half_a_minute(mels: int, count: int) -> None:
    """Filled up with silence, as its processor fills them; it computes in 32 bits."""
    random = np.random.default_rng(count)
    samples = random.uniform(-0.3, 0.3, count).astype(np.float32)
    samples *= np.linspace(0, 1, count, dtype=np.float32) ** 3
    theirs = WhisperFeatureExtractor(feature_size=mels)
    wanted = theirs(samples, sampling_rate=16_000, return_tensors="np").input_features[0].T
    encoder = tiny_config(front={"kind": "log_mel", "mels": mels}, padded_seconds=30.0)
    sound = in_blocks(samples, encoder)
    assert sound.blocks.shape == (1501, 2 * mels)
    assert not sound.blocks[-1].any()
    np.testing.assert_allclose(sound.blocks[:-1].reshape(3000, mels), wanted, atol=5e-5)


def test_without_silence() -> None:
    """The frames are those of the sound alone, and the same as of whole hops of it."""
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 1600).astype(np.float32)
    frames = log_mel(samples, rate=16_000, mels=20)
    assert frames.shape == (10, 20)
    assert log_mel(samples[:1441], rate=16_000, mels=20).shape == (10, 20)
    assert log_mel(samples[:1], rate=16_000, mels=20).shape == (1, 20)
    np.testing.assert_array_equal(frames[1:8], log_mel(samples[:1440], rate=16_000, mels=20)[1:8])


def test_a_tone_is_loudest_in_its_band() -> None:
    for hertz, band in ((200.0, 2), (1000.0, 14), (6000.0, 35)):
        wave = np.sin(2 * np.pi * hertz / 16_000 * np.arange(3200)).astype(np.float32)
        frames = log_mel(wave, rate=16_000, mels=40)
        loudest = frames[3:-3].argmax(axis=1)
        assert (loudest == loudest[0]).all()
        assert loudest[0] == pytest.approx(band, abs=1)


def test_silence_is_flat() -> None:
    frames = log_mel(np.zeros(3200, dtype=np.float32), rate=16_000, mels=40)
    assert (frames == np.float32(-1.5)).all()
