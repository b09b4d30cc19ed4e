"""Imports megatron-core on first use: it takes seconds, and data-parallel runs do not need it."""

import importlib
import re
import warnings
from importlib.metadata import version
from typing import Any

import torch

SUPPORTED = ("0.16", "0.17")
"""First version that was tested, and the first that was not."""


def core(module: str) -> Any:
    """A module of megatron-core.

    Raises:
        RuntimeError: the installed version is not one that this program was tested with.
    """
    refuse_other_version("megatron-core", SUPPORTED)
    # It warns that Transformer Engine and Apex are missing, of which nothing is used here.
    warnings.filterwarnings("ignore", module=r"megatron\.core", message=".*([Aa]pex|full scope)")
    if not torch.cuda.is_available():
        warnings.filterwarnings("ignore", module=r"megatron\.core", message=".*CUDA_DEVICE_MAX")
    return importlib.import_module(f"megatron.core.{module}")


def refuse_other_version(package: str, supported: tuple[str, str]) -> None:
    """Refuses a version whose insides this program does not know.

    Args:
        package: its name as installed.
        supported: first version that is, and first that is no longer.

    Raises:
        RuntimeError: it is another version.
    """
    installed = version(package)
    first, beyond = (_numbers(text) for text in supported)
    if not first <= _numbers(installed) < beyond:
        raise RuntimeError(
            f"{package} {installed} is installed, but parallel/ relies on the insides of "
            f"{supported[0]} up to (not including) {supported[1]}: install "
            f"'{package}>={supported[0]},<{supported[1]}', as constraints.txt does"
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
