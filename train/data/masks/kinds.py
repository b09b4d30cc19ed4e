"""What masks for each objective."""

from model.encoders.audio import AudioEncoderConfig
from model.encoders.protocol import EncoderKind
from model.encoders.video import VideoEncoderConfig
from model.objectives.contrast import ContrastConfig
from model.objectives.kinds import ObjectiveConfig
from model.objectives.patches import MaskedPatchesConfig
from model.objectives.tokens import ReplacedTokensConfig
from train.data.masks.clusters import read_middles
from train.data.masks.patches import PatchMasking
from train.data.masks.protocol import Masking
from train.data.masks.sounds import ContrastMasking, UnitMasking
from train.data.masks.tokens import TokenMasking
from train.data.tokens import SpecialTokens
from train.storage.path import local_path


def masking(
    objective: ObjectiveConfig,
    encoder: EncoderKind,
    *,
    modality: str,
    seed: int,
    special: SpecialTokens,
) -> Masking:
    """What keeps a part from an encoder that trains alone.

    Args:
        objective: of the run, which suits the encoder.
        encoder: which trains.
        modality: of it.
        seed: of the run.
        special: ids of the special tokens.

    Raises:
        DataError: a file that the objective names cannot be read.
    """
    if isinstance(objective, MaskedPatchesConfig):
        is_video = isinstance(encoder, VideoEncoderConfig)
        return PatchMasking(
            modality=modality,
            seed=seed,
            share=objective.share,
            times=encoder.times if is_video else 1,
            class_rows=encoder.class_rows if is_video else 0,
        )
    if isinstance(objective, ReplacedTokensConfig):
        return TokenMasking(
            modality=modality, seed=seed, share=objective.share, padding=special.padding
        )
    if isinstance(objective, ContrastConfig):
        return ContrastMasking(
            modality=modality,
            seed=seed,
            starts=objective.starts,
            mask_rows=objective.mask_rows,
            negatives=objective.negatives,
        )
    assert isinstance(encoder, AudioEncoderConfig), "refused with the configuration"
    return UnitMasking(
        modality=modality,
        seed=seed,
        starts=objective.starts,
        mask_rows=objective.mask_rows,
        encoder=encoder,
        middles=read_middles(local_path(objective.clusters), count=objective.units),
    )
