"""megatron-core finds a CPU where it asks for CUDA, and CUDA is left alone where there is one."""

from contextlib import nullcontext

import pytest
import torch

from parallel import cuda_free


@pytest.fixture
def cuda_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back what `install` replaces."""
    for name in ("current_device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))


@pytest.mark.usefixtures("cuda_functions")
def test_the_cpu_is_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cuda_free.install()
    cuda_free.install()
    device = torch.cuda.current_device()
    assert torch.empty(2, device=device).device.type == "cpu"
    torch.cuda.synchronize()
    torch.cuda.synchronize(device)


@pytest.mark.usefixtures("cuda_functions")
def test_nothing_is_replaced_where_there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.cuda.current_device, torch.cuda.synchronize
    cuda_free.install()
    assert (torch.cuda.current_device, torch.cuda.synchronize) == before
    assert isinstance(cuda_free.on_cpu(), nullcontext)


def test_cuda_tensors_are_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with cuda_free.on_cpu():
        made = [
            torch.zeros(2, device="cuda"),
            torch.empty((2, 3), device="cuda:0", dtype=torch.bfloat16, requires_grad=True),
            torch.tensor([1, 2], device=torch.device("cuda")),
            torch.ones(2).cuda(),
            torch.ones(2).to(device="cuda"),
        ]
        kept = torch.zeros(2, device="cpu")
        meta = torch.zeros(2, device="meta")
    assert {tensor.device.type for tensor in [*made, kept]} == {"cpu"}
    assert meta.is_meta, "other devices are left alone"
    assert made[1].dtype == torch.bfloat16
    assert made[1].requires_grad
    assert made[2].tolist() == [1, 2]
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.zeros(2, device="cuda")


def test_cuda_of_a_cpu_tensor_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tensor = torch.ones(2)
    with cuda_free.on_cpu():
        assert tensor.cuda() is tensor
