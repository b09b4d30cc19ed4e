"""Low-rank adapters: peft puts them on; we train them under ZeRO, save and merge them by name."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from model import torchvision_free
from model.config import Config, Dropout

ADAPTER = "default"


class LoraConfig(Config):
    """Which layers get adapters, and how large.

    Source: LoRA (2106.09685): W + (alpha / rank) B A, with B zero at first.
    """

    rank: Annotated[int, Field(ge=1, le=2**17)] = 8
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    dropout: Dropout = 0.0
    targets: list[str] = Field(default=["qkv", "out", "up", "down"], min_length=1)
    """Names of the linear layers that get adapters, in decoder and encoders alike."""


def peft_config(config: LoraConfig) -> Any:
    """The same settings as peft's own configuration."""
    torchvision_free.install()
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]  # peft takes floats too
        lora_dropout=config.dropout,
        target_modules=sorted(config.targets),
        bias="none",
    )


def add_adapters(model: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Put adapters on the target layers in place; nothing else stays trainable.

    Raises:
        ValueError: no layer has one of the target names.
    """
    names = {
        name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    absent = sorted(set(config.targets) - names)
    if absent:
        raise ValueError(
            f"lora.targets: no linear layer is called {', '.join(absent)}; there are "
            f"{', '.join(sorted(names))}"
        )
    settings = peft_config(config)
    from peft import inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model, adapter_name=ADAPTER)


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def peft_name(name: str) -> str:
    """Name of an adapter's parameter in peft's file format."""
    return "base_model.model." + name.replace(f".{ADAPTER}.", ".")


def merge_adapters(values: dict[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Plain weights with the adapters added in: W + (alpha / rank) B A, in fp32.

    Args:
        values: parameters of the model with adapters, by name.
        config: what the adapters were made with.
    """
    scale = config.alpha / config.rank
    merged: dict[str, Tensor] = {}
    for name, value in values.items():
        if is_adapter(name):
            continue
        down_name = name.replace(".base_layer.weight", f".lora_A.{ADAPTER}.weight")
        if down_name != name and down_name in values:
            up = values[down_name.replace(".lora_A.", ".lora_B.")]
            value = value.float() + scale * (up.float() @ values[down_name].float())
        merged[name.replace(".base_layer.", ".")] = value
    return merged
