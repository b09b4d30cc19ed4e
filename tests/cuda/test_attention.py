"""Attention on a GPU: documents apart, the encoder's bias, and who computes them."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from model.backend import Backend, attend, fault
from model.documents import attend_within
from tests.model.test_documents import drawn, upstream, wanted

DEVICE = torch.device("cuda")
STARTS = [0, 130, 131, 200, 456]
ROWS = 520


def within(dtype: torch.dtype, backend: Backend) -> list[Tensor]:
    """How far output and gradient are from those of all scores with a mask."""
    qkv = drawn(ROWS, dtype)
    leaf = qkv.to(DEVICE).requires_grad_()
    bounds = torch.tensor([*STARTS, ROWS, ROWS], dtype=torch.int32, device=DEVICE)
    mixed = attend_within(leaf, bounds, most_rows=ROWS, backend=backend)
    mixed.backward(upstream(qkv).to(leaf))
    assert leaf.grad is not None
    off = [
        (found.cpu().double() - expected).abs().max() / expected.abs().max()
        for found, expected in zip((mixed, leaf.grad), wanted(qkv, STARTS), strict=True)
    ]
    return off


@pytest.mark.parametrize("backend", ["auto", "math"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 2e-2)]
)
def test_documents_do_not_see_each_other(
    dtype: torch.dtype, tolerance: float, backend: Backend
) -> None:
    assert max(within(dtype, backend)) < tolerance


def kernels(backend: Backend, *, bias: bool, trains: bool = False) -> str:
    """Names of what a call in bf16 runs."""
    x = torch.randn(4, 2, 144, 64, dtype=torch.bfloat16, device=DEVICE)
    added = torch.zeros(4, 2, 144, 144, dtype=x.dtype, device=DEVICE) if bias else None
    if added is not None:
        added.requires_grad_(trains)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        attend(x, x, x, backend=backend, bias=added, causal=not bias)
        torch.cuda.synchronize()
    return " ".join(event.key for event in seen.key_averages()).lower()


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trains"])
@pytest.mark.parametrize("backend", ["auto", "cudnn", "flash"])
def test_a_bias_never_reaches_cudnn(backend: Backend, trains: bool) -> None:
    assert "cudnn" not in kernels(backend, bias=True, trains=trains)


@pytest.mark.parametrize(("backend", "name"), [("cudnn", "cudnn"), ("flash", "flash")])
def test_the_decoder_is_computed_by_what_was_asked_for(backend: Backend, name: str) -> None:
    if (reason := fault(backend, device=DEVICE, dtype=torch.bfloat16, head_width=64)) is not None:
        pytest.skip(reason)
    assert name in kernels(backend, bias=False)


def test_fused_kernels_of_half_precision_are_not_there_in_fp32() -> None:
    for each in ("flash", "cudnn"):
        reason = fault(each, device=DEVICE, dtype=torch.float32, head_width=64)
        assert reason is not None
        assert "leave the key out" in reason
    assert fault("efficient", device=DEVICE, dtype=torch.float32, head_width=64) is None
