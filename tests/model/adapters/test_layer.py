"""A layer with adapters beside it computes, forwards and backwards, what its formula says."""

import pytest
import torch
from torch import Tensor, nn

from model.adapters.kinds import LoraConfig
from model.adapters.layer import Adapted

CONFIG = LoraConfig(rank=3, alpha=6.0)


def layer_with(*names: str, dropout: float = 0.0) -> Adapted:
    """Its base fixed, its adapters nowhere zero."""
    torch.manual_seed(1)
    layer = Adapted(nn.Linear(5, 7))
    layer.requires_grad_(False)
    for name in names:
        layer.add_lora(CONFIG.model_copy(update={"dropout": dropout}), name)
        layer.active.append(name)
        for part in (layer.lora_A[name], layer.lora_B[name]):
            nn.init.normal_(part.get_parameter("weight"))
    return layer


def by_formula(layer: Adapted, x: Tensor) -> Tensor:
    """Autograd's own sums and products."""
    out = x @ layer.weight.t() + layer.bias
    for name in layer.active:
        a, b = (part[name].get_parameter("weight") for part in (layer.lora_A, layer.lora_B))
        out = out + layer.factors[name] * (x @ a.t() @ b.t())
    return out


def gradients(layer: Adapted, out: Tensor, x: Tensor) -> list[Tensor]:
    wanted = [p for p in layer.parameters() if p.requires_grad]
    return list(torch.autograd.grad((out * out).sum(), [x, *wanted] if x.requires_grad else wanted))


@pytest.mark.parametrize("names", [("default",), ("one", "other")])
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5)])
@pytest.mark.parametrize("asks", [True, False])
def test_gradients_are_those_of_the_formula(
    names: tuple[str, ...], shape: tuple[int, ...], asks: bool
) -> None:
    layer = layer_with(*names)
    x = torch.randn(shape, requires_grad=asks)
    # What was read is read by another too, whose gradient must stay its own.
    found, wanted = (f(x) + x.sum() for f in (layer, lambda x: by_formula(layer, x)))
    torch.testing.assert_close(found, wanted)
    found, wanted = (gradients(layer, out, x) for out in (found, wanted))
    assert len(found) == 2 * len(names) + asks
    torch.testing.assert_close(found, wanted)


def test_without_gradients_of_its_own_it_passes_them_on() -> None:
    layer = layer_with("default").requires_grad_(False)
    x = torch.randn(4, 5, requires_grad=True)
    found, wanted = (gradients(layer, out, x) for out in (layer(x), by_formula(layer, x)))
    torch.testing.assert_close(found, wanted)


def test_dropout_is_of_what_the_adapter_reads_alone() -> None:
    layer = layer_with("default", dropout=0.5)
    x = torch.randn(64, 5, requires_grad=True)
    torch.manual_seed(2)
    found = layer(x)
    torch.manual_seed(2)
    a, b = (part["default"].get_parameter("weight") for part in (layer.lora_A, layer.lora_B))
    narrow = layer.lora_dropout["default"](x) @ a.t()
    wanted = x @ layer.weight.t() + layer.bias + CONFIG.factor * narrow @ b.t()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients(layer, found, x), gradients(layer, wanted, x))
    layer.eval()
    torch.testing.assert_close(layer(x), by_formula(layer, x))
