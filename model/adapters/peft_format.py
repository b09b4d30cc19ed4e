"""Adapters as peft stores them: names of tensors, and the settings beside them.

Source: peft's checkpoint format, https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from model.adapters.kinds import LoraConfig
from model.adapters.layer import ADAPTER, MARKS

PREFIX = "base_model.model."
SETTINGS_NAME, TENSORS_NAME = "adapter_config.json", "adapter_model.safetensors"


def peft_name(name: str) -> str:
    """Name of a parameter in peft's file format."""
    return PREFIX + name.replace(f".{ADAPTER}.", ".")


def model_name(name: str) -> str:
    """Name that a tensor of a peft file has in a model; the inverse of `peft_name`."""
    name = name.removeprefix(PREFIX)
    for mark in MARKS:
        name = name.replace(mark, f"{mark}{ADAPTER}.")
    return name


def settings(
    config: LoraConfig, *, layers: Iterable[str], whole: Iterable[str], base: str | None
) -> dict[str, Any]:
    """What peft reads beside the tensors.

    Args:
        config: what the adapters were made with.
        layers: names of the layers that have one.
        whole: names of the layers that are stored whole.
        base: where the base lies.
    """
    layers = set(layers)
    # peft takes a name for a whole one, or for how it ends.
    is_plain = {layer.rsplit(".", 1)[-1] for layer in layers} == set(config.targets)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.scale == "root_rank",
        "target_modules": sorted(config.targets if is_plain else layers),
        "modules_to_save": sorted(whole) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


_NOT_OURS: Mapping[str, Any] = {
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
}
"""Settings that change what an adapter computes, with the value that does not."""


_BESIDE_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""First values that leave the base as it was; with others, such as PiSSA's, the adapter is for a
base from which they were taken, and peft takes them again when it loads the file."""

_NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""Settings by which peft leaves out layers that its targets name."""


def config_of(stored: Mapping[str, Any], *, layers: Sequence[str]) -> LoraConfig:
    """What a peft file's adapters were made with.

    Args:
        stored: its settings.
        layers: names of the layers for which it has tensors, which count where the settings name
            layers by an expression.

    Raises:
        ValueError: it is another kind of adapter, or does what ours do not.
    """
    if stored.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {stored.get('peft_type')!r}, and LORA alone is known")
    for key, value in _NOT_OURS.items():
        if (stored.get(key) or value) != value:
            raise ValueError(f"{key} is {stored[key]!r}, and {value!r} alone is known")
    if (start := stored.get("init_lora_weights")) not in _BESIDE_THE_BASE:
        raise ValueError(
            f"init_lora_weights is {start!r}, which moves the base: let peft convert it, with "
            "path_initial_model_for_weight_conversion"
        )
    named: Any = stored.get("target_modules")
    narrowed = any(stored.get(key) is not None for key in _NARROWING)
    # Where peft's settings name layers, each of them must have its tensors.
    is_list = isinstance(named, list) and named and not narrowed
    return LoraConfig(
        rank=stored["r"],
        alpha=float(stored["lora_alpha"]),
        scale="root_rank" if stored.get("use_rslora") else "rank",
        dropout=float(stored.get("lora_dropout") or 0.0),
        targets=sorted(named if is_list else layers),
    )


def tensor_faults(
    found: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], *, rank: int | None
) -> list[str]:
    """What is wrong with the tensors of an adapter: missing, extra, of another shape.

    Args:
        found: by name in a model.
        wanted: their shapes, by name.
        rank: of the adapter that the file says it is, if any.
    """
    told: list[str] = []
    for about, names in (
        ("lacks", sorted(set(wanted) - set(found))),
        ("has besides", sorted(set(found) - set(wanted))),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            told.append(f"it {about} {names[0]}{more}")
    for name in sorted(set(wanted) & set(found)):
        here, there = list(wanted[name]), list(found[name].shape)
        if here != there:
            of_rank = f" (rank {rank})" if rank is not None else ""
            told.append(f"its {name} has shape {there}{of_rank} and {here} is wanted")
            break
    return told
