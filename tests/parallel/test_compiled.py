"""Compiled blocks compute what blocks compute, in few graphs, and say what becomes of them."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from model.adapters.kinds import LoraConfig
from model.adapters.tuning import Tuning, tune
from model.batch import Batch
from model.generation.decoding import Request, generate
from model.loss import Loss
from model.recompute import Recompute
from model.semicausal import ModelConfig, SemiCausal
from parallel.compiled import (
    SETTLED_STEPS,
    Compilation,
    CompileError,
    compilation_of,
    compile_blocks,
    compile_if,
    news,
    why_no_compiler,
)
from tests.model.encoders import test_image as image
from tests.model.examples import collate, random_tokens, tiny_config, tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STEPS = 8
TOLERANCE = 1e-6
"""Of losses, gradients and norms, relative to their size; what traces is computed alike."""

Step = tuple[float, list[Tensor], float]


@pytest.fixture(autouse=True)
def no_graphs_of_others() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def changing_batches(*, encoder: bool = True) -> list[Batch]:
    """Another number of spans, of other lengths, in each."""
    batches: list[Batch] = []
    for step in range(STEPS):
        ends = [(2 + start, 4 + start + step % 3) for start in range(0, 15, 6 - step % 4)]
        rows: list[list[tuple[int, int]]] = [ends, ends[: 1 + step % 2]]
        tokens = random_tokens(sequences=2, seed=step)
        batches.append(collate(tokens, rows if encoder else None))
    return batches


def steps_of(model: SemiCausal, batches: Iterable[Batch]) -> list[Step]:
    """Loss, gradients and their norm in each batch, with small steps between."""
    history: list[Step] = []
    for batch in batches:
        torch.manual_seed(int(batch.tokens.sum()))
        model.zero_grad()
        loss = model(batch)
        assert isinstance(loss, Loss)
        loss.total.backward()
        parameters = [p for p in model.parameters() if p.grad is not None]
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        norm = torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt()
        history.append((loss.total.item(), gradients, norm.item()))
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=1e-3)
    return history


def assert_equal(history: list[Step], expected: list[Step]) -> None:
    for (loss, gradients, norm), (its_loss, its_gradients, its_norm) in zip(
        history, expected, strict=True
    ):
        assert loss == pytest.approx(its_loss, rel=TOLERANCE)
        assert norm == pytest.approx(its_norm, rel=TOLERANCE)
        for gradient, its_gradient in zip(gradients, its_gradients, strict=True):
            torch.testing.assert_close(gradient, its_gradient, rtol=TOLERANCE, atol=TOLERANCE)


def trained_pair(config: ModelConfig, recompute: Recompute = "none") -> tuple[SemiCausal, ...]:
    """Twice the same model in training, with biases that are not nil."""
    twins = tuple(SemiCausal(config, recompute=recompute).train() for _ in range(2))
    for twin in twins:
        twin.load_state_dict(tiny_model(config).state_dict())
    return twins


@pytest.mark.parametrize(
    ("norm", "recompute", "dropout", "backend"),
    [
        ("deepnorm", "none", 0.1, "aot_eager"),
        ("pre", "full", 0.1, "eager"),
        ("deepnorm", "selective", 0.0, "eager"),
        pytest.param("pre", "selective", 0.1, "aot_eager", marks=pytest.mark.long),
        pytest.param("deepnorm", "full", 0.1, "aot_eager", marks=pytest.mark.long),
    ],
)
def test_equals_what_stands_there(
    norm: Literal["deepnorm", "pre"], recompute: Recompute, dropout: float, backend: str
) -> None:
    config = tiny_config(norm, dropout=dropout)
    plain, model = trained_pair(config, recompute)
    state = compile_blocks(model, backend=backend)
    batches = changing_batches()
    expected = steps_of(plain, batches)
    history = steps_of(model, batches[:SETTLED_STEPS])
    settled = state.num_graphs
    history += steps_of(model, batches[SETTLED_STEPS:])
    assert_equal(history, expected)
    assert state.failure is None
    assert not counters["graph_break"]
    assert settled == 2, "one of the decoder and one of the encoder"
    assert state.num_graphs == settled
    assert list(model.state_dict()) == list(plain.state_dict())


def test_one_span_and_as_many_spans_as_heads_are_no_rules() -> None:
    """The first batch has as many as heads; a single one is the one shape with its own graph."""
    plain, model = trained_pair(tiny_config())
    state = compile_blocks(model, backend="eager")
    tokens = random_tokens(sequences=2)
    spans = [[[(2, 5), (7, 9)], [(1, 3)]], [[(2, 5)], [(1, 9)]], [[], []], [[(3, 5)], []]]
    batches = [collate(tokens, rows) for rows in spans]
    assert_equal(steps_of(model, batches), steps_of(plain, batches))
    assert state.num_graphs == 3


@pytest.mark.parametrize("kind", ["beit", "clip", "native, class dropped"])
def test_image_encoders(kind: str) -> None:
    """Factors, quick GELU, a bias that is there, trains or is not: few graphs for any pictures."""
    config = image.tiny_config(**image.KINDS[kind])
    compiled, plain = image.tiny_encoder(config).train(), image.tiny_encoder(config).train()
    state = compile_blocks(compiled, backend="aot_eager")
    for sizes in ([(12, 16)], [], [(12, 16), (40, 3), (4, 4)], [(9, 90)] * 2, [(30, 20)] * 3):
        spans = image.packed(config, image.pictures(config, sizes))
        for encoder in (compiled, plain):
            encoder(spans).square().sum().backward()
    assert state.failure is None
    assert 0 < state.num_graphs <= 4
    for (name, a), b in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        scale = max(1.0, b.grad.abs().max().item())
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-5 * scale, msg=name)


def test_adapters() -> None:
    plain, model = trained_pair(tiny_config(dropout=0.1))
    state = compile_blocks(model, backend="eager")
    for twin in (plain, model):
        tune(twin, Tuning(lora=LoraConfig(rank=2, dropout=0.1)), seed=1)
    batches = changing_batches()
    assert_equal(steps_of(model, batches), steps_of(plain, batches))
    assert state.failure is None
    assert state.num_graphs <= 4, "of each kind, with a gradient for its input and without"
    assert list(model.state_dict()) == list(plain.state_dict())


def test_no_gradient_no_graph() -> None:
    """Evaluation and generation compute as before; so does a copy, with its own weights."""
    plain, model = (twin.eval() for twin in trained_pair(tiny_config()))
    state = compile_blocks(model, backend="eager")
    batch = changing_batches()[0]
    with torch.no_grad():
        assert torch.equal(model(batch).terms, plain(batch).terms)
        prompts = batch.tokens[:1, :5].tolist()
        options: Any = {"most_slots": 40, "device": torch.device("cpu")}
        told = [
            generate(twin, prompts, [Request(max_new_tokens=4)], **options)[0].ids
            for twin in (model, plain)
        ]
    assert told[0] == told[1]
    assert state.num_graphs == 0
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(batch).terms, plain(batch).terms)


def broken(*_: Any) -> Any:
    raise RuntimeError("the linker\nis gone")


@pytest.mark.parametrize(
    "backend",
    [broken, aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=broken)],
    ids=["forward", "backward"],
)
def test_failure_falls_back_or_stops(backend: Any) -> None:
    plain, model = trained_pair(tiny_config(encoder=False))
    batches = changing_batches(encoder=False)
    state = compile_blocks(model, backend=backend, is_optional=True)
    assert list(news(model, step=0)) == [
        "the blocks are compiled in the first step, which may take a minute"
    ]
    assert_equal(steps_of(model, batches[:2]), steps_of(plain, batches[:2]))
    assert list(news(model, step=1)) == [
        "model.compile: the blocks run uncompiled from here on (RuntimeError: the linker)"
    ]
    assert not list(news(model, step=2))
    assert state.num_graphs == 0
    compile_blocks(model, backend=backend)
    torch._dynamo.reset()
    with pytest.raises(
        CompileError, match=r"model\.compile: .*the linker.* set model.compile=none$"
    ):
        steps_of(model, batches[:1])


def test_what_is_told_of_graphs() -> None:
    state = Compilation()
    assert len(list(state.news(0))) == 1
    state.num_graphs, state.seconds = 3, 12.34
    assert list(state.news(1)) == ["blocks compiled: 3 graph(s) in 12.3 s"]
    state.num_graphs = 4
    assert not list(state.news(SETTLED_STEPS))
    assert not list(state.news(SETTLED_STEPS + 1))
    state.num_graphs = 6
    assert [line[:44] for line in state.news(9)] == ["blocks were compiled again after 3 steps (2 "]
    state.num_graphs = 7
    assert not list(state.news(10)), "once"


def test_as_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`auto` is none on a CPU; on CUDA without a compiler it says why."""
    model = SemiCausal(tiny_config())
    for wanted in ("none", "auto"):
        compile_if(wanted, model, device=CPU)
        assert compilation_of(model) is None
    compile_if("blocks", model, device=CPU)
    assert compilation_of(model) == compilation_of(model) is not None
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_no_compiler(CPU) == "there is no compiler, such as g++, in PATH"
    compile_if("auto", model, device=CUDA)
    (told,) = news(model, step=0)
    assert told.startswith("model.compile: the blocks run uncompiled from here on (t")
