"""The speaker of a checkpoint: its model whole in this process, and the tokenizer the run kept."""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.adapters.layer import is_adapter
from model.adapters.several import put_adapter, rows_use
from model.adapters.tuning import Names
from model.reading import Read, Reading
from model.semicausal import SemiCausal
from train import adapter
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.errors import CheckpointError
from train.loading import drawn_of, load_config, load_model
from train.run_directory import kept_tokenizer
from train.storage.place import Place
from train.text import Speaker


def speaker_of(
    checkpoint: str,
    tokenizer: Place | None,
    *,
    device: torch.device,
    adapters: Mapping[str, Path] | None = None,
) -> tuple[str, Speaker]:
    """A speaker, behind its run's name.

    Args:
        checkpoint: run directory or one of its checkpoints.
        tokenizer: None: the one that the run kept.
        device: where the model is to be.
        adapters: directories of adapters that its prompts may name.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its run kept no tokenizer; or an
            adapter is, or is of another base.
        UserError: the tokenizer cannot be read, or is of another model.
    """
    path = resolve(Place.parse(checkpoint))
    tokenizer = tokenizer or kept_tokenizer(path, read_state(path).model_dump())
    if tokenizer is None:
        raise CheckpointError(
            f"the tokenizer.json that the run was trained with is neither in {path.parent.parent} "
            f"nor in {path}: name the corpus's own with --tokenizer"
        )
    tell_untrained(path)
    model = load_model(path, device=device)
    for name, place in (adapters or {}).items():
        _put(model, name, place, base=path)
    return load_config(path).name, Speaker(model, tokenizer, read=by_row(model))


def tell_untrained(path: Place) -> None:
    """Warn whoever asks a model of which nothing has trained a part."""
    if (drawn := drawn_of(path)) is not None:
        sys.stderr.write(f"{path}: {drawn}, and answers mean nothing until adapters train them\n")


def _put(model: SemiCausal, name: str, place: Path, *, base: Place) -> None:
    found = adapter.read(place)
    whole = [key for key in found.values if not is_adapter(key)]
    if found.config is None or found.bottleneck is not None or whole:
        what = f"whole layers such as {min(whole)}" if whole else "bottlenecks"
        raise CheckpointError(
            f"{place} holds {what}, which rows of one batch cannot have beside others: name one of "
            "low rank alone, or merge it into a checkpoint of its own with python -m tools.merge"
        )
    adapter.refuse_other_base(found, place, base)
    adapter.refuse_unfitting(found, place, Names.of(model.config))
    try:
        put_adapter(model, name, found.config, found.values)
    except ValueError as error:
        raise CheckpointError(f"{place}: {error}") from None


def by_row(model: SemiCausal) -> Read:
    """The model, each row with the adapter that it asks for."""

    def read(reading: Reading) -> Tensor:
        if not reading.adapters:
            logits = model(reading)
        else:
            with rows_use(model, reading.adapters, slots=reading.tokens.shape[1]):
                logits = model(reading)
        assert isinstance(logits, Tensor)
        return logits

    return read
