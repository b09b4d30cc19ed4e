"""The speaker of a checkpoint: its model whole in this process, and the tokenizer the run kept."""

import torch

from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.errors import CheckpointError
from train.loading import load_config, load_model
from train.run_directory import kept_tokenizer
from train.storage.place import Place
from train.text import Speaker


def speaker_of(
    checkpoint: str, tokenizer: Place | None, *, device: torch.device
) -> tuple[str, Speaker]:
    """A speaker, behind its run's name.

    Args:
        checkpoint: run directory or one of its checkpoints.
        tokenizer: None: the one that the run kept.
        device: where the model is to be.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its run kept no tokenizer.
        UserError: the tokenizer cannot be read, or is of another model.
    """
    path = resolve(Place.parse(checkpoint))
    tokenizer = tokenizer or kept_tokenizer(path, read_state(path).model_dump())
    if tokenizer is None:
        raise CheckpointError(
            f"the tokenizer.json that the run was trained with is neither in {path.parent.parent} "
            f"nor in {path}: name the corpus's own with --tokenizer"
        )
    return load_config(path).name, Speaker(load_model(path, device=device), tokenizer)
