"""Adapters of a run: out of a checkpoint into peft's file format, from there, and merged."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.adapters import peft_format
from model.adapters.kinds import BottleneckConfig, LoraConfig
from model.adapters.layer import is_adapter, plain_name
from model.adapters.merging import merged, with_adapters
from model.adapters.peft_format import SETTINGS_NAME, TENSORS_NAME, model_name, peft_name
from model.adapters.tuning import Names, Tuning
from model.decoder import TIED_NAME
from parallel.agreement import gathered, on_first_rank
from parallel.zero.engine import ZeroEngine
from parallel.zero.state import local_slices, publish
from train.checkpoint.restore import read_state, resolve
from train.checkpoint.weights import read_values, values_of, write_values
from train.config import RunConfig
from train.config_files import from_stored
from train.data.tokens import TOKENIZER_BYTES_AT_MOST
from train.errors import CheckpointError
from train.run_directory import kept_tokenizer
from train.storage.place import Place
from train.storage.record import content_of

BASE_KEY = "semicausal_base"
"""Under which a file's metadata holds the hash of the base."""
TIED_KEY = "semicausal_tied"
"""In a file's metadata where it holds a tied head too, for peft would leave the base's there."""
TIED_HEAD = "decoder.head"
PICKLED_NAME = "adapter_model.bin"
SETTINGS_BYTES_AT_MOST = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter as it lies in a file.

    Attributes:
        config: what its low-rank part was made with; None if it has none.
        bottleneck: what its bottlenecks were made with; None if it has none.
        values: its tensors in fp32, by their names in a model; among them whole layers that were
            trained beside it, under their plain names.
        base: hash of the base's weights; None in files that do not tell.
        settings: of the file.
    """

    config: LoraConfig | None
    bottleneck: BottleneckConfig | None = None
    values: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    base: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


def base_hash(path: Place | Path) -> str:
    """Hash of a checkpoint's weights, the same however they are cut into files.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    whole = xxhash.xxh3_128()
    for name, value in values_of(path):
        whole.update(f"{name} {list(value.shape)}\n".encode())
        whole.update(value.float().contiguous().numpy().data)
    return whole.hexdigest()


def write(
    path: Place | Path,
    out: Path,
    *,
    config: LoraConfig | None,
    bottleneck: BottleneckConfig | None = None,
) -> None:
    """Write the adapters of a checkpoint so that plain peft reads them, and read them back.

    They are taken from the checkpoint, where they lie whole whatever layout trained them. peft
    knows no bottlenecks: files with some are for this program alone.

    Args:
        path: checkpoint of a run with adapters.
        out: directory for `adapter_config.json` and `adapter_model.safetensors`.
        config: what its low-rank adapters were made with, if it has some.
        bottleneck: the same of its bottlenecks.

    Raises:
        CheckpointError: the checkpoint is damaged, or what was written is not what is read.
        OSError: it cannot be written.
    """
    path = resolve(path)
    state = read_state(path).model_dump()
    values = {name: value.float().contiguous() for name, value in values_of(path, trainable=True)}
    assert any(map(is_adapter, values)), "a checkpoint of a run with adapters holds them"
    out.mkdir(parents=True, exist_ok=True)
    about = {"format": "pt"}
    if (base := state.get("base_hash")) is not None:
        about[BASE_KEY] = base
    stored = dict(values)
    if TIED_NAME in values and state["config"]["model"]["decoder"]["tied_head"]:
        stored[f"{TIED_HEAD}.weight"] = values[TIED_NAME].clone()
        about[TIED_KEY] = "yes"
    save_file({peft_name(name): v for name, v in stored.items()}, out / TENSORS_NAME, about)
    layers = {name.partition(".lora_A.")[0] for name in values if ".lora_A." in name}
    whole = {plain_name(n).rsplit(".", 1)[0] for n in stored if not is_adapter(n)}
    where = state["config"].get("init_from")
    settings: dict[str, Any] = {"peft_type": None, "base_model_name_or_path": where}
    if config is not None:
        settings = peft_format.settings(config, layers=layers, whole=whole, base=where)
    if bottleneck is not None:
        settings["semicausal_bottleneck"] = bottleneck.model_dump(mode="json")
    (out / SETTINGS_NAME).write_text(json.dumps(settings, indent=2) + "\n")
    _refuse_difference(out, values, read(out).values)


