"""Adapters as peft stores them: names of tensors, and the settings beside them.

Source: peft's checkpoint format, https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import re
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
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "velora_config": None,
    "monteclora_config": None,
}
"""Settings that change what an adapter computes, with the value that does not."""

_IDLE = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "lora_dropout", "init_lora_weights", "megatron_core"),
    *("megatron_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "semicausal_bottleneck"),
}
"""Settings that change nothing, or how an adapter began, which `init_lora_weights` tells."""

_READ = {
    *("r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "modules_to_save"),
    *("layers_to_transform", "layers_pattern"),
}

_BESIDE_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""First values that leave the base as it was; with others, such as PiSSA's, the adapter is for a
base from which they were taken, and peft takes them again when it loads the file."""


def config_of(stored: Mapping[str, Any], *, layers: Sequence[str]) -> LoraConfig:
    """What a peft file's adapters were made with.

    Args:
        stored: its settings.
        layers: names of the layers for which it has tensors.

    Raises:
        ValueError: it is another kind of adapter, or does what ours do not.
    """
    if stored.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {stored.get('peft_type')!r}, and LORA alone is known")
    for key, value in stored.items():
        usual = _NOT_OURS.get(key)
        if key not in _IDLE | _READ and (value or usual) != usual:
            raise ValueError(f"{key} is {value!r}, and {usual!r} alone is known")
    if (start := stored.get("init_lora_weights")) not in _BESIDE_THE_BASE:
        raise ValueError(
            f"init_lora_weights is {start!r}, which moves the base: let peft convert it, with "
            "path_initial_model_for_weight_conversion"
        )
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        named: Any = stored.get(key)
        is_list = isinstance(named, list) and all(isinstance(one, str) for one in named)
        if named is not None and not is_list and not isinstance(named, str):
            raise ValueError(f"{key} is {named!r}, which names no layers")
    return LoraConfig(
        rank=stored["r"],
        alpha=float(stored["lora_alpha"]),
        scale="root_rank" if stored.get("use_rslora") else "rank",
        dropout=float(stored.get("lora_dropout") or 0.0),
        targets=sorted(layers),
    )


def named_layers(stored: Mapping[str, Any], linear: Iterable[str]) -> set[str]:
    """Linear layers beside which a file's settings put adapters: all of them must have tensors.

    Source: `check_target_module_exists` of peft.tuners.tuners_utils.

    Args:
        stored: the settings.
        linear: names of a model's linear layers.

    Raises:
        ValueError: an expression is none.
    """
    targets: Any = stored.get("target_modules") or []
    excluded: Any = stored.get("exclude_modules") or []
    kept = "|".join(_listed(stored.get("modules_to_save")))
    numbers: Any = stored.get("layers_to_transform")
    numbers = [numbers] if isinstance(numbers, int) else numbers
    lists = [rf"(?:^|.*?\.){one}" for one in _listed(stored.get("layers_pattern"))]

    def is_adapted(name: str) -> bool:
        is_kept = kept and re.match(rf"(^|.*\.)({kept})($|\..*)", name)
        if is_kept or _is_named(name, excluded) or not _is_named(name, targets):
            return False
        if not numbers or isinstance(targets, str) or name in targets:
            return True
        found = [re.match(rf"{one}\.(\d+)\.", name) for one in lists or [r".*?\.[^.]*"]]
        first = next((one for one in found if one is not None), None)
        return first is not None and int(first[1]) in numbers

    try:
        return {name for name in linear if is_adapted(name)}
    except re.error as error:
        raise ValueError(f"an expression in it is none: {error}") from None


def whole_layers(stored: Mapping[str, Any], parameters: Iterable[str]) -> set[str]:
    """Parameters of the modules that a file's settings say are stored whole.

    Args:
        stored: the settings.
        parameters: names of a model's parameters.
    """
    kept = tuple(_listed(stored.get("modules_to_save")))
    found: set[str] = set()
    for name in parameters:
        parts = name.split(".")
        modules = (".".join(parts[:number]) for number in range(1, len(parts)))
        if kept and any(module.endswith(kept) for module in modules):
            found.add(name)
    return found


def _listed(named: Any) -> list[str]:
    return [named] if isinstance(named, str) else list(named or [])


def _is_named(name: str, named: str | Sequence[str]) -> bool:
    if isinstance(named, str):
        return re.fullmatch(named, name) is not None
    return name in named or any(name.endswith(f".{one}") for one in named)


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
