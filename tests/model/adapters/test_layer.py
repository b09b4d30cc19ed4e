"""A layer with an adapter computes what peft's does, in training too."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from model import torchvision_free
from model.adapters.kinds import LoraConfig
from model.adapters.layer import ADAPTER, Adapted


@pytest.mark.parametrize("is_root", [False, True], ids=["rank", "root_rank"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_as_by_peft(is_root: bool, dropout: float) -> None:
    torchvision_free.install()
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    torch.manual_seed(0)
    linear, x = nn.Linear(6, 5), torch.randn(7, 6)
    config = LoraConfig(
        rank=3, alpha=8.0, scale="root_rank" if is_root else "rank", dropout=dropout
    )
    ours = Adapted(copy.deepcopy(linear))
    ours.add_lora(config)
    ours.active.append(ADAPTER)
    settings = PeftConfig(
        r=3, lora_alpha=8, use_rslora=is_root, lora_dropout=dropout, target_modules=["0"]
    )
    theirs: Any = inject_adapter_in_model(settings, nn.Sequential(linear))
    with torch.no_grad():
        for part in ("lora_A", "lora_B"):
            made = getattr(ours, part)[ADAPTER].weight
            made.copy_(torch.randn_like(made))
            getattr(theirs[0], part)[ADAPTER].weight.copy_(made)
    for is_training in (True, False):
        found: list[torch.Tensor] = []
        for layer in (ours, theirs):
            layer.train(is_training)
            torch.manual_seed(1)
            found.append(layer(x))
        torch.testing.assert_close(*found)