def _refuse_difference(out: Path, wrote: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    same = set(wrote) == set(found) and all(torch.equal(wrote[n], found[n]) for n in wrote)
    if not same:
        raise CheckpointError(
            f"{out} does not hold what was written there: write it again, on a disk that keeps it"
        )


def read(path: Path) -> Adapter:
    """An adapter out of a directory in peft's file format; nothing is unpickled.

    Raises:
        CheckpointError: it is missing, damaged, or of a kind that is not known here.
    """
    try:
        text = content_of(Place.of(path) / SETTINGS_NAME, limit_bytes=SETTINGS_BYTES_AT_MOST)
        stored: Any = json.loads(text)
        with safe_open(path / TENSORS_NAME, framework="pt") as file:
            about = file.metadata() or {}
            values = {model_name(key): file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path} is no adapter: it needs {SETTINGS_NAME} and {TENSORS_NAME}{_unpickling(path)}"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): name another adapter") from None
    if broken := sorted(name for name, value in values.items() if not value.isfinite().all()):
        raise CheckpointError(
            f"{path} is broken: NaN or infinity is in {broken[0]}; name an adapter from before its "
            "training diverged"
        )
    if TIED_KEY in about:
        values.pop(f"{TIED_HEAD}.weight", None)
    layers = {layer for layer, mark, _ in (n.partition(".lora_") for n in values) if mark}
    try:
        if not isinstance(stored, dict):
            raise ValueError("the settings are no table")
        known: dict[str, Any] = stored
        narrow = known.get("semicausal_bottleneck")
        config = None
        if narrow is None or layers:
            config = peft_format.config_of(known, layers=sorted(layers))
        bottleneck = None if narrow is None else BottleneckConfig.model_validate(narrow)
    except (ValueError, TypeError, KeyError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path}/{SETTINGS_NAME} is not understood ({told}): name another adapter"
        ) from None
    return Adapter(
        config=config,
        bottleneck=bottleneck,
        values=values,
        base=about.get(BASE_KEY),
        settings=known,
    )


def _unpickling(path: Path) -> str:
    if not (path / PICKLED_NAME).is_file():
        return ""
    return (
        f", and nothing is unpickled here; in {path}, if you trust it: python -c 'import torch; "
        "from safetensors.torch import save_file; save_file(torch.load("
        f'"{PICKLED_NAME}", weights_only=True), "{TENSORS_NAME}")\''
    )


def refuse_other_base(adapter: Adapter, path: Path, base: Place | Path) -> None:
    """Refuse an adapter for a base that was trained on another one.

    Raises:
        CheckpointError: both hashes are known, and differ.
    """
    if adapter.base is None:
        return
    here = base_hash(base)
    if here != adapter.base:
        raise CheckpointError(
            f"{path} is an adapter for another base: its base has the hash {adapter.base}, and "
            f"{base} has {here}; name the base that it was trained on"
        )


@torch.no_grad()
def start_from(values: Mapping[str, Tensor], engine: ZeroEngine) -> None:
    """Give what trains the values of a file, masters included; every rank must call it.

    Args:
        values: of adapters and of what trains beside them, by their names in a model.
        engine: of a model that they fit, before its first step.
    """
    for part in local_slices(engine):
        if part.kind == "value" and part.name in values:
            of_box = part.region.take(values[part.name]).reshape(-1)
            part.tensor.copy_(of_box[part.region.start : part.region.stop])
    publish(engine)


def compare(engine: ZeroEngine, out: Path) -> None:
    """Hold a written adapter against the masters in memory; every rank must call it.

    Raises:
        CheckpointError: a tensor is missing, or is not what was trained; on all ranks.
    """
    trained = {part.name for part in local_slices(engine) if part.kind != "value"}
    mine = [
        (part.name, part.region, _digest(part.tensor))
        for part in local_slices(engine)
        if part.kind == "value" and part.name in trained and part.owned
    ]
    parts = [part for of_rank in gathered(mine) for part in of_rank]

    def check() -> None:
        left = dict(read(out).values)
        sizes = dict.fromkeys(left, 0)
        for name, region, digest in parts:
            key = name if is_adapter(name) else plain_name(name)
            value = left.get(key)
            kept = None
            if value is not None and list(value.shape) == list(region.shape):
                kept = region.take(value).reshape(-1)[region.start : region.stop]
                sizes[key] += len(kept)
            if kept is None or _digest(kept) != digest:
                raise CheckpointError(
                    f"{out} is not what was trained: {name} differs from the run's own; the run "
                    "is saved, run again to write it"
                )
        for name, value in left.items():
            if sizes[name] != value.numel():
                raise CheckpointError(
                    f"{out} is not what was trained: it has {name}, which the run has not"
                )

    on_first_rank(check, CheckpointError)


def _digest(values: Tensor) -> str:
    return xxhash.xxh3_128(values.detach().float().cpu().contiguous().numpy().data).hexdigest()


def merge(
    path: Place | Path, out: Place | Path, *, adapter: Path | None = None, take_out: bool = False
) -> Place:
    """Write a plain checkpoint with adapters added into its weights, or taken out of them.

    Args:
        path: checkpoint of a LoRA run; or, with `adapter`, of the base.
        out: to create.
        adapter: directory in peft's file format.
        take_out: subtract what an earlier merge has added; equal but for rounding.

    Raises:
        CheckpointError: there are no adapters or they do not fit, or `out` exists.
    """
    path, out = resolve(path), Place.of(out)
    if out.exists():  # before anything large is read
        raise CheckpointError(f"{out} exists: choose another place for the checkpoint")
    state = read_state(path).model_dump()
    if adapter is not None:
        values, whole = _with_file(path, adapter, take_out=take_out)
        _tell_drawn(state, values, trained=whole)
    else:
        values = _with_own(path, state)
    # The weights are whole now: what they started from says nothing about the merged model.
    state["config"] |= {"lora": None, "init_from": None}
    state["config"].pop("trainable", None)
    state.pop("base_hash", None)
    out = write_values(out, values, state)
    if (tokenizer := kept_tokenizer(path, state)) is not None:
        content = tokenizer.read(limit_bytes=TOKENIZER_BYTES_AT_MOST)
        (out / tokenizer.name).write(content)
    return out


