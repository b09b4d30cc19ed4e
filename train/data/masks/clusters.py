"""What is heard in a row of a sound, and in which cluster of such rows it lies."""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from model.encoders.audio import AudioEncoderConfig, AudioSpans
from model.encoders.fronts import HOP_SAMPLES, LogMelConfig
from train.data.spans.mel import log_mel
from train.data.spans.places import Ints
from train.errors import DataError

Features = npt.NDArray[np.float32]
COEFFICIENTS: Final = 13
"""Of the cosine transform of a log-mel frame, as speech recognisers have used them."""
NUM_FEATURES: Final = 2 * COEFFICIENTS
_MELS: Final = 40
"""Bands where the encoder's front hears none."""
_MIDDLES: Final = "middles"


def row_features(spans: AudioSpans, encoder: AudioEncoderConfig) -> Features:
    """[M, 26] of each vector of the sounds: mel cepstra, and how they change, without their means.

    A sound's own means are taken away, so that clusters tell what is spoken, and less by whom.

    Args:
        spans: packed.
        encoder: that reads them.
    """
    owners = spans.owners[: spans.num_blocks].numpy()
    blocks = spans.blocks[: spans.num_blocks].numpy()
    vectors = spans.vectors[: spans.num_vectors].numpy()
    rows_owner = spans.cells.numpy()[vectors] // spans.longest_rows
    counts = np.bincount(rows_owner, minlength=spans.num_spans).tolist()
    return np.concatenate(
        [_of_sound(blocks[owners == k], count, encoder) for k, count in enumerate(counts)]
    )


def _of_sound(blocks: Features, count: int, encoder: AudioEncoderConfig) -> Features:
    """[count, 26] of one sound."""
    front = encoder.front
    if isinstance(front, LogMelConfig):
        frames = blocks.reshape(-1, front.mels)
    else:
        frames = log_mel(blocks.reshape(-1), rate=encoder.rate, mels=_MELS)
    # Two frames a row, or those that are nearest to its begin.
    first = np.arange(count) * front.block_samples // HOP_SAMPLES
    last = len(frames) - 1
    mels = (frames[np.minimum(first, last)] + frames[np.minimum(first + 1, last)]) / 2
    cepstra = mels @ _cosines(mels.shape[1])
    cepstra = cepstra - cepstra.mean(axis=0)
    padded = np.pad(cepstra, ((1, 1), (0, 0)), mode="edge")
    return np.concatenate([cepstra, padded[2:] - padded[:-2]], axis=1).astype(np.float32)


def _cosines(bands: int) -> npt.NDArray[np.float64]:
    """[bands, 13] the cosine transform (II), orthonormal."""
    places = (np.arange(bands) + 0.5)[:, None] * np.arange(COEFFICIENTS)
    table = np.cos(np.pi / bands * places) * np.sqrt(2 / bands)
    table[:, 0] /= np.sqrt(2)
    return table


def nearest_of(features: Features, middles: Features) -> Ints:
    """The nearest middle of each."""
    distances = (middles**2).sum(axis=1) - 2 * features @ middles.T
    return distances.argmin(axis=1)


def clustered(features: Features, *, count: int, seed: int, rounds: int = 30) -> Features:
    """Middles of clusters by k-means, which begins with some of the rows far apart (k-means++).

    Raises:
        DataError: there are fewer rows than clusters.
    """
    if len(features) < count:
        raise DataError(
            f"{len(features)} rows are too few for {count} clusters: read more sequences, or "
            "lower objective.units"
        )
    random = np.random.default_rng(seed)
    middles = features[random.integers(len(features))][None]
    while len(middles) < count:
        nearest = ((features - middles[nearest_of(features, middles)]) ** 2).sum(axis=1)
        total = nearest.sum()
        chances = nearest / total if total > 0 else np.full(len(features), 1 / len(features))
        middles = np.concatenate([middles, features[random.choice(len(features), p=chances)][None]])
    for _ in range(rounds):
        owners = nearest_of(features, middles)
        sizes = np.bincount(owners, minlength=count)
        sums = np.zeros_like(middles)
        np.add.at(sums, owners, features)
        middles = np.where(sizes[:, None] > 0, sums / np.maximum(1, sizes)[:, None], middles)
        middles = middles.astype(np.float32)
    return middles


def save_middles(path: Path, middles: Features) -> None:
    """Write the middles of clusters as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({_MIDDLES: middles}, path)


def read_middles(path: Path, *, count: int) -> Features:
    """The middles that `save_middles` has written.

    Raises:
        DataError: there are none, or not as many.
    """
    try:
        found = load_file(path)[_MIDDLES]
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(
            f"objective.clusters: {path} cannot be read ({error}): write it with python -m "
            f"tools.units {path} and this run's configuration"
        ) from None
    if found.shape != (count, NUM_FEATURES):
        raise DataError(
            f"objective.clusters: {path} has middles of shape {list(found.shape)}, and "
            f"objective.units asks for {[count, NUM_FEATURES]}: write it again, or change units"
        )
    return found
