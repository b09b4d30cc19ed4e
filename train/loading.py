"""A trained model whole in one process, for tools."""

from pathlib import Path

import torch

from model.lora import merge_adapters
from model.semicausal import SemiCausal
from train.checkpoint.restore import load_module, read_state
from train.checkpoint.weights import read_values
from train.config import RunConfig
from train.config_files import from_stored
from train.storage.place import Place


def load_config(path: Place | Path) -> RunConfig:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: it is missing or damaged.
        ConfigError: it is of another version.
    """
    return from_stored(RunConfig, read_state(path).config, place=str(path))


def load_model(path: Place | Path, *, device: torch.device) -> SemiCausal:
    """The model of a checkpoint in fp32, adapters merged, in eval mode.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    config = load_config(path)
    # What computed attention in training may not be there here, or not in fp32.
    model = SemiCausal(config.built_model.model_copy(update={"attention": "auto"}))
    if config.lora is None:
        load_module(path, model)
    else:
        weights = merge_adapters(read_values(path), config.lora)
        for name, parameter in model.named_parameters():
            parameter.data.copy_(weights[name])
    return model.to(device).eval()
