"""Adapters of a LoRA run: out of a checkpoint into peft's file format, or merged into the base."""

from pathlib import Path

from safetensors.torch import save_file

from model.lora import LoraConfig, is_adapter, merge_adapters, peft_config, peft_name
from train.checkpoint.restore import read_state, resolve
from train.checkpoint.weights import read_values, write_values
from train.config_files import from_stored
from train.data.tokens import TOKENIZER_BYTES_AT_MOST
from train.errors import CheckpointError
from train.run_directory import kept_tokenizer
from train.storage.place import Place


def export(path: Place | Path, config: LoraConfig, out: Path) -> None:
    """Write the adapters of a checkpoint so that plain peft reads them.

    They are taken from the checkpoint, where they lie whole whatever ZeRO did to them in memory.

    Args:
        path: checkpoint of a LoRA run.
        config: what its adapters were made with.
        out: directory for `adapter_config.json` and `adapter_model.safetensors`.
    """
    values = {
        peft_name(name): value.float().contiguous()
        for name, value in read_values(path).items()
        if is_adapter(name)
    }
    assert values, "a LoRA run's checkpoint holds adapters"
    out.mkdir(parents=True, exist_ok=True)
    save_file(values, out / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = peft_config(config)
    # A set is written in another order each time.
    settings.target_modules = sorted(config.targets)
    settings.save_pretrained(out)


def merge(path: Place | Path, out: Place | Path) -> Place:
    """Write a plain checkpoint with the adapters of a LoRA run added into its weights.

    Raises:
        CheckpointError: the checkpoint has no adapters, or `out` exists.
    """
    path, out = resolve(path), Place.of(out)
    if out.exists():  # before anything large is read
        raise CheckpointError(f"{out} exists: choose another place for the checkpoint")
    state = read_state(path).model_dump()
    stored = state["config"].get("lora")
    if stored is None:
        raise CheckpointError(f"{path} has no adapters to merge: name a LoRA run's checkpoint")
    config = from_stored(LoraConfig, stored, place=str(path))
    # The weights are whole now: what they started from says nothing about the merged model.
    state["config"] |= {"lora": None, "init_from": None}
    out = write_values(out, merge_adapters(read_values(path), config), state)
    if (tokenizer := kept_tokenizer(path, state)) is not None:
        content = tokenizer.read(limit_bytes=TOKENIZER_BYTES_AT_MOST)
        (out / tokenizer.name).write(content)
    return out
