"""Lets transformers and mosaicml-streaming be imported where torchvision's own library cannot load.

Both import torchvision, whose compiled library is built for one build of torch (the CUDA one, say)
and does not load beside another (the CPU one). torchvision's Python code then fails when it
registers an operator whose compiled code is missing. We use no operator of it, so naming them is
enough.
"""

import importlib
from functools import cache

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def install() -> torch.library.Library | None:
    """Make `import torchvision` work; call it before `streaming` or a transformers class.

    Returns:
        What names the operators, kept for as long as the process lives: they vanish with it. None
        where torchvision is absent or works.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return None
    except RuntimeError:  # operator torchvision::nms does not exist
        # FRAGMENT: another package may have opened the namespace for the same reason.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)
        return library
