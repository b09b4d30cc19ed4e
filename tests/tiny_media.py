"""What makes the tiny run one that reads media, by modality."""

from collections.abc import Mapping
from typing import Final

from tests.tiny_pictures import PICTURES

_AUDIO = (
    "{kind: audio, width: 16, num_layers: 2, heads: 2, feed_forward: 32, max_seconds: 0.2, "
    "front: {kind: log_mel, mels: 20}}"
)
_VIDEO = (
    "{kind: video, width: 16, num_layers: 2, heads: 2, feed_forward: 32, patch_pixels: 8, "
    "frames: 4, size: [32, 8]}"
)
READING: Final[Mapping[str, tuple[str, ...]]] = {
    "image": PICTURES,
    "audio": (
        f"model.encoders.audio={{encoder: {_AUDIO}}}",
        "spans.audio={kind: audio}",
        "data.pack=fit",
        "spans.text.ratio=0.0",
    ),
    "video": (
        f"model.encoders.video={{encoder: {_VIDEO}}}",
        "spans.video={kind: video}",
        "data.pack=fit",
        "spans.text.ratio=0.0",
    ),
}
