"""The classes that are known, and how a checkpoint of one is taken apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError
from torch import Tensor

from model.decoder import DecoderConfig
from model.encoders.audio import AudioEncoderConfig
from model.encoders.image import ImageEncoderConfig
from model.encoders.protocol import EncoderKind
from model.encoders.text import TextEncoderConfig
from model.encoders.video import VideoEncoderConfig
from tools.hub.families.bert import BERT, ELECTRA, ROBERTA
from tools.hub.families.gpt2 import GPT2
from tools.hub.families.hearing import HUBERT, WAV2VEC2, WHISPER
from tools.hub.families.llama import LLAMA
from tools.hub.families.table import Described, Family, Part
from tools.hub.families.vision import BEIT, CLIP, SIGLIP, VIT
from tools.hub.families.watching import TIMESFORMER, VIDEOMAE
from train.errors import CheckpointError
from train.storage.record import fault_of

FAMILIES: Final = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "mistral": LLAMA,
    "gpt2": GPT2,
    "bert": BERT,
    "roberta": ROBERTA,
    "electra": ELECTRA,
    "vit": VIT,
    "beit": BEIT,
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "wav2vec2": WAV2VEC2,
    "hubert": HUBERT,
    "whisper": WHISPER,
    "videomae": VIDEOMAE,
    "timesformer": TIMESFORMER,
}
"""By `model_type` of config.json."""
ENCODERS: Final[Mapping[Part, type[EncoderKind]]] = {
    "text": TextEncoderConfig,
    "image": ImageEncoderConfig,
    "audio": AudioEncoderConfig,
    "video": VideoEncoderConfig,
}
"""What reads each part that is no decoder."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a checkpoint of another class has become.

    Attributes:
        part: of our model.
        shape: its configuration.
        values: its tensors, by our names.
        left_out: tensors that have no place here, such as the pooler of an encoder.
        notes: what else there is to say.
    """

    part: Part
    shape: dict[str, Any]
    values: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


def take(described: Described, tensors: Mapping[str, Tensor], *, place: str) -> Taken:
    """A checkpoint of a known class as a part of our model.

    Args:
        described: its config.json.
        tensors: by their names.
        place: what to call it in messages.

    Raises:
        CheckpointError: its class is unknown, does what we do not compute, or tensors are missing
            or left over; every fault is named.
    """
    kind = described.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        raise CheckpointError(
            f"{place} is of the kind {str(kind)[:40]!r}: what can be read are folders of "
            f"python -m tools.export, and {', '.join(FAMILIES)}"
        )
    faults: list[str] = []
    try:
        shape = family.shape(described, faults)
        faults += _checked(family.part, shape)
    except KeyError as missing:
        raise CheckpointError(f"{place}/config.json lacks {missing}: copy it again") from None
    except (TypeError, ValueError, AttributeError) as error:
        # A number that is none; pydantic's own error says which.
        why = fault_of(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"{place}/config.json is damaged: {why}; copy it again") from None
    if faults:
        raise CheckpointError(f"{place} cannot be computed here: {'; '.join(faults)}")
    theirs = {_known_as(name, family): value for name, value in tensors.items()}
    if len(theirs) < len(tensors):
        faults.append(f"some of its tensors are there with {family.prefix} before them and without")
    entries = [
        entry.of_layer(layer)
        for entry in family.table(described, shape)
        for layer in (range(shape["num_layers"]) if "{}" in entry.ours else (0,))
    ]
    used = {name for entry in entries for name in entry.theirs}
    missing = sorted(used - theirs.keys())
    rest = sorted(theirs.keys() - used)
    if shape.get("tied_head") and "lm_head.weight" in rest:
        embedding = theirs.get(entries[0].theirs[0])
        if embedding is not None and theirs["lm_head.weight"].equal(embedding):
            rest.remove("lm_head.weight")
    left_out = [name for name in rest if family.idle.match(name)]
    left_over = [name for name in rest if name not in left_out]
    for what, names in (("it lacks", missing), ("it has left over", left_over)):
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            faults.append(f"{what} {', '.join(names[:6])}{more}")
    if faults:
        raise CheckpointError(
            f"{place} does not fit its config.json: {'; '.join(faults)}; no weight is dropped or "
            "drawn at random: name a whole checkpoint of this class"
        )
    values: dict[str, Tensor] = {}
    for entry in entries:
        try:
            made = entry.made(*(theirs[name] for name in entry.theirs))
        except (RuntimeError, IndexError, ZeroDivisionError):
            raise CheckpointError(
                f"{place}: {', '.join(entry.theirs)} do not have the sizes that its config.json "
                "says: copy both again"
            ) from None
        values[entry.ours] = made.contiguous()
    return Taken(part=family.part, shape=shape, values=values, left_out=left_out)


def _known_as(name: str, family: Family) -> str:
    name = name.removeprefix(family.prefix)
    for end, ours in family.renamed.items():
        if name.endswith(end):
            return name.removesuffix(end) + ours
    return name


def _checked(part: Part, shape: Mapping[str, Any]) -> list[str]:
    """What is wrong with the shape, beyond what its fields refuse."""
    if part in ENCODERS:
        encoder = ENCODERS[part].model_validate(shape)
        is_whole = encoder.width % encoder.heads == 0
        return [] if is_whole else [f"{encoder.heads} heads do not divide width {encoder.width}"]
    return list(DecoderConfig.model_validate(shape).faults("model.decoder"))
