"""Products in fp8 against operands that are looked up in a table and multiplied in fp64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import fp8, loss
from model.fp8 import (
    DIVISOR,
    E4M3,
    E5M2,
    HEADROOM,
    Product,
    Quantised,
    Scales,
    amax_of,
    multiply,
    multiply_in_fp8,
    quantise,
)
from model.layers import Layers, Linear, normal
from model.loss import LinearCrossEntropy

BF16 = torch.bfloat16
R, IN, OUT = 48, 64, 32


def numbers_of(dtype: torch.dtype) -> Tensor:
    """All finite numbers of a type of one byte."""
    every = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    return every[every.isfinite()]


def looked_up(values: Tensor, amax: Tensor, dtype: torch.dtype) -> Tensor:
    """Each value as the nearest of all that the type has, where `amax` is its largest; fp64."""
    numbers, most, largest = numbers_of(dtype), torch.finfo(dtype).max, amax.double()
    distances = ((values.double() * most / largest).flatten()[:, None] - numbers).abs()
    is_nearest = distances == distances.amin(dim=1, keepdim=True)
    is_odd = torch.arange(len(numbers)) % 2  # of two that are as near, the even one
    nearest = numbers[torch.where(is_nearest, is_odd, 2).argmin(dim=1)]
    return nearest.view(values.shape) * (largest / most)


def rounding(a: Tensor, b: Tensor) -> Tensor:
    """Of sums of products in fp32, and of their result to bf16."""
    return 1e-6 * (a.abs() @ b.abs()) + 2**-8 * (a @ b).abs()


class Fixture:
    """A layer that multiplies in fp8, and what goes through it."""

    def __init__(self, device: str = "cpu"):
        generator = torch.Generator().manual_seed(0)
        self.layer = Linear(IN, OUT, normal(0.1), None)
        self.x, self.gradient = torch.empty(R, IN), torch.empty(R, OUT)
        for values in (self.x, self.gradient, self.layer.weight.data, self.layer.bias.data):
            values.copy_(torch.randn(values.shape, generator=generator))
        self.layer.to(device, BF16)
        self.x, self.gradient = (m.to(device, BF16) for m in (self.x, self.gradient))
        self.x.requires_grad_()
        self.scales = Scales(1, torch.device(device))
        self.product = Product(self.layer, self.scales.last[0], self.scales.seen[0])
        self.product.refresh(self.layer.weight, self.scales.version)
        self.layer.product = self.product

    def gradients(self) -> list[Tensor]:
        """Output and gradients of input, weight and bias."""
        out = self.layer(self.x)
        parameters = (self.x, self.layer.weight, self.layer.bias)
        return [out, *torch.autograd.grad(out, parameters, self.gradient)]


@pytest.mark.parametrize("growth", [None, 0.25, 1.0, 1.9, 5.0])
def test_products_are_those_of_what_was_quantised(growth: float | None) -> None:
    """At the first step, and where tensors are so many times what they were in the step before."""
    case = Fixture()
    x, weight = case.x.detach(), case.layer.weight.detach()
    scaled_by = amax = torch.stack([x.abs().max(), case.gradient.abs().max()]).float()
    if growth is not None:
        case.scales.last[0] = amax / growth
        scaled_by = amax / growth * HEADROOM
    out, of_x, of_weight, of_bias = case.gradients()
    x_8 = looked_up(x, scaled_by[0], E4M3)
    weight_8 = looked_up(weight, weight.abs().max(), E4M3)
    gradient_8 = looked_up(case.gradient, scaled_by[1], E5M2)
    bias = case.layer.bias.double()
    for got, a, b, added in (
        (out, x_8, weight_8.t(), bias),
        (of_x, gradient_8, weight_8, 0),
        (of_weight, gradient_8.t(), x_8, 0),
    ):
        assert got.dtype == BF16
        error = (got.double() - (a @ b + added)).abs()
        bound = rounding(a, b) + 2**-8 * (a @ b + added).abs()
        assert (error <= bound).all(), error.max()
    assert torch.equal(of_bias, case.gradient.float().sum(dim=0).to(BF16))
    assert torch.equal(case.scales.gathered()[0], amax)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_nothing_of_a_number_is_lost_that_fp8_has(dtype: torch.dtype) -> None:
    numbers = numbers_of(dtype).float()
    quantised, scale = quantise(numbers, numbers.max(), dtype)
    assert scale == 1
    assert torch.equal(quantised.float(), numbers)


@pytest.mark.parametrize("amax", [0.0, 1e-45, 1e-38, 1e30, 3e38])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_very_small_and_large_tensors(amax: float, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, amax, -amax, amax / 3])
    quantised, scale = quantise(values, amax_of(values), dtype)
    back = quantised.float() * scale
    assert back.isfinite().all()
    assert back[1] == -back[2] == pytest.approx(amax, rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("last", [0.0, 3.0])
def test_what_is_not_finite_is_not_hidden(bad: float, last: float) -> None:
    case = Fixture()
    case.scales.last.fill_(last)
    case.gradient[3, 5] = bad
    out, of_x, of_weight, _ = case.gradients()
    assert out.isfinite().all()
    assert not of_x.isfinite().all()
    assert not of_weight.isfinite().all()
    case.scales.settle(case.scales.gathered(), keep=torch.tensor(False))
    assert (case.scales.last == last).all(), "such a step says nothing of the next one"
    with torch.no_grad():
        case.x[0, 0] = bad
    assert not case.gradients()[0].isfinite().all()


def test_scales_follow_the_step_before() -> None:
    case = Fixture()
    no, first = torch.tensor(False), case.gradients()
    assert (case.scales.last == 0).all()
    for share in (0.5, 1.0, 0.25):  # microbatches: the largest counts
        case.x.data *= share
        case.gradients()
        case.x.data /= share
    amax = amax_of(case.x.detach())
    case.scales.settle(case.scales.gathered(), keep=no)
    assert case.scales.last[0, 0] == amax
    assert (case.scales.gathered() == 0).all()
    # A scale that leaves room for twice as much: another power of two, the same numbers but for
    # the smallest.
    for one, other in zip(first, case.gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    case.scales.settle(case.scales.gathered(), keep=torch.tensor(True))
    assert case.scales.last[0, 0] == amax, "a step that was not made says nothing"
    with torch.no_grad():
        case.layer(case.x * 100)
    assert (case.scales.gathered() == 0).all(), "nor do evaluations"


def test_a_weight_is_quantised_when_it_has_changed() -> None:
    case = Fixture()
    before = case.gradients()[0]
    case.layer.weight.data *= 2
    case.product.refresh(case.layer.weight, case.scales.version)
    assert torch.equal(case.gradients()[0], before)
    case.scales.settle(case.scales.gathered(), keep=torch.tensor(True))
    case.product.refresh(case.layer.weight, case.scales.version)
    bias = case.layer.bias
    torch.testing.assert_close(case.gradients()[0] - bias, 2 * (before - bias), rtol=0.02, atol=0.1)


def test_compiled_to_one_graph_it_computes_the_same() -> None:
    case = Fixture()
    expected = [*case.gradients(), case.scales.gathered()]
    for value in (value for pair in case.scales.seen for value in pair):
        value.zero_()
    case.layer.forward = torch.compile(case.layer.forward, fullgraph=True, backend="aot_eager")
    for one, other in zip(expected, [*case.gradients(), case.scales.gathered()], strict=True):
        assert torch.equal(one, other)


def test_torch_multiplies_the_same() -> None:
    """What runs on CUDA, with the same arguments, by torch's kernel for CPUs."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, IN, generator=generator) for n in (R, OUT))
    (a_8, a_scale), (b_8, b_scale) = (quantise(m, amax_of(m), E4M3) for m in (a, b))
    theirs: Any = torch
    product = theirs._scaled_mm(
        a_8, b_8.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=BF16, use_fast_accum=False
    )
    ours = multiply(a_8, b_8.t(), a_scale, b_scale)
    torch.testing.assert_close(product, ours, rtol=2**-7, atol=1e-5)


