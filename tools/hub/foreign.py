"""Checkpoints of other classes of transformers, as checkpoints that supply a part of a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tools.hub.families.known import ENCODERS, Taken, take
from tools.hub.families.pictures import PROCESSOR
from tools.hub.folder import CONFIG, read_json, read_tensors, wanted_shapes
from tools.hub.names import require_all
from tools.hub.vocabulary import read_ids, with_special_tokens
from train.checkpoint.weights import write_values
from train.config import RunConfig
from train.data.tokens import TOKENIZER_BYTES_AT_MOST
from train.errors import CheckpointError
from train.run_directory import TOKENIZER
from train.storage.place import Place
from train.storage.record import fault_of

PART = "model.yaml"
"""What a run merges to build the part that the checkpoint supplies."""


def read_foreign(
    folder: Path, out: Place | Path, *, start_token: int | None = None
) -> tuple[Place, Taken]:
    """Write a folder of a known class as a checkpoint that supplies a decoder or an encoder.

    A `model.yaml` in it asks for that part; a tokenizer in the folder becomes one for corpora.

    Args:
        folder: as transformers' `save_pretrained` writes it.
        out: directory to create.
        start_token: token that opens each span of a text encoder; by default `[CLS]` or `<s>` of
            the folder's tokenizer.

    Raises:
        CheckpointError: its class is unknown or does what we do not compute, tensors are missing or
            left over, or `out` exists.
    """
    described = read_json(folder / CONFIG)
    if (folder / PROCESSOR).is_file():
        described = {**described, PROCESSOR: read_json(folder / PROCESSOR)}
    taken = take(described, read_tensors(folder), place=str(folder))
    out = Place.of(out)
    if taken.part == "text":
        taken.shape["start_token"] = (
            _start_token(folder, described) if start_token is None else start_token
        )
    try:
        config = _config(taken, described, out=out)
    except ValidationError as error:
        raise CheckpointError(f"{folder} cannot be computed here: {fault_of(error)}") from None
    prefix = "decoder." if taken.part == "decoder" else f"encoders.{taken.part}."
    wanted = {
        name: shape
        for name, shape in wanted_shapes(config.model).items()
        if name.startswith(prefix)
    }
    require_all(taken.values, wanted, place=str(folder))
    values = {name: taken.values[name] for name in wanted}
    content = _tokenizer(folder, taken)
    place = write_values(out, values, {"step": 0, "config": config.model_dump(mode="json")})
    if content is not None:
        (place / TOKENIZER).write(content)
    shape = taken.shape | {"init_from": str(out)}
    part: dict[str, Any] = {"decoder": shape}
    if taken.part == "text":
        # It reads the decoder's own tokens.
        vocabulary = {"vocabulary": described["vocab_size"]}
        part = {"decoder": vocabulary, "encoders": {"text": {"encoder": shape}}}
    elif taken.part != "decoder":
        part = {"encoders": {taken.part: {"encoder": shape}}}
    (place / PART).write(yaml.safe_dump({"model": part}, sort_keys=False).encode())
    return place, taken


def _config(taken: Taken, described: Mapping[str, Any], *, out: Place) -> RunConfig:
    """A run's configuration around the part; of the rest nothing is meant.

    Raises:
        ValidationError: the part does not fit itself.
    """
    decoder: dict[str, Any] = taken.shape
    encoders: dict[str, Any] = {}
    spans: dict[str, Any] = {"kind": "stored"}
    if taken.part != "decoder":
        encoders = {taken.part: {"encoder": taken.shape}}
        decoder = {
            "vocabulary": described.get("vocab_size"),
            "width": taken.shape["width"],
            "num_layers": 1,
            "heads": taken.shape["heads"],
            "feed_forward": taken.shape["feed_forward"],
            "max_tokens": taken.shape.get("max_tokens"),
        }
    room = 16
    if taken.part in ENCODERS and taken.part != "text":
        spans = {"kind": taken.part}
        room = ENCODERS[taken.part].model_validate(taken.shape).longest_span
        decoder |= {"vocabulary": 8, "max_tokens": room + 1}
    return RunConfig.model_validate(
        {
            "name": "imported",
            "run_directory": str(out),
            "steps": 1,
            "precision": "fp32",
            "model": {"decoder": decoder, "encoders": encoders},
            "spans": dict.fromkeys(encoders, spans),
            "data": {
                "corpus": "none",
                "sequence_tokens": max(room + 1, min(decoder["max_tokens"], 2048)),
                "span_capacity": {name: {"tokens": room, "spans": 1} for name in encoders},
            },
            "batch": {"sequences": 1, "micro_sequences": 1},
            "optim": {"lr": 1e-4, "warmup_steps": 0},
        }
    )


def _tokenizer(folder: Path, taken: Taken) -> bytes | None:
    """The folder's tokenizer as corpora need it, None if it has none; notes what it lacks."""
    if (read := _own_tokenizer(folder)) is None:
        return None
    content, lacking = with_special_tokens(read, name=str(folder / TOKENIZER))
    taken.notes.append(
        f"its {TOKENIZER} has no unused entry for {', '.join(lacking)}: a corpus needs a tokenizer "
        "with these, and a model with rows for them"
        if lacking
        else f"its {TOKENIZER} is for python -m tools.corpus build --tokenizer"
    )
    return content


def _own_tokenizer(folder: Path) -> bytes | None:
    """The folder's tokenizer as it lies there, None if it has none."""
    file = folder / TOKENIZER
    return Place.of(file).read(limit_bytes=TOKENIZER_BYTES_AT_MOST) if file.is_file() else None


def _start_token(folder: Path, described: Mapping[str, Any]) -> int:
    """What opens a text where the encoder was trained."""
    vocabulary: dict[str, int] = {}
    if (content := _own_tokenizer(folder)) is not None:
        vocabulary = read_ids(content, name=str(folder / TOKENIZER))[1]
    for token in (vocabulary.get("[CLS]"), vocabulary.get("<s>"), described.get("bos_token_id")):
        if isinstance(token, int):
            return token
    raise CheckpointError(
        f"{folder} has no {TOKENIZER} that names [CLS] or <s>: say with --start-token which token "
        "opens a text"
    )
