"""A checkpoint as a folder that transformers loads by itself, and back.

config.json  generation_config.json   shape of the model, and the state of the run it came from
model.safetensors                     weights, whole, as the checkpoint has them
*_semicausal.py                       the model's code, which needs torch and transformers alone
tokenizer.json  tokenizer_config.json  processor_config.json
README.md                             the model card
"""

import functools
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.encoders.image import ImageEncoderConfig
from model.semicausal import ModelConfig, SemiCausal
from tools.hub import shipped
from tools.hub.card import model_card
from tools.hub.families.native import described_as, taken_apart
from tools.hub.names import require_all, require_finite, without_tied
from tools.hub.plain_text import as_read, as_trained
from train.asked import text_encoder
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.checkpoint.weights import read_values, write_values
from train.config import RunConfig
from train.config_files import from_stored
from train.data.document import MEDIA, Kind
from train.data.tokens import (
    SPECIAL_TEXT,
    TOKENIZER_BYTES_AT_MOST,
    SpecialTokens,
    read_tokenizer,
)
from train.errors import CheckpointError, told
from train.loading import load_config
from train.run_directory import TOKENIZER, kept_tokenizer
from train.storage.place import Place

MODEL_TYPE: Final = "semicausal"
CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
WEIGHTS_INDEX: Final = "model.safetensors.index.json"
CONFIG_BYTES_AT_MOST: Final = 1 << 26
CODE: Final = tuple(
    Path(file) for file in sorted(Path(shipped.__path__[0]).glob("*_semicausal.py"))
)
_EXPORTED: Final = ("text", "image")
"""Kinds of encoders whose code goes along."""
_TRAINING_ONLY: Final = {"loss_chunk_tokens", "loss_kernel", "dropout", "init_from"}
_ENCODER_TRAINING_ONLY: Final = {"init_from", "trainable_layers", "dropout"}


def write_folder(
    checkpoint: Place | Path,
    out: Path,
    *,
    tokenizer: Place | None = None,
    native: bool = False,
) -> Path:
    """Write a checkpoint as a folder for transformers, whole or not at all.

    Args:
        checkpoint: one, or a run whose latest is meant.
        out: folder to create.
        tokenizer: file of the one it was trained with; by default the one that the run kept.
        native: write a plain decoder as a class of transformers itself, with no code of ours; it
            may do without a tokenizer.

    Raises:
        UserError: the checkpoint is missing, damaged or holds adapters beside its weights, `out`
            exists, there is no tokenizer that fits, or no class computes what it does.
    """
    path = resolve(checkpoint)
    if out.exists():  # before anything large is read
        raise CheckpointError(f"{out} exists: choose another place for the folder")
    config = load_config(path)
    model, state = config.built_model, read_state(path).model_dump()
    for name, part in model.encoders.items():
        if part.encoder.kind not in _EXPORTED:
            raise CheckpointError(
                f"{path} has an encoder of kind {part.encoder.kind} (model.encoders.{name}), and "
                f"an exported model reads {' and '.join(_EXPORTED)} alone: use the run itself"
            )
        if isinstance(part.encoder, ImageEncoderConfig) and part.encoder.text is not None:
            raise CheckpointError(
                f"{path} has an encoder that reads text behind pictures (model.encoders.{name}."
                "encoder.text), and an exported model reads pictures alone: use the run itself"
            )
    kinds = [part.encoder.kind for part in model.encoders.values()]
    if len(set(kinds)) < len(kinds):
        raise CheckpointError(
            f"{path} has encoders for {', '.join(model.encoders)}, some of one kind: an exported "
            "model has one of each"
        )
    kind = described_as(model, place=str(path)) if native else None
    found = _tokenizer(path, state, model, tokenizer)
    if found is None and kind is None:
        raise CheckpointError(
            f"the {TOKENIZER} that the run was trained with is neither in {path.parent.parent} nor "
            f"in {path}: name the corpus's own with --tokenizer"
        )
    values = read_values(path)
    require_all(values, wanted_shapes(model), place=str(path))
    require_finite(values, place=str(path))
    tensors = values if kind is None else taken_apart(kind, model, values)
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    about = {"format": "pt"}
    save_file({name: v.contiguous() for name, v in tensors.items()}, draft / WEIGHTS, about)
    documents: dict[str, Any] = {CONFIG: {}, "generation_config.json": {}}
    if found is not None:
        # A decoder of others that was not trained here has learned blank lines as they stand.
        has_paragraphs = not native or state["step"] > 0
        (draft / TOKENIZER).write_bytes(as_read(*found, has_paragraphs=has_paragraphs))
        documents = _documents(model, found[1])
    dtype = str(_widest(values)).removeprefix("torch.")
    if kind is not None:
        documents[CONFIG] |= kind[1] | {"torch_dtype": dtype}
    else:
        for file in CODE:
            shutil.copyfile(file, draft / file.name)
        reader = text_encoder(model)
        documents[CONFIG] |= _own(model, state) | {"torch_dtype": dtype}
        documents["processor_config.json"] = {
            "processor_class": "SemicausalProcessor",
            "auto_map": {"AutoProcessor": "processing_semicausal.SemicausalProcessor"},
            "modality": None if reader is None else reader[0],
            "image": _picture_reading(model),
        }
    for name, document in documents.items():
        (draft / name).write_text(json.dumps(document, indent=2) + "\n")
    (draft / "README.md").write_text(model_card(config, state, checkpoint=path, native=native))
    draft.rename(out)
    return out


