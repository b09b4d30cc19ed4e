"""What a class of transformers makes of a picture before its model reads it."""

from collections.abc import Sequence
from typing import Any, Final

from tools.hub.families.table import Described

PROCESSOR: Final = "preprocessor_config.json"
"""The file, and the key under which `take` finds what is in it."""
_RESAMPLING: Final = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""


def pictures(
    described: Described,
    shape: dict[str, Any],
    faults: list[str],
    *,
    resample: int,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    cuts: bool = False,
) -> dict[str, Any]:
    """The shape, and how pictures are read for it: as the processor in the folder says.

    Args:
        described: config.json, with the processor's file in it if there is one.
        shape: of the encoder.
        faults: what we do not compute is added.
        resample: what the class does where nothing is said; and so for the others.
        mean: of colours.
        std: of colours.
        cuts: whether pictures are cut to their size.
    """
    processor = described.get(PROCESSOR, {})
    number = processor.get("resample", resample)
    if number not in _RESAMPLING:
        faults.append(f"{PROCESSOR}: resample {number}: pixels are bilinear (2) or bicubic (3)")
    factor = processor.get("rescale_factor", 1 / 255)
    if processor.get("do_rescale", True) and abs(factor * 255 - 1) > 1e-6:
        faults.append(f"{PROCESSOR}: rescale_factor {factor}: pixels are between 0 and 1")
    if not processor.get("do_rescale", True) or not processor.get("do_resize", True):
        faults.append(f"{PROCESSOR}: do_rescale, do_resize: pictures get one size, and 0 to 1")
    if not processor.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean, std = processor.get("image_mean", mean), processor.get("image_std", std)
    size, fit = _sides(processor.get("size", shape["size"]), cuts)
    read = {
        "size": shape["size"],
        "resample": _RESAMPLING.get(number, "bicubic"),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "fit": fit,
    }
    if processor.get("do_center_crop", cuts):
        cut, _ = _sides(processor.get("crop_size", shape["size"]), cuts)
        read |= {"size": cut, "resized": size if size != cut else None}
    elif fit == "crop":
        faults.append(f"{PROCESSOR}: size: without do_center_crop pictures would keep their aspect")
    else:
        read["size"] = size
    return shape | read


def _sides(size: Any, cuts: bool) -> tuple[list[int], str]:
    """Height and width, and how a picture comes to them."""
    if isinstance(size, dict):
        if "shortest_edge" in size:
            return [size["shortest_edge"]] * 2, "crop"
        return [size["height"], size["width"]], "stretch"
    fit = "crop" if cuts else "stretch"
    return (list(size) if isinstance(size, list | tuple) else [size, size]), fit
