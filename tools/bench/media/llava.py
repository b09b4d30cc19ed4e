"""Training steps beside transformers' LLaVA: sequences of equal length, and rows that vary."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model import torchvision_free
from model.batch import UNSCORED
from model.encoders.image import ImageEncoderConfig
from tools.bench import peers
from tools.bench.media.pictures import batch_of, packed, sequence
from tools.bench.rounds import Contestant, Findings
from tools.bench.shapes import PictureShape, Plan
from tools.bench.training import build, num_parameters, our_loss, plain, plain_update
from tools.random_batches import SEED
from train.data.sample import Sample
from train.data.spans.picture import read_picture

torchvision_free.install()  # transformers would look for it

IMAGE_TOKEN: Final = 4
"""In place of which LLaVA puts a vector; no word is drawn as low."""
BATCHES: Final = 2
WITHOUT: Final = 0.5
"""Share of rows without a picture, of those that vary; others have up to two, as fits."""
TEXT_SPREAD: Final = 0.8
"""Of the logarithm of how many words these have."""


class Given(NamedTuple):
    """A batch as transformers' class takes it."""

    input_ids: Tensor
    attention_mask: Tensor | None
    labels: Tensor
    pixel_values: Tensor


def against_llava(plan: Plan) -> Findings:
    """Ours over LLaVA: tokens a second; a ratio above 1 means that ours is faster.

    Both have one encoder, of CLIP's kind, a connector of two layers, random weights and as many
    parameters in all; all of them train, in fp32. First each sequence is one picture and words, as
    long as any other. Then rows have no picture or some, and many words or few: LLaVA pads them to
    the longest, we pack them, each apart from the others.
    """
    shape = plan.pictures
    encoder = shape.image_encoder(as_clip=True)
    config = shape.seeing(encoder)
    parameters = num_parameters(build(config))
    even = [even_rows(shape, encoder, seed=n) for n in range(BATCHES)]
    varied = [varied_rows(shape, encoder, seed=n) for n in range(BATCHES)]
    found = Findings(
        settings=shape.settings
        | {
            "patches": shape.patches,
            "rows": len(varied[0]),
            "tokens": [sum(len(row.tokens) for row in rows) for rows in varied],
            "slots_packed": [
                len(packed(rows, slots=shape.sequence_tokens)) * shape.sequence_tokens
                for rows in varied
            ],
            "slots_padded": [len(rows) * max(len(r.tokens) for r in rows) for rows in varied],
        }
    )
    S = shape.sequence_tokens
    for key, rows, ours in (
        ("step", even, [batch_of(each, encoder, slots=S) for each in even]),
        (
            "packed",
            varied,
            [batch_of(packed(each, slots=S), encoder, slots=S, attend="within") for each in varied],
        ),
    ):
        mine = plain(f"ours {key}", build(config), our_loss, ours)
        llava = matched(shape, parameters=parameters)
        given = [as_given(each, encoder) for each in rows]
        theirs = _contestant(f"llava {key}", llava, given, tokens=mine.tokens)
        names = (theirs.name, mine.name)
        found.compare([theirs, mine], plan.heavy, {f"{key}_vs_llava": names})
    return found


def matched(shape: PictureShape, *, parameters: int) -> nn.Module:
    """LLaVA of about so many parameters."""
    peer = peers.Peer(build=_built, loss=_loss, hidden=8 / 3)
    return peers.matched(peer, shape, parameters=parameters)


def even_rows(shape: PictureShape, encoder: ImageEncoderConfig, *, seed: int) -> list[Sample]:
    """A picture and words in each, all as long as a sequence."""
    random = np.random.default_rng((SEED, seed))
    sides = [(shape.side_pixels, shape.side_pixels)]
    words = shape.sequence_tokens - encoder.longest_span - 1
    return [
        sequence(random, encoder, sizes=sides, text_tokens=words, vocabulary=shape.vocabulary)
        for _ in range(shape.sequences)
    ]


def varied_rows(shape: PictureShape, encoder: ImageEncoderConfig, *, seed: int) -> list[Sample]:
    """Rows of which many have few words and no picture, and one is as long as can be."""
    random = np.random.default_rng((SEED, 1, seed))
    S, side = shape.sequence_tokens, shape.side_pixels
    most = (S // 2) // encoder.longest_span
    rows: list[Sample] = []
    for number in range(4 * shape.sequences):
        count = 0 if random.random() < WITHOUT else int(random.integers(1, max(2, most + 1)))
        count = most if number == 0 else min(count, most)
        room = S - 1 - count * encoder.longest_span
        words = int(random.lognormal(np.log(S / 8), TEXT_SPREAD)) if number else room
        rows.append(
            sequence(
                random,
                encoder,
                sizes=[(side, side)] * count,
                text_tokens=min(max(2, words), room),
                vocabulary=shape.vocabulary,
            )
        )
    return rows


def as_given(rows: Sequence[Sample], encoder: ImageEncoderConfig) -> Given:
    """The same rows for LLaVA, padded to the longest."""
    longest = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, UNSCORED)
    pictures: list[Tensor] = []
    for number, row in enumerate(rows):
        length = len(row.tokens)
        tokens = torch.from_numpy(row.tokens.copy())
        assert row.scored is not None
        labels[number, :length] = tokens.where(torch.from_numpy(row.scored), UNSCORED)
        for item in row.items:
            tokens[item.start : item.stop] = IMAGE_TOKEN
            pictures.append(_pixels(item.data, encoder))
        ids[number, :length] = tokens
        mask[number, :length] = 1
    return Given(
        input_ids=ids,
        attention_mask=None if bool(mask.all()) else mask,
        labels=labels,
        pixel_values=torch.stack(pictures),
    )


def _pixels(data: bytes, encoder: ImageEncoderConfig) -> Tensor:
    """[3, H, W] of a picture, as the encoder sees it."""
    picture = read_picture(data, encoder)
    (rows, columns), P = picture.grid, encoder.patch_pixels
    patches = encoder.normalized(torch.from_numpy(picture.patches))
    parts = patches.view(rows, columns, 3, P, P)
    return parts.permute(2, 0, 3, 1, 4).reshape(3, rows * P, columns * P)


def _built(shape: Any, hidden: int) -> nn.Module:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    text = peers.llama_config(shape, hidden)
    vision = CLIPVisionConfig(
        hidden_size=shape.encoder_width,
        intermediate_size=4 * shape.encoder_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.encoder_heads,
        image_size=shape.side_pixels,
        patch_size=shape.patch_pixels,
        projection_dim=shape.encoder_width,
        hidden_act="gelu",
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlavaForConditionalGeneration(config)


def _loss(model: Any, given: Any) -> Tensor:
    return model(**given._asdict()).loss


def _contestant(name: str, model: nn.Module, given: Sequence[Given], *, tokens: int) -> Contestant:
    update = plain_update(model)
    upcoming = cycle(given)

    def step() -> None:
        _loss(model, next(upcoming)).backward()
        update()

    return Contestant(
        name=name,
        step=step,
        tokens=tokens,
        parameters=num_parameters(model),
        precision="fp32",
    )
