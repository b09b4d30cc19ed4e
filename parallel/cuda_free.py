"""Patches torch so that megatron-core runs without CUDA; with CUDA it changes nothing."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def install() -> None:
    """Makes the CPU the current "CUDA" device, and its synchronisation a no-op.

    megatron-core allocates what it sends on `torch.cuda.current_device()`.
    """
    if not torch.cuda.is_available():
        cuda: Any = torch.cuda
        cuda.current_device = lambda: CPU
        cuda.synchronize = lambda device=None: None


def on_cpu() -> AbstractContextManager[Any]:
    """Within the context, tensors that are asked for on "cuda" are made on the CPU.

    megatron-core's schedules name that device literally.
    """
    return nullcontext() if torch.cuda.is_available() else _CpuInsteadOfCuda()


class _CpuInsteadOfCuda(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        options = dict(kwargs or {})
        if str(options.get("device")).startswith("cuda"):
            options["device"] = CPU
        return func(*args, **options)