def _tell_drawn(state: dict[str, Any], values: Iterable[str], *, trained: Iterable[str]) -> None:
    """Keep of what the base had from chance what the adapter's whole layers did not replace."""
    drawn, left = state.get("drawn"), set(values) - set(trained)
    if drawn is None:
        return
    parts = [part for part in drawn["parts"] if any(name.startswith(f"{part}.") for name in left)]
    state["drawn"] = drawn | {"parts": parts}
    if not parts:
        del state["drawn"]


def _with_own(path: Place, state: Mapping[str, Any]) -> dict[str, Tensor]:
    stored = state["config"].get("lora")
    if state["config"].get("bottleneck") is not None:
        raise CheckpointError(
            f"{path} has bottlenecks, which no weight can hold: tools.generate, tools.evaluate and "
            "tools.serve read the run as it is; train with lora where one plain model is needed"
        )
    if stored is None:
        raise CheckpointError(f"{path} has no adapters to merge: name a LoRA run's checkpoint")
    return merged(read_values(path), from_stored(LoraConfig, stored, place=str(path)))


def _with_file(
    path: Place, place: Path, *, take_out: bool
) -> tuple[dict[str, Tensor], Iterable[str]]:
    """Weights with an adapter added in, and the names of those that it replaces whole."""
    adapter = read(place)
    config = from_stored(RunConfig, read_state(path).config, place=str(path))
    names = Names.of(config.built_model)
    if adapter.config is None or adapter.bottleneck is not None:
        raise CheckpointError(
            f"{place} has bottlenecks, which no weight can hold: use it beside its base"
        )
    base = read_values(path)
    whole = {name: value for name, value in adapter.values.items() if not is_adapter(name)}
    if take_out and whole:
        raise CheckpointError(
            f"{place} holds whole layers such as {min(whole)}, and what they were before is not "
            "in it: go back to the base itself"
        )
    if not take_out:
        refuse_other_base(adapter, place, path)
    refuse_unfitting(adapter, place, names)
    factor = adapter.config.factor * (-1 if take_out else 1)
    return with_adapters(base | whole, adapter.values, factor=factor), whole


def refuse_unfitting(
    adapter: Adapter, place: Path, names: Names, *, tuning: Tuning | None = None
) -> None:
    """Refuse an adapter whose tensors do not belong to a model.

    Args:
        adapter: out of a file.
        place: of the file.
        names: of the plain model.
        tuning: what the adapter is to have; None: what it says itself.

    Raises:
        CheckpointError: a tensor is missing, there is one more, or one has another shape.
    """
    if tuning is None:
        tuning = Tuning(lora=adapter.config, bottleneck=adapter.bottleneck)
        wanted = _named_shapes(adapter, place, names)
    else:
        wanted = tuning.saved_shapes(names)
    rank = None if adapter.config is None else adapter.config.rank
    if told := peft_format.tensor_faults(adapter.values, wanted, rank=rank):
        raise CheckpointError(f"{place} does not fit: {'; '.join(told)}")
    theirs = None if adapter.config is None else adapter.config.factor
    ours = None if tuning.lora is None else tuning.lora.factor
    if theirs != ours:
        raise CheckpointError(
            f"{place} does not fit: its B A is multiplied by {theirs} and here by {ours}: set "
            "lora.alpha and lora.scale to those of the adapter"
        )


def _named_shapes(adapter: Adapter, place: Path, names: Names) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that an adapter's settings name in a model."""
    lora, settings = adapter.config, adapter.settings
    if lora is not None:
        here = {layer for layer in lora.targets if layer in names.linear}
        if lora.targets and not here:
            raise CheckpointError(
                f"{place} does not fit: no layer of this model is called {lora.targets[0]}; an "
                "adapter for a model of another class is merged into that by peft, and the whole "
                "read by python -m tools.import"
            )
        try:
            named = peft_format.named_layers(settings, names.linear)
        except ValueError as error:
            raise CheckpointError(f"{place}/{SETTINGS_NAME} is not understood: {error}") from None
        lora = lora.model_copy(update={"targets": sorted(named)})
    whole = {name for name in adapter.values if not is_adapter(name)} & set(names.parameters)
    whole |= peft_format.whole_layers(settings, names.parameters)
    shapes = Tuning(lora=lora, bottleneck=adapter.bottleneck).adapter_shapes(names)
    return shapes | {name: names.parameters[name] for name in sorted(whole)}