def read_folder(folder: Path, out: Place | Path) -> Place:
    """Write a folder that `write_folder` or transformers' `save_pretrained` has written as ours.

    Raises:
        CheckpointError: it is no such folder, its tensors are not those of its model, or `out`
            exists.
    """
    described = read_json(folder / CONFIG)
    state = described.get("trained")
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{folder}/{CONFIG} says nothing of the run (trained): name a folder that "
            "python -m tools.export wrote"
        )
    config = from_stored(RunConfig, state.get("config"), place=f"{folder}/{CONFIG}")
    model = config.built_model
    if _shape(model) != described.get("shape"):
        raise CheckpointError(
            f"{folder}/{CONFIG} contradicts itself: shape is not that of trained.config.model; "
            "name the folder as it was written"
        )
    values = read_tensors(folder)
    if model.decoder.tied_head:
        values = without_tied(values, place=str(folder))
    require_all(values, wanted_shapes(model), place=str(folder))
    ordered = {name: values[name] for name in wanted_shapes(model)}
    place = write_values(out, ordered, state)
    if (file := folder / TOKENIZER).is_file():
        content = Place.of(file).read(limit_bytes=TOKENIZER_BYTES_AT_MOST)
        (place / TOKENIZER).write(as_trained(content))
    return place


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder of transformers, by name; nothing is unpickled.

    Raises:
        CheckpointError: there are none as safetensors, or in two ways, a file is damaged, or a
            number is none.
    """
    values: dict[str, Tensor] = {}
    for name in _files(folder):
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist: {_unpickling(folder)}")
        try:
            with safe_open(file, framework="pt") as opened:  # pyright: ignore[reportUnknownVariableType]
                found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged: {told(error)}; copy it again") from error
        if twice := sorted(found.keys() & values.keys()):
            raise CheckpointError(f"{file} has {twice[0]}, as another file of {folder} has")
        values |= found
    require_finite(values, place=str(folder))
    return values


def _files(folder: Path) -> list[str]:
    """Names of the files that hold a folder's tensors."""
    if not (folder / WEIGHTS_INDEX).is_file():
        return [WEIGHTS]
    if (folder / WEIGHTS).exists():
        raise CheckpointError(
            f"{folder} has its weights twice, in {WEIGHTS} and in the files of {WEIGHTS_INDEX}: "
            "move one of them away"
        )
    listed = read_json(folder / WEIGHTS_INDEX).get("weight_map")
    files = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if not files or any("/" in name or not name.endswith(".safetensors") for name in files):
        raise CheckpointError(f"{folder}/{WEIGHTS_INDEX} is damaged: it names no files of it")
    return files


