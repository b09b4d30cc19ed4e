"""What makes the tiny run one that reads pictures."""

ENCODER = (
    "{kind: image, width: 16, num_layers: 2, heads: 2, feed_forward: 32, patch_pixels: 8, "
    "max_patches: 16}"
)
PICTURES = (
    f"model.encoders.image={{encoder: {ENCODER}}}",
    "spans.image={kind: image}",
    "data.pack=fit",
    "spans.text.ratio=0.1",
)