def test_operands_lie_as_tensor_cores_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `torch._scaled_mm` refuses on CUDA, and takes on CPUs."""
    calls: list[tuple[int, ...]] = []

    def checked(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, **options: Any) -> Tensor:
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert {a.dtype, b.dtype} <= {E4M3, E5M2}
        assert b.dtype == E4M3, "not both may have e5m2"
        assert scale_a.dtype == scale_b.dtype == torch.float32
        assert scale_a.numel() == scale_b.numel() == 1
        m, k, n = *a.shape, b.shape[1]
        calls.append((m, k, n))
        assert k % DIVISOR == n % DIVISOR == 0
        return multiply(a, b, scale_a, scale_b, **options)

    case = Fixture()
    monkeypatch.setattr(fp8, "multiply", checked)
    case.gradients()
    assert calls == [(R, IN, OUT), (R, OUT, IN), (OUT, R, IN)]
    calls.clear()
    Head(chunk=100).results()
    assert calls == [(48, IN, 96), (48, 96, IN), (96, 48, IN)]


def test_first_and_last_block_stay() -> None:
    from model.decoder import Decoder, DecoderConfig, whole_piece

    config = DecoderConfig(
        vocabulary=32, width=16, num_layers=4, heads=2, feed_forward=32, max_tokens=16
    )
    decoder = Decoder(config, Layers(), pieces=[whole_piece(config)])
    names, state = [name for name, _ in decoder.named_parameters()], list(decoder.state_dict())
    multiply_in_fp8(list(decoder.blocks.values()))
    found = {name for name, module in decoder.named_modules() if isinstance(module, Product)}
    assert found == {
        f"blocks.{block}.{layer}.product"
        for block in (1, 2)
        for layer in ("attention.qkv", "feed_forward.up", "feed_forward.down")
    }
    assert [name for name, _ in decoder.named_parameters()] == names
    assert list(decoder.state_dict()) == state


C, V = 43, 83


class Head:
    """A head, of a vocabulary that is no multiple of 16, that multiplies in fp8."""

    def __init__(self, device: str = "cpu", *, chunk: int | None = None):
        # Of this seed no value is midway between two numbers of fp8, where fp32's rounding decides.
        generator = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(V, IN, generator=generator).to(device, BF16) / 8)
        self.states = torch.randn(C, IN, generator=generator).to(device, BF16).requires_grad_()
        self.targets = torch.randint(V, (C,), generator=generator).to(device)
        self.head = LinearCrossEntropy(self.weight, chunk_tokens=chunk)
        self.head.product = Quantised(self.weight)
        self.head.product.refresh(self.weight, 0)

    def results(self, num_scored: int = C, factor: float = 3.0) -> list[Tensor]:
        """Loss of each slot, and gradients of states and weight."""
        loss = self.head(self.states, self.targets, num_scored)
        gradients = torch.autograd.grad(factor * loss.total, (self.states, self.weight))
        return [loss.terms, *gradients]


@pytest.mark.parametrize("num_scored", [C, 32, 17, 1])
@pytest.mark.parametrize("chunk", [16, 20, C, 100])
def test_a_head_is_that_of_what_was_quantised(chunk: int, num_scored: int) -> None:
    case = Head(chunk=chunk)
    states, weight = case.states.detach(), case.weight.detach()
    states_8 = looked_up(states, states.abs().max(), E4M3)[:num_scored]
    weight_8 = looked_up(weight, weight.abs().max(), E4M3)
    logits = (states_8 @ weight_8.t()).to(BF16).double()
    wanted = F.cross_entropy(logits, case.targets[:num_scored], reduction="none")
    shares = logits.softmax(dim=1) - F.one_hot(case.targets[:num_scored], V)
    gradient_8 = looked_up(shares.to(BF16), torch.finfo(E5M2).max * torch.tensor(2.0**-15), E5M2)

    terms, of_states, of_weight = case.results(num_scored)

    torch.testing.assert_close(terms[:num_scored].double(), wanted, rtol=1e-5, atol=1e-5)
    assert terms[num_scored:].count_nonzero() == of_states[num_scored:].count_nonzero() == 0
    # Of the weight's gradient each chunk's part is rounded to bf16 before they are added.
    of_chunks = zip(gradient_8.split(chunk), states_8.split(chunk), strict=True)
    parts = [(g.t() @ s).abs() for g, s in of_chunks]
    for got, a, b, rounded in (
        (of_states[:num_scored], gradient_8, weight_8, (gradient_8 @ weight_8).abs()),
        (of_weight, gradient_8.t(), states_8, torch.stack(parts).sum(dim=0)),
    ):
        assert got.dtype == BF16
        bound = 3 * (rounding(a, b) + 2**-8 * rounded)
        assert ((got.double() - 3 * (a @ b)).abs() <= bound).all()


def test_a_head_with_logits_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from model.kernels import cross_entropy

    expected = Head(chunk=20).results()
    monkeypatch.setattr(loss, "chosen_cross_entropy", lambda *_: cross_entropy.cross_entropy_)
    for one, other in zip(expected, Head(chunk=20).results(), strict=True):
        # Few gradients of logits are e5m2's next number, which is a quarter away.
        assert (one - other).norm() < 1e-2 * one.norm()


def test_a_head_without_scored_slots() -> None:
    assert not any(result.any() for result in Head(chunk=16).results(0))


def test_a_head_without_gradient_has_the_same_loss() -> None:
    case = Head(chunk=16)
    with torch.no_grad():
        terms = case.head(case.states, case.targets, C).terms
    assert torch.equal(terms, case.results()[0])


@pytest.mark.parametrize("where", ["states", "weight"])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_head_hides_nothing_that_is_not_finite(where: str, bad: float) -> None:
    case = Head(chunk=16)
    getattr(case, where).data[3, 5] = bad
    assert case.head.product is not None
    case.head.product.refresh(case.weight, 1)
    assert not any(result.isfinite().all() for result in case.results())
