"""A trained model whole in one process, for tools."""

from pathlib import Path

import torch
from pydantic import ValidationError

from model.semicausal import SemiCausal
from train import adapter
from train.checkpoint.restore import load_module, read_state
from train.config import RunConfig
from train.config_files import from_stored
from train.errors import CheckpointError
from train.run_directory import kept_tokenizer
from train.storage.place import Place


def load_config(path: Place | Path) -> RunConfig:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    try:
        return from_stored(RunConfig, read_state(path)["config"])
    except ValidationError:
        raise CheckpointError(
            f"{path} was written by a version whose configuration this one does not understand: "
            "use that version"
        ) from None


def load_model(path: Place | Path, *, device: torch.device) -> SemiCausal:
    """The model of a checkpoint in fp32, adapters merged, in eval mode.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    config = load_config(path)
    model = SemiCausal(config.built_model)
    if config.lora is None:
        load_module(path, model)
    else:
        weights = adapter.merged_weights(path, config.lora)
        # The tied head is one parameter under two names; a checkpoint stores the first.
        model.load_state_dict(weights | tied(model, weights))
    return model.to(device).eval()


def tied(model: SemiCausal, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Second names of parameters that two modules share, with their values."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name: weights[first[id(parameter)]]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def find_tokenizer(path: Place) -> Path:
    """The tokenizer that a run keeps beside its checkpoints.

    Args:
        path: a checkpoint's own directory.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_remote and (tokenizer := kept_tokenizer(path)) is not None:
        return Path(tokenizer)
    raise CheckpointError(
        f"there is no tokenizer.json in {path.parent.parent} or {path}: name the corpus's own with "
        "--tokenizer"
    )
