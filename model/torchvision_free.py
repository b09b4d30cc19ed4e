"""Lets transformers and mosaicml-streaming be imported where torchvision's own library cannot load.

Both import torchvision, whose compiled library is built for one build of torch (the CUDA one, say)
and does not load beside another (the CPU one). torchvision's Python code then fails when it
registers an operator whose compiled code is missing. We use no operator of it, so naming them is
enough.
"""

import contextlib
import importlib.machinery
import importlib.util
from functools import cache

import torch

_OPERATORS = ("nms", "qnms")
_LIBRARIES = ("_C_stable", "_C")  # since torchvision 0.29, and before
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def install() -> bool:
    """Make `import torchvision` work; call it before `streaming` or a transformers class.

    Does nothing where torchvision is absent or its library loads, and nothing the second time.

    Returns:
        Whether the operators had to be named.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    if hasattr(torch.ops.torchvision, _OPERATORS[0]):
        return False
    if _library_loads(spec.submodule_search_locations[0]):
        return False
    # FRAGMENT: another package may have opened the namespace for the same reason. The library must
    # outlive this call, or its operators vanish with it.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        library.define(operator + _SCHEMA)
    _kept.append(library)
    return True


_kept: list[torch.library.Library] = []


def _library_loads(directory: str) -> bool:
    finder = importlib.machinery.FileFinder(
        directory,
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
    )
    for library in map(finder.find_spec, _LIBRARIES):
        if library is not None and library.origin is not None:
            # What torchvision itself does; loading it twice costs nothing.
            with contextlib.suppress(OSError):
                torch.ops.load_library(library.origin)
                return True
    return False
