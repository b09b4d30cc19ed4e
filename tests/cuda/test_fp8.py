"""What tensor cores multiply in fp8 is what a CPU computes in their place."""

import pytest
import torch

from model.fp8 import DIVISOR
from parallel.zero.config import why_unsupported
from tests.model.test_fp8 import Fixture, Head


@pytest.fixture(autouse=True)
def needs_fp8() -> None:
    if (reason := why_unsupported(1, "fp8")) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("last", [0.0, 3.0])
def test_a_layer_computes_what_it_does_on_a_cpu(last: float, compiled: bool) -> None:
    here, there = Fixture(), Fixture("cuda")
    if compiled:
        there.layer.forward = torch.compile(there.layer.forward, fullgraph=True)
    for case in (here, there):
        case.scales.last.fill_(last)
    # Sums of the forward may have fewer bits than fp32 there.
    for mine, its in zip(here.gradients(), there.gradients(), strict=True):
        torch.testing.assert_close(its.cpu(), mine, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(there.scales.gathered().cpu(), here.scales.gathered())


@pytest.mark.parametrize("chunk", [None, 16, 20])
def test_a_head_computes_what_it_does_on_a_cpu(chunk: int | None) -> None:
    here, there = Head(chunk=chunk), Head("cuda", chunk=chunk)
    mine = here.results()
    torch.cuda.set_sync_debug_mode("error")
    try:
        its = there.results()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # A logit that is rounded otherwise may give its gradient e5m2's next number.
    for one, other in zip(mine, its, strict=True):
        assert (other.cpu().double() - one).norm() < 2e-2 * one.double().norm()


def test_generation_multiplies_single_rows() -> None:
    case = Fixture("cuda")
    with torch.no_grad():
        assert case.layer(case.x[:1]).shape == (1, case.layer.out_features)
        assert case.layer(case.x[: DIVISOR + 1]).shape == (DIVISOR + 1, case.layer.out_features)
