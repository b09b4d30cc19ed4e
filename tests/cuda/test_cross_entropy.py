"""The head on a GPU: the kernel against torch's pass, and the whole against fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.loss import (
    LinearCrossEntropy,
    LossKernel,
    chosen_cross_entropy,
    cross_entropy_,
    why_no_triton,
)

GPU = torch.device("cuda", 0)
UNIT = {torch.float32: 1e-5, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize(("num_tokens", "padding"), [(64_000, 0), (50_257, 47), (97, 0), (40, 88)])
def test_the_kernel_computes_what_torch_does(
    num_tokens: int, padding: int, dtype: torch.dtype
) -> None:
    assert why_no_triton(GPU) is None
    torch.manual_seed(0)
    logits = (5 * torch.randn(257, num_tokens + padding, device=GPU)).to(dtype)
    targets = torch.randint(num_tokens, (257,), device=GPU)
    wanted, kept = logits.clone(), logits.clone()
    kernel = chosen_cross_entropy("auto", GPU)
    assert kernel is not cross_entropy_
    losses = cross_entropy_(wanted, targets, num_tokens=num_tokens, shard=None, gradient=True)
    alone = kernel(logits, targets, num_tokens=num_tokens, shard=None, gradient=False)
    assert torch.equal(logits, kept)
    found = kernel(logits, targets, num_tokens=num_tokens, shard=None, gradient=True)
    assert torch.equal(found, alone)
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, wanted, rtol=UNIT[dtype], atol=1e-6)


def test_rows_beyond_the_first_two_billion_elements() -> None:
    """4.5 GB of logits, of which the last rows are looked at."""
    logits = torch.zeros(35_000, 64_000, dtype=torch.bfloat16, device=GPU)
    logits[-3:].normal_(std=5.0)
    wanted, targets = logits[-3:].clone(), torch.arange(35_000, device=GPU)
    losses = cross_entropy_(wanted, targets[-3:], num_tokens=64_000, shard=None, gradient=True)
    kernel = chosen_cross_entropy("triton", GPU)
    found = kernel(logits, targets, num_tokens=64_000, shard=None, gradient=True)
    torch.testing.assert_close(found[-3:], losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[-3:], wanted, rtol=2**-8, atol=1e-6)


def _gradients(
    kernel: LossKernel, chunk_tokens: int | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients of 1,000 scored slots of 1,100, and fp64's of the same values."""
    torch.manual_seed(0)
    weight = nn.Parameter((torch.randn(5_003, 256, device=GPU) / 16).to(dtype))
    states = torch.randn(1_100, 256, device=GPU).to(dtype).requires_grad_()
    targets = torch.randint(5_003, (1_100,), device=GPU)
    head = LinearCrossEntropy(weight, chunk_tokens=chunk_tokens, kernel=kernel)
    head(states, targets, 1_000).total.backward()  # compiles
    weight.grad = states.grad = None
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = head(states, targets, 1_000).total
        total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert weight.grad is not None
    assert states.grad is not None
    assert weight.grad.dtype == states.grad.dtype == dtype
    exact, exact_weight = (x.detach().double().requires_grad_() for x in (states, weight))
    wanted = F.cross_entropy(exact[:1_000] @ exact_weight.t(), targets[:1_000], reduction="sum")
    wanted.backward()
    return (
        (total.double() - wanted).abs() / wanted,
        _error(states.grad, exact.grad),
        _error(weight.grad, exact_weight.grad),
    )


def _error(found: Tensor, wanted: Tensor | None) -> Tensor:
    assert wanted is not None
    return (found.double() - wanted).norm() / wanted.norm()


@pytest.mark.parametrize("kernel", ["triton", "torch"])
@pytest.mark.parametrize("chunk_tokens", [None, 100, 999])
def test_the_head_equals_fp64_and_never_waits(kernel: LossKernel, chunk_tokens: int | None) -> None:
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 0.01)):
        total, of_states, of_weight = _gradients(kernel, chunk_tokens, dtype)
        assert max(float(total), float(of_states), float(of_weight)) < most
