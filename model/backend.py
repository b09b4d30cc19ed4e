"""Which of torch's attention kernels compute, and whether one that was asked for is there."""

import functools
import importlib
import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

Backend = Literal["auto", "flash", "cudnn", "efficient", "math", "flash3", "flash4"]
"""What computes attention: whatever is fastest, or one kind of kernel."""

_EXTERNAL: dict[Backend, tuple[str, str]] = {
    "flash3": ("FA3", "flash_attn_interface"),
    "flash4": ("FA4", "flash_attn.cute.interface"),
}
"""Packages that torch can put in the place of its own flash kernels, and their modules."""

_ONE_KIND: dict[Backend, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "flash3": SDPBackend.FLASH_ATTENTION,
    "flash4": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

_OF_ANY_SHAPE = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    backend: Backend,
    bias: Tensor | None = None,
    causal: bool = False,
    steady: bool = True,
) -> Tensor:
    """Scaled dot-product attention, [N, A, L, D] each, by the kernels that suit the call.

    Args:
        query: what asks.
        key: what is asked.
        value: what is mixed.
        backend: as configured. It holds for causal calls of steady shape, which is what the decoder
            trains with; `math` for all of them.
        bias: added to the scores.
        causal: whether a row sees no later one.
        steady: whether calls have one shape throughout a run.
    """
    kernels = kernels_for(backend, query.device, steady=steady and bias is None)
    if bias is not None and _is_slow_backwards(query):
        kernels = [SDPBackend.MATH]
    if kernels is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal)
    with sdpa_kernel(kernels):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal)


def _is_slow_backwards(query: Tensor) -> bool:
    """Whether a call with a bias has a backward that CPUs' fused kernel is no good at.

    In bf16 it takes four to nine times as long as the plain one, which a bias that trains has in
    any case; its forward alone, in half the time of the plain one, is worth having.
    """
    in_bf16 = query.is_cpu and query.dtype == torch.bfloat16
    return in_bf16 and query.requires_grad and torch.is_grad_enabled()


def kernels_for(backend: Backend, device: torch.device, *, steady: bool) -> list[SDPBackend] | None:
    """Kernels among which torch may choose; None is torch's own choice."""
    if backend == "math":
        return [SDPBackend.MATH]
    if device.type == "cpu":
        # A bias that trains has the plain kernel alone.
        return None if backend == "auto" else [_ONE_KIND[backend], SDPBackend.MATH]
    if not steady:
        # cuDNN would build a plan for each shape, for up to a second, and with a bias its backward
        # may not be finite (pytorch#196678); flash attention takes no bias.
        return _OF_ANY_SHAPE
    return None if backend == "auto" else [_ONE_KIND[backend]]


@functools.cache
def activate(backend: Backend) -> None:
    """Put the package that is asked for in the place of torch's flash kernels, in this process.

    Raises:
        ImportError: it is not installed, or this torch cannot.
    """
    if backend not in _EXTERNAL:
        return
    name, module = _EXTERNAL[backend]
    importlib.import_module(module)
    if not hasattr(attention, "activate_flash_attention_impl"):
        raise ImportError(f"torch {torch.__version__} cannot use it, torch 2.13 can")
    attention.activate_flash_attention_impl(name)


def fault(
    backend: Backend, *, device: torch.device, dtype: torch.dtype, head_width: int
) -> str | None:
    """Why a back end cannot compute the decoder's attention here, None if it can; tries it.

    Args:
        backend: as configured.
        device: where the model will be.
        dtype: of its activations.
        head_width: D.
    """
    if backend == "auto":
        return None
    where = f"the {'CPU' if device.type == 'cpu' else 'GPU'} in {str(dtype)[6:]}"
    remedy = "leave the key out, which takes the fastest that is there"
    if backend in _EXTERNAL and device.type == "cpu":
        return f"{backend} is for GPUs, and this run is on the CPU: {remedy}"
    try:
        activate(backend)
        with warnings.catch_warnings(), sdpa_kernel(_ONE_KIND[backend]):
            warnings.simplefilter("ignore")  # each reason, one by one
            x = torch.zeros(1, 1, 128, head_width, dtype=dtype, device=device, requires_grad=True)
            F.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()
    except ImportError as error:
        return f"{backend} cannot be loaded ({error}): install its package, or {remedy}"
    except RuntimeError:
        return f"{backend} is not there for {where} with heads of {head_width}: {remedy}"
    return None
