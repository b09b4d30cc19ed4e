"""The chunked loss against full logits, and that full logits never exist."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.loss import LinearCrossEntropy, Loss

C, H, V = 23, 16, 51


def case(
    *, dtype: torch.dtype = torch.float32, chunk: int = 5
) -> tuple[LinearCrossEntropy, nn.Embedding, Tensor, Tensor]:
    torch.manual_seed(0)
    embedding = nn.Embedding(V, H, dtype=dtype)
    states = (2 * torch.randn(C, H)).to(dtype).requires_grad_()
    targets = torch.randint(V, (C,))
    return LinearCrossEntropy(embedding.weight, chunk_tokens=chunk), embedding, states, targets


def full_logits(states: Tensor, weight: Tensor, targets: Tensor, num_scored: int) -> Tensor:
    logits = states[:num_scored] @ weight.t()
    return F.cross_entropy(logits, targets[:num_scored], reduction="none")


@pytest.mark.parametrize("num_scored", [C, 20, 1, 0])
@pytest.mark.parametrize("chunk", [1, 5, C, 100])
def test_equals_full_logits(chunk: int, num_scored: int):
    head, embedding, states, targets = case(chunk=chunk)
    loss = head(states, targets, num_scored)
    (3.0 * loss.total).backward()

    weight = embedding.weight.detach().double().requires_grad_()
    exact = states.detach().double().requires_grad_()
    wanted = full_logits(exact, weight, targets, num_scored)
    (3.0 * wanted.sum()).backward()

    torch.testing.assert_close(
        loss.terms[:num_scored].double(), wanted.detach(), rtol=1e-5, atol=1e-5
    )
    assert loss.terms[num_scored:].count_nonzero() == 0
    torch.testing.assert_close(loss.total.double(), wanted.sum().detach(), rtol=1e-5, atol=0)
    for found, exactly in ((states.grad, exact.grad), (embedding.weight.grad, weight.grad)):
        assert found is not None
        assert exactly is not None
        torch.testing.assert_close(found.double(), exactly, rtol=1e-5, atol=2e-5)
    assert states.grad is not None
    assert states.grad[num_scored:].count_nonzero() == 0


def test_bf16_is_as_good_as_bf16_logits_allow():
    head, embedding, states, targets = case(dtype=torch.bfloat16)
    loss = head(states, targets, C)
    loss.total.backward()
    assert loss.total.dtype == loss.terms.dtype == torch.float32
    weight = embedding.weight.detach().double().requires_grad_()
    exact = states.detach().double().requires_grad_()
    wanted = full_logits(exact, weight, targets, C)
    wanted.sum().backward()
    # bf16 has 8 bits: logits of size 20 are rounded to 1/16.
    torch.testing.assert_close(loss.terms.double(), wanted.detach(), rtol=1e-2, atol=0.1)
    for found, exactly in ((states.grad, exact.grad), (embedding.weight.grad, weight.grad)):
        assert found is not None
        assert exactly is not None
        assert found.dtype == torch.bfloat16
        error = (found.double() - exactly).norm() / exactly.norm()
        assert error < 0.02


def test_bf16_gradient_of_the_weight_does_not_fade_over_many_chunks():
    torch.manual_seed(0)
    many = 512
    embedding = nn.Embedding(V, H, dtype=torch.bfloat16)
    states = torch.randn(many, H).bfloat16()
    targets = torch.randint(V, (many,))
    grads: list[Tensor] = []
    for chunk in (1, many):
        embedding.weight.grad = None
        LinearCrossEntropy(embedding.weight, chunk_tokens=chunk)(
            states, targets, many
        ).total.backward()
        assert embedding.weight.grad is not None
        grads.append(embedding.weight.grad.double())
    assert ((grads[0] - grads[1]).norm() / grads[1].norm()) < 0.01


def test_tied_weight_gets_the_gradient_of_both_uses():
    head, embedding, _, targets = case()
    tokens = torch.randint(V, (C,))
    loss = head(torch.tanh(embedding(tokens)), targets, C)
    loss.total.backward()
    weight = embedding.weight.detach().clone().requires_grad_()
    wanted = full_logits(torch.tanh(F.embedding(tokens, weight)), weight, targets, C).sum()
    wanted.backward()
    torch.testing.assert_close(loss.total, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(embedding.weight.grad, weight.grad, rtol=1e-5, atol=1e-5)
    assert list(dict(head.named_parameters())) == ["weight"]
    assert head.weight is embedding.weight


def test_large_logits_do_not_overflow():
    head, embedding, states, targets = case()
    with torch.no_grad():
        embedding.weight *= 1e3
    loss = head(states, targets, C)
    wanted = full_logits(states, embedding.weight, targets, C)
    torch.testing.assert_close(loss.terms, wanted, rtol=1e-4, atol=1e-2)
    loss.total.backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()


def test_terms_carry_no_gradient():
    head, _, states, targets = case()
    loss = head(states, targets, C)
    assert isinstance(loss, Loss)
    assert loss.total.requires_grad
    assert not loss.terms.requires_grad


@pytest.mark.parametrize("frozen", ["states", "weight", "both"])
def test_only_what_trains_gets_a_gradient(frozen: str):
    head, embedding, states, targets = case()
    if frozen != "weight":
        states = states.detach()
    embedding.weight.requires_grad_(frozen == "states")
    loss = head(states, targets, C)
    if frozen == "both":
        assert not loss.total.requires_grad
        return
    loss.total.backward()
    assert (states.grad is None) == (frozen == "states")
    assert (embedding.weight.grad is None) == (frozen == "weight")


class Sizes(TorchDispatchMode):
    """Elements of the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes: Iterator[int] = (
            leaf.untyped_storage().nbytes() // leaf.element_size()
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor)
        )
        self.largest = max(self.largest, *sizes, 0)
        return result


@pytest.mark.parametrize("train", [True, False])
def test_logits_of_more_than_a_chunk_never_exist(train: bool):
    torch.manual_seed(0)
    capacity, width, vocabulary, chunk = 256, 4, 300, 8
    embedding = nn.Embedding(vocabulary, width)
    head = LinearCrossEntropy(embedding.weight, chunk_tokens=chunk)
    states = torch.randn(capacity, width).requires_grad_(train)
    targets = torch.randint(vocabulary, (capacity,))
    with Sizes() as ours, torch.set_grad_enabled(train):
        loss = head(states, targets, capacity)
        if train:
            loss.total.backward()
    assert ours.largest == chunk * vocabulary
    with Sizes() as full:
        full_logits(states, embedding.weight, targets, capacity)
    assert full.largest == capacity * vocabulary, "the check sees full logits where they exist"


def test_declared_shapes_are_checked_in_tests():
    head, _, states, targets = case()
    with pytest.raises(TypeCheckError):
        head(states, targets[:-1], C)
