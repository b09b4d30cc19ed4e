"""Adapters added into the weights that they bend, and taken out again."""

from collections.abc import Mapping

from torch import Tensor

from model.adapters.kinds import LoraConfig
from model.adapters.layer import ADAPTER, is_adapter, plain_name


def merged(values: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Plain weights with the adapters added in: W + factor * B A, in fp32.

    Args:
        values: parameters of the model with adapters, by name.
        config: what the adapters were made with.
    """
    base = {plain_name(name): value for name, value in values.items() if not is_adapter(name)}
    adapters = {name: value for name, value in values.items() if is_adapter(name)}
    return with_adapters(base, adapters, factor=config.factor)


def with_adapters(
    base: Mapping[str, Tensor], adapters: Mapping[str, Tensor], *, factor: float
) -> dict[str, Tensor]:
    """Plain weights with low-rank adapters added in, in fp32; others as they are.

    Args:
        base: parameters of a plain model, by name.
        adapters: A and B by their names in a model, of an adapter called `default`.
        factor: what B A is multiplied by; its negative takes out what was added.
    """
    found = dict(base)
    for name, down in adapters.items():
        layer, mark, _ = name.partition(f".lora_A.{ADAPTER}.weight")
        if mark:
            up = adapters[f"{layer}.lora_B.{ADAPTER}.weight"]
            weight = f"{layer}.weight"
            found[weight] = base[weight].float() + factor * (up.float() @ down.float())
    return found
