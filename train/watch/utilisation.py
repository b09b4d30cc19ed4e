"""MFU: which share of its GPUs' arithmetic a run uses, by one formula wherever it is told."""

from typing import Final

FORMULA: Final = (
    "MFU = tokens/s x (6 N + 12 L d T) / peak; N decoder parameters, L layers, d width, T slots"
)

PEAK_FLOPS: Final = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("B200", 2250e12),
)
"""Dense bf16 peak by a part of the device's name, as its maker gives it; the first match holds."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second that the maker gives, None if the device is not known."""
    return next((peak for part, peak in PEAK_FLOPS if part in device_name), None)


def flops_per_token(*, parameters: int, num_layers: int, width: int, slots: int) -> int:
    """Operations that `FORMULA` counts.

    Args:
        parameters: of the decoder.
        num_layers: of the decoder.
        width: of the decoder.
        slots: of a sequence.
    """
    return 6 * parameters + 12 * num_layers * width * slots
