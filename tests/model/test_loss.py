"""The chunked loss against full logits, and that full logits never exist."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import loss as loss_module
from model.loss import (
    LinearCrossEntropy,
    Loss,
    LossKernel,
    cross_entropy_,
    usual_chunk_tokens,
    why_no_triton,
)
from tests.model.first_loss import first_loss

C, H, V = 23, 16, 51

KERNELS = ("torch", "triton")


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either pass over the logits; triton's runs in its interpreter here."""
    if request.param == "triton":
        from model.kernels import cross_entropy

        monkeypatch.setattr(cross_entropy, "WIDEST_BLOCK", 16)
        monkeypatch.setattr(
            loss_module, "chosen_cross_entropy", lambda *_: cross_entropy.cross_entropy_
        )
    return request.param


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
def test_equals_full_logits(chunk: int, num_scored: int, kernel: str):
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


@pytest.mark.parametrize("chunk", [5, C])
def test_bf16_is_as_good_as_bf16_logits_allow(chunk: int, kernel: str):
    head, embedding, states, targets = case(dtype=torch.bfloat16, chunk=chunk)
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


def test_kernels_agree_in_bf16(kernel: str):
    """Losses to the rounding of fp32, gradients to that of bf16, which triton's interpreter cuts
    off where a GPU rounds."""
    unit = 2**-7 if kernel == "triton" else 2**-8
    results: list[tuple[Tensor, ...]] = []
    for chunk in (5, C):
        head, embedding, states, targets = case(dtype=torch.bfloat16, chunk=chunk)
        loss = head(states, targets, 20)
        loss.total.backward()
        assert states.grad is not None
        assert embedding.weight.grad is not None
        reference = first_loss(states, embedding.weight, targets, 20, chunk=chunk)
        torch.testing.assert_close(loss.terms, reference.terms, rtol=1e-6, atol=1e-6)
        for found, wanted in (
            (states.grad, reference.grad_states),
            (embedding.weight.grad, reference.grad_weight),
        ):
            error = (found.double() - wanted.double()).norm() / wanted.double().norm()
            assert error < unit
        results.append((loss.terms, states.grad))
    # Rows do not know of each other.
    assert all(map(torch.equal, *results))


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


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_loss(fault: float, kernel: str):
    head, _, states, targets = case()
    with torch.no_grad():
        states[2, 3] = fault
    loss = head(states, targets, C)
    assert not loss.total.isfinite()
    assert loss.terms.isfinite().sum() == C - 1


def test_large_logits_do_not_overflow(kernel: str):
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
def test_only_what_trains_gets_a_gradient(frozen: str, kernel: str):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_scored", "chunk"), [(C, 5), (20, 20), (19, 256), (C, 1), (0, 5)])
def test_no_bit_on_cpus_differs_from_the_first_version(
    num_scored: int, chunk: int, dtype: torch.dtype
):
    head, embedding, states, targets = case(dtype=dtype, chunk=chunk)
    loss = head(states, targets, num_scored)
    (loss.total / 7).backward()
    wanted = first_loss(states, embedding.weight, targets, num_scored, chunk=chunk, factor=1 / 7)
    assert states.grad is not None
    assert embedding.weight.grad is not None
    found = (loss.total, loss.terms, states.grad, embedding.weight.grad)
    assert all(map(torch.equal, found, wanted))


@given(
    num_slots=st.integers(1, 40),
    padding=st.integers(0, 5),
    width=st.integers(8, 24),
    vocabulary=st.integers(8, 200),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 2**32),
)
def test_of_any_size_it_equals_an_oracle_in_fp64(
    num_slots: int, padding: int, width: int, vocabulary: int, chunk: int, seed: int
):
    torch.manual_seed(seed)
    weight = nn.Parameter(torch.randn(vocabulary, width) / 4)
    states = torch.randn(num_slots + padding, width, requires_grad=True)
    targets = torch.randint(vocabulary, (num_slots + padding,))
    loss = LinearCrossEntropy(weight, chunk_tokens=chunk)(states, targets, num_slots)
    loss.total.backward()
    exact, exact_weight = (x.detach().double().requires_grad_() for x in (states, weight))
    wanted = full_logits(exact, exact_weight, targets, num_slots)
    wanted.sum().backward()
    torch.testing.assert_close(
        loss.terms[:num_slots].double(), wanted.detach(), rtol=1e-5, atol=1e-5
    )
    for found, exactly in ((states.grad, exact.grad), (weight.grad, exact_weight.grad)):
        assert found is not None
        assert exactly is not None
        torch.testing.assert_close(found.double(), exactly, rtol=1e-5, atol=1e-5)


class Calls(TorchDispatchMode):
    """Operators that were called, and types of what they returned in the weight's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.weight_types: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.shape == (V, H):
                self.weight_types.add(leaf.dtype)
        return result


def test_nothing_waits_for_the_device(kernel: str):
    """Values come to the host, and sizes from values, through these operators alone."""
    head, _, states, targets = case()
    with Calls() as calls:
        head(states, targets, C).total.backward()
        with torch.no_grad():
            head(states, targets, C)
    assert not calls.names & {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique2",
        "equal",
    }


def test_a_single_chunk_makes_no_gradient_in_fp32():
    for chunk, types in ((C, {torch.bfloat16}), (5, {torch.bfloat16, torch.float32})):
        head, _, states, targets = case(dtype=torch.bfloat16, chunk=chunk)
        with Calls() as calls:
            head(states, targets, C).total.backward()
        assert calls.weight_types == types


def test_on_gpus_products_of_bf16_are_summed_in_fp32():
    """The call that CPUs do not know, as far as its shapes and types go."""
    total = torch.empty(V, H, device="meta")
    a, b = (torch.empty(*s, device="meta", dtype=torch.bfloat16) for s in ((V, C), (C, H)))
    assert torch.mm(a, b, out_dtype=torch.float32).dtype == torch.float32
    assert torch.addmm(total, a, b, out_dtype=torch.float32, out=total) is total


def test_the_usual_chunk_has_a_gibibyte_of_logits_on_gpus():
    def usual(num_rows: int, element_bytes: int = 2) -> int:
        return usual_chunk_tokens(on_gpu=True, num_rows=num_rows, element_bytes=element_bytes)

    assert usual(64_000) == 8192
    assert usual(32_000) == 16_384
    assert usual(64_000, 4) == usual(256_000) == usual(2_000_000) == 4096
    assert usual_chunk_tokens(on_gpu=False, num_rows=64_000, element_bytes=2) == 256


@pytest.mark.parametrize("kernel", ["auto", "torch", "triton"])
def test_on_a_cpu_torch_computes_the_loss(kernel: LossKernel):
    assert loss_module.chosen_cross_entropy(kernel, torch.device("cpu")) is cross_entropy_


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_triton_does_not_work_auto_is_torch():
    gpu = torch.device("cuda", 0)
    assert why_no_triton(gpu) == "Torch not compiled with CUDA enabled"
    assert loss_module.chosen_cross_entropy("auto", gpu) is cross_entropy_
