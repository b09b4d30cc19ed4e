"""Attention inside documents against scores with a mask, and what it leaves out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import documents as apart
from model.backend import Backend
from model.documents import FP32_BELOW_ROWS, attend_within
from tools.plan.measure import metered

BACKENDS: list[Backend] = ["auto", "flash", "math"]


def masked(qkv: Tensor, documents: list[int]) -> Tensor:
    """All scores, of which those with other documents and with later rows are struck out."""
    R, _, _, D = qkv.shape
    query, key, value = (part.transpose(0, 1) for part in qkv.unbind(2))
    scores = query @ key.mT / D**0.5
    owner = torch.tensor([sum(start <= row for start in documents) for row in range(R)])
    row = torch.arange(R)
    seen = (owner[:, None] == owner[None, :]) & (row[:, None] >= row[None, :])
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(0, 1)


def with_gradient(qkv: Tensor, documents: list[int], backend: Backend) -> tuple[Tensor, Tensor]:
    """Output, and gradient of its product with what the same call has drawn for the oracle."""
    leaf = qkv.detach().clone().requires_grad_()
    bounds = torch.tensor(documents, dtype=torch.int32)
    mixed = attend_within(leaf, bounds, most_rows=len(qkv), backend=backend)
    mixed.backward(upstream(qkv).to(qkv.dtype))
    assert leaf.grad is not None
    return mixed.detach(), leaf.grad


def wanted(qkv: Tensor, documents: list[int]) -> tuple[Tensor, Tensor]:
    leaf = qkv.detach().double().requires_grad_()
    mixed = masked(leaf, documents)
    mixed.backward(upstream(qkv))
    assert leaf.grad is not None
    return mixed.detach(), leaf.grad


def upstream(qkv: Tensor) -> Tensor:
    R, A, _, D = qkv.shape
    generator = torch.Generator().manual_seed(1)
    return torch.randn(R, A, D, generator=generator, dtype=torch.float64)


def drawn(rows: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 2, 3, 8, generator=generator, dtype=torch.float64).to(dtype)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    room=st.integers(0, 3),
    backend=st.sampled_from(BACKENDS),
)
def test_documents_do_not_see_each_other(lengths: list[int], room: int, backend: Backend) -> None:
    """Few and many, so that they stay in place and are sorted; with and without room behind."""
    rows = sum(lengths)
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    documents = [*starts, *[rows] * (1 + room)]
    qkv = drawn(rows, torch.float64)
    found, expected = with_gradient(qkv, documents, backend), wanted(qkv, starts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_in_each_precision(backend: Backend, dtype: torch.dtype, tolerance: float) -> None:
    """Relative to the largest; one document is long enough to be computed as it is in bf16."""
    rows = FP32_BELOW_ROWS + 40
    starts = [0, FP32_BELOW_ROWS, FP32_BELOW_ROWS + 7]
    qkv = drawn(rows, dtype)
    found, expected = with_gradient(qkv, [*starts, rows], backend), wanted(qkv, starts)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        scale = other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * scale)
        assert one.double().norm().item() == pytest.approx(other.norm().item(), rel=tolerance / 4)


@pytest.mark.parametrize("longest", [1, 40])
def test_nothing_of_all_pairs_of_slots_exists(longest: int) -> None:
    """Neither in a call nor kept, whoever allocates it: less than a byte for each pair."""
    S = 1024
    qkv = drawn(S, torch.float32).requires_grad_()
    documents = torch.tensor([*range(0, S, longest), S], dtype=torch.int32)
    with metered() as meter:
        attend_within(qkv, documents, most_rows=S, backend="auto").sum().backward()
    assert 0 < meter.peak_bytes < S * S
    with metered() as all_pairs:
        assert (qkv[:, 0, 0] @ qkv[:, 0, 1].T).shape == (S, S)
    assert all_pairs.peak_bytes >= 4 * S * S, "the meter sees them"


def test_calls_on_gpus_fit_torchs_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their arguments and shapes, by what torch holds of its kernels without a GPU."""
    qkv = torch.empty(64, 4, 3, 16, dtype=torch.bfloat16, device="meta")
    documents = torch.empty(5, dtype=torch.int32, device="meta")
    promised = apart._shaped(qkv, documents, 32, "auto")
    monkeypatch.setattr(apart, "_has_varlen", lambda *_: True)
    found = apart._forward._init_fn(qkv, documents, 32, "auto")
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in promised]
    grad = apart._backward._init_fn(found[0], qkv, documents, *found, 32, "auto")
    assert (grad.shape, grad.dtype) == (qkv.shape, qkv.dtype)
