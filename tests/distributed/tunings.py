"""What of the tiny model may be trained, by name."""

from typing import Any, cast

import torch

from model import torchvision_free
from model.adapters.kinds import BottleneckConfig, LoraConfig
from model.adapters.tuning import Names, Tuning
from model.semicausal import SemiCausal

LAYERS = ["qkv", "out", "up", "down"]


def _lora(
    *targets: str,
    trainable: list[str] | None = None,
    up_rate_ratio: float = 1.0,
    alpha: float = 8.0,
) -> Tuning:
    # Much weight beside the base, so that a wrong adapter shows.
    config = LoraConfig(rank=4, alpha=alpha, targets=[*targets], up_rate_ratio=up_rate_ratio)
    return Tuning(lora=config, trainable=trainable)


TUNINGS: dict[str, Tuning] = {
    "": Tuning(),
    "decoder": _lora("decoder"),
    "encoder": _lora("encoders"),
    "connector": _lora("connectors"),
    "all": _lora("decoder", "encoders", "connectors"),
    "last block": _lora("decoder.blocks.{-1..-1}", alpha=16.0),  # one block is less seen
    "beside the connector": _lora(*LAYERS, trainable=["connectors"]),
    "beside the resampler": _lora(*LAYERS, "!connectors", trainable=["connectors"]),
    "LoRA+": _lora(*LAYERS, "!encoders", up_rate_ratio=4.0),
    "bottleneck": Tuning(bottleneck=BottleneckConfig(width=8)),
    "BitFit": Tuning(trainable=["*.bias"]),
    "frozen decoder": Tuning(trainable=["encoders", "connectors"]),
    "last blocks": Tuning(trainable=["decoder.blocks.{-2..-1}"]),
}


def with_peft(model: SemiCausal, tuning: Tuning, *, seed: int) -> None:
    """What `tune` does, by plain peft."""
    torchvision_free.install()
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    names, config = Names.of(model.config), tuning.lora
    assert config is not None
    settings = PeftConfig(
        r=config.rank,
        lora_alpha=cast(Any, config.alpha),
        target_modules=sorted(tuning.low_rank(names)),
        bias="none",
    )
    trained = tuning.trained(names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model, adapter_name="default")
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.requires_grad_(True)
        if ".lora_B." in name:
            cast(Any, parameter).rate_ratio = config.up_rate_ratio
