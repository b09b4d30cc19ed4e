"""What computes attention: each kind against the reference, and those that are not there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend

from model.attention import CausalSelfAttention, SelfAttention, SpanGrid, SpanSelfAttention
from model.backend import Backend, attend, fault, kernels_for
from model.block import Block
from model.layers import Layers, initialize
from model.loss import Loss
from model.semicausal import SemiCausal
from model.style import USUAL_STYLE
from tests.model import reference
from tests.model.examples import Range, collate, random_tokens, tiny_config, tiny_model

ALL: list[Backend] = ["auto", "flash", "cudnn", "efficient", "math", "flash3", "flash4"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPANS: list[list[Range]] = [[(2, 5), (7, 8), (12, 20)], []]


def trained(backend: Backend) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss terms, and gradients of their sum."""
    plain = tiny_model(tiny_config())
    config = tiny_config().model_copy(update={"attention": backend})
    model = SemiCausal(config).eval()
    model.load_state_dict(plain.state_dict())
    attentions = [part for part in model.modules() if isinstance(part, SelfAttention)]
    assert {part.backend for part in attentions} == {backend}
    batch = collate(random_tokens(sequences=2), SPANS)
    loss = model(batch)
    assert isinstance(loss, Loss)
    loss.total.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.terms[: batch.num_scored], grads


@pytest.mark.parametrize("backend", ["auto", "flash", "math"])
def test_each_that_a_cpu_has_equals_the_reference(backend: Backend) -> None:
    terms, grads = trained(backend)
    model = tiny_model(tiny_config())
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    expected: list[Tensor] = []
    for tokens, spans in zip(random_tokens(sequences=2), SPANS, strict=True):
        by_target = reference.terms(weights, model.config, tokens, spans)
        expected += [by_target[t] for t in sorted(by_target)]
    torch.testing.assert_close(terms.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)
    torch.stack(expected).sum().backward()
    norm = wanted_norm = 0.0
    for name, weight in weights.items():
        assert weight.grad is not None
        scale = max(1.0, weight.grad.abs().max().item())
        torch.testing.assert_close(
            grads[name].double(), weight.grad, rtol=0, atol=1e-5 * scale, msg=name
        )
        norm += grads[name].double().square().sum().item()
        wanted_norm += weight.grad.square().sum().item()
    assert norm == pytest.approx(wanted_norm, rel=1e-5)


def test_auto_on_a_cpu_is_torchs_own_choice() -> None:
    assert kernels_for("auto", CPU, steady=True) is None
    assert kernels_for("auto", CPU, steady=False) is None


@pytest.mark.parametrize("backend", ALL)
def test_cudnn_never_plans_for_each_shape(backend: Backend) -> None:
    """Encoders' calls, decoding; nor has flash attention a bias."""
    kernels = kernels_for(backend, CUDA, steady=False)
    assert kernels is not None
    assert set(kernels) <= {SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH}


@pytest.mark.parametrize("backend", ALL)
def test_what_is_asked_for_is_all_that_may_compute_the_decoder(backend: Backend) -> None:
    kernels = kernels_for(backend, CUDA, steady=True)
    assert (kernels is None) == (backend == "auto")
    assert kernels is None or len(kernels) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_there_is_told_with_what_to_do(dtype: torch.dtype) -> None:
    faults = {each: fault(each, device=CPU, dtype=dtype, head_width=32) for each in ALL}
    assert {each for each, message in faults.items() if message is None} == {
        "auto", "flash", "math"
    }  # fmt: skip
    precision = str(dtype).removeprefix("torch.")
    for each in ("cudnn", "efficient"):
        assert faults[each] == (
            f"{each} is not there for the CPU in {precision} with heads of 32: leave the key out, "
            "which takes the fastest that is there"
        )
    for each in ("flash3", "flash4"):
        assert faults[each] == (
            f"{each} is for GPUs, and this run is on the CPU: leave the key out, which takes the "
            "fastest that is there"
        )


def block(attention: type[SelfAttention], backend: Backend) -> Block:
    made = Block(
        width=16,
        heads=2,
        hidden=24,
        attention=attention,
        layers=Layers(),
        style=USUAL_STYLE,
        depth=2,
    )
    initialize(made, seed=1)
    made.attention.backend = backend
    return made


@pytest.mark.parametrize("backend", ["auto", "flash", "math"])
def test_blocks_are_one_graph(backend: Backend) -> None:
    """Whatever computes; and other documents, as many as there is room for, are no other graph."""
    x = torch.randn(48, 16)
    causal, spans = block(CausalSelfAttention, backend), block(SpanSelfAttention, backend)
    grid = SpanGrid(torch.arange(48), 4, 12)
    bias = torch.randn(4, 2, 12, 12)
    apart = torch.tensor([[0, 5, 48, 48], [0, 24, 40, 48]], dtype=torch.int32)
    torch.compiler.reset()
    frames = CompileCounter()
    compiled_causal = torch.compile(causal, backend=frames, fullgraph=True, dynamic=False)
    compiled_spans = torch.compile(spans, backend=frames, fullgraph=True, dynamic=False)
    for documents in (None, *apart):
        assert_same(compiled_causal, causal, x, 2, documents)
    assert_same(compiled_spans, spans, x, grid, bias)
    assert frames.frame_count == 3


def assert_same(compiled: Callable[..., Tensor], plain: Block, x: Tensor, *context: object) -> None:
    results: list[tuple[Tensor, ...]] = []
    for module in (compiled, plain):
        plain.zero_grad()
        out = module(x, *context)
        out.square().sum().backward()
        results.append((out, *(p.grad.clone() for p in plain.parameters() if p.grad is not None)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_bias_that_trains_is_computed_whatever_is_asked_for() -> None:
    x = torch.randn(2, 2, 8, 4)
    bias = torch.randn(2, 2, 8, 8, requires_grad=True)
    found = [attend(x, x, x, backend=each, bias=bias) for each in ("auto", "flash", "math")]
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_a_bias_trains_in_bf16_by_the_plain_kernel(dtype: torch.dtype) -> None:
    """Its backward takes a fraction of the time that the fused one's does."""
    x = torch.zeros(1, 1, 8, 16, dtype=dtype, requires_grad=True)
    bias = torch.zeros(1, 1, 8, 8, dtype=dtype)
    made_by = str(attend(x, x, x, backend="auto", bias=bias).grad_fn)
    assert ("FlashAttention" in made_by) == (dtype == torch.float32)
    assert "FlashAttention" in str(attend(x, x, x, backend="auto", causal=True).grad_fn)