def _unpickling(folder: Path) -> str:
    """What to do where there is no file of safetensors."""
    if not any(folder.glob("*.bin")):
        return "name a folder with weights as safetensors"
    kinds: Any = read_json(folder / CONFIG).get("architectures")
    kind = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    kind = kind if re.fullmatch(r"[A-Za-z]\w{0,80}", kind) else "AutoModel"
    return (
        "what lies there would have to be unpickled, which runs what it says. If you trust it: "
        f"python -c 'from transformers import {kind} as M; "
        f'M.from_pretrained("{folder}").save_pretrained("NEW")\', and name NEW'
    )


def read_json(file: Path) -> dict[str, Any]:
    """A document of a folder.

    Raises:
        CheckpointError: it is missing or none.
    """
    try:
        document = json.loads(Place.of(file).read(limit_bytes=CONFIG_BYTES_AT_MOST))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{file} does not exist: name a folder of transformers") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {told(error)}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} is damaged: it holds no object; copy it again")
    return document


def wanted_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a model, by name, in its order; nothing is allocated."""
    with torch.device("meta"):
        model = SemiCausal(config)
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def _shape(config: ModelConfig) -> dict[str, Any]:
    """What decides how a model computes, as the folder's configuration has it."""
    # Folders from before there was this key do not have it.
    lately = {"rope_scaling"} if config.decoder.rope_scaling is None else set[str]()
    return {
        "decoder": config.decoder.model_dump(exclude=_TRAINING_ONLY | lately),
        "encoders": {
            modality: {
                "encoder": part.encoder.model_dump(exclude=_ENCODER_TRAINING_ONLY | {"text"}),
                "connector": part.connector.model_dump(),
            }
            for modality, part in config.encoders.items()
        },
    }


def _picture_reading(model: ModelConfig) -> dict[str, Any] | None:
    """What the processor must know of pictures; None where no encoder reads them."""
    part = model.encoders.get(MEDIA[Kind.IMAGE])
    if part is None:
        return None
    keys = ("patch_pixels", "size", "max_patches", "fit", "resized", "resample", "class_token")
    queries = part.connector.item_slots
    return part.encoder.model_dump(include=set(keys)) | ({"queries": queries} if queries else {})


def _widest(values: Mapping[str, Tensor]) -> torch.dtype:
    """The type that holds all of them: parts of a checkpoint may have come in other ones."""
    return functools.reduce(torch.promote_types, {value.dtype for value in values.values()})


def _own(model: ModelConfig, state: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of a model of our class."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["SemicausalForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_semicausal.SemicausalConfig",
            "AutoModelForCausalLM": "modeling_semicausal.SemicausalForCausalLM",
        },
        "shape": _shape(model),
        "trained": dict(state),
    }


def _documents(model: ModelConfig, special: SpecialTokens) -> dict[str, dict[str, Any]]:
    """What the folder's JSON files say of its tokens, by name."""
    ids = {
        "bos_token_id": special.start,
        "eos_token_id": special.document,
        "pad_token_id": special.padding,
    }
    return {
        CONFIG: {**ids},
        "generation_config.json": {**ids},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL_TEXT["start"],
            "eos_token": SPECIAL_TEXT["document"],
            "pad_token": SPECIAL_TEXT["padding"],
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.decoder.max_tokens,
        },
    }


def _tokenizer(
    path: Place, state: Mapping[str, Any], model: ModelConfig, named: Place | None
) -> tuple[bytes, SpecialTokens] | None:
    """The tokenizer of a checkpoint, and the ids of its special tokens; None if there is none."""
    place = named or kept_tokenizer(path, state)
    if place is None:
        return None
    try:
        content = place.read(limit_bytes=TOKENIZER_BYTES_AT_MOST)
    except OSError as error:
        told_why = error.strerror or error
        raise CheckpointError(f"{place} cannot be read as a tokenizer: {told_why}") from None
    vocabulary = read_tokenizer(content, name=str(place)).get_vocab()
    if max(vocabulary.values()) >= model.decoder.vocabulary:
        raise CheckpointError(
            f"{place} has tokens up to {max(vocabulary.values())}, the model "
            f"{model.decoder.vocabulary} in all: name the tokenizer of the corpus that it was "
            "trained on"
        )
    return content, SpecialTokens.from_vocabulary(vocabulary)
