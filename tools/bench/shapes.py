"""Shapes and effort of each case, the same for all its contestants."""

from dataclasses import asdict, dataclass, replace

from model.batch import Batch
from model.connector import MlpConnectorConfig
from model.decoder import DecoderConfig
from model.encoders.image import ImageEncoderConfig
from model.encoders.text import TextEncoderConfig
from model.semicausal import EncoderConfig, ModelConfig
from tools.bench.rounds import Effort
from tools.random_batches import random_batches
from train.data.spans.at_random import RandomSpansConfig

RATIO = 0.25
"""Share of the slots in spans, where there are any; the paper's."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its batch.

    Attributes:
        width: H of the decoder.
        num_layers: blocks of the decoder, and of the encoder.
        heads: heads of the decoder.
        vocabulary: V.
        sequence_tokens: S.
        sequences: B, on each rank.
        encoder_width: E; 0 where there is no encoder.
        encoder_heads: heads of the encoder.
    """

    width: int
    num_layers: int
    heads: int
    vocabulary: int
    sequence_tokens: int
    sequences: int
    encoder_width: int = 0
    encoder_heads: int = 0

    @property
    def tokens(self) -> int:
        """Decoder slots of a batch."""
        return self.sequences * self.sequence_tokens

    @property
    def settings(self) -> dict[str, object]:
        """For the record; the encoder's keys only where there is one."""
        return {name: value for name, value in asdict(self).items() if value}

    @property
    def longest_rows(self) -> int:
        """Rows of the longest random span, its start token included."""
        return RandomSpansConfig().lengths(self.sequence_tokens)[1] + 1

    def encoder(self, *, max_tokens: int) -> TextEncoderConfig:
        """The text encoder, without dropout."""
        return TextEncoderConfig(
            width=self.encoder_width,
            num_layers=self.num_layers,
            heads=self.encoder_heads,
            feed_forward=4 * self.encoder_width,
            max_tokens=max_tokens,
            dropout=0.0,
        )

    def causal(self) -> ModelConfig:
        """The decoder alone, without dropout: exactly a GPT."""
        decoder = DecoderConfig(
            vocabulary=self.vocabulary,
            width=self.width,
            num_layers=self.num_layers,
            heads=self.heads,
            feed_forward=4 * self.width,
            max_tokens=self.sequence_tokens,
        )
        return ModelConfig(decoder=decoder, encoders={})

    def semi_causal(self, *, max_tokens: int | None = None) -> ModelConfig:
        """The decoder with its encoder, which reads `max_tokens`: else, the longest span."""
        encoder = self.encoder(max_tokens=max_tokens or self.longest_rows)
        encoders = {"text": EncoderConfig(encoder=encoder)}
        return ModelConfig(decoder=self.causal().decoder, encoders=encoders)

    def batches(self, *, ratio: float, count: int) -> list[Batch]:
        """Fixed batches of the same tokens whatever the ratio of slots in random spans."""
        return random_batches(
            vocabulary=self.vocabulary,
            sequence_tokens=self.sequence_tokens,
            sequences=self.sequences,
            ratio=ratio,
            count=count,
        )


@dataclass(frozen=True, kw_only=True)
class PictureShape(Shape):
    """The same with an encoder of pictures.

    Attributes:
        patch_pixels: side of a patch.
        side_patches: side of the largest picture.
        pictures: of one kind of bench, how many there are at a time.
    """

    patch_pixels: int
    side_patches: int
    pictures: int

    @property
    def side_pixels(self) -> int:
        """Side of the largest picture."""
        return self.patch_pixels * self.side_patches

    @property
    def patches(self) -> int:
        """Of the largest picture."""
        return self.side_patches**2

    def image_encoder(self, *, as_clip: bool = False) -> ImageEncoderConfig:
        """Each picture at its own aspect, or all of one size, as CLIP reads them."""
        side = self.side_pixels
        shape = {
            "kind": "image",
            "width": self.encoder_width,
            "num_layers": self.num_layers,
            "heads": self.encoder_heads,
            "feed_forward": 4 * self.encoder_width,
            "patch_pixels": self.patch_pixels,
        }
        if not as_clip:
            return ImageEncoderConfig.model_validate(shape | {"max_patches": self.patches})
        clip = {"class_token": "dropped", "embedding_norm": True, "final_norm": False}
        return ImageEncoderConfig.model_validate(shape | clip | {"size": [side, side]})

    def seeing(self, encoder: ImageEncoderConfig) -> ModelConfig:
        """The decoder with this encoder, behind a connector of two layers as in LLaVA."""
        part = EncoderConfig(
            encoder=encoder, connector=MlpConnectorConfig(kind="mlp", num_layers=2)
        )
        return ModelConfig(decoder=self.causal().decoder, encoders={"image": part})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Shapes and effort of a whole bench.

    Attributes:
        name: what the report calls it.
        peers: causal mode against other implementations.
        proportions: semi-causal against causal, and the ways to encode.
        ranks: ZeRO-3 against DDP.
        stages: a pipeline of two stages.
        pictures: encoding pictures, and training beside LLaVA.
        dealt: pictures that are dealt to two data ranks.
        dealt_stages: to two stages.
        light: effort for steps of about half a second.
        heavy: effort for steps of about two seconds.
        state_bytes: training state to save and restore.
        building_bytes: text to build shards from.
        loading_sequences: sequences of 2,048 tokens to read.
        loading_shards: shards of the corpus whose first batch is waited for.
        reading_pictures: pictures of a corpus that is trained on.
        reading_files: pictures that are read one after the other.
        timeout_seconds: of each case.
        threads: of each case; where there are several ranks they share them.
        rate_seconds: how long each of the planner's rates is measured.
    """

    name: str
    peers: Shape
    proportions: Shape
    ranks: Shape
    stages: Shape
    pictures: PictureShape
    dealt: PictureShape
    dealt_stages: PictureShape
    light: Effort
    heavy: Effort
    state_bytes: int
    building_bytes: int
    loading_sequences: int
    loading_shards: int
    reading_pictures: int
    reading_files: int
    timeout_seconds: float
    threads: int = 2
    rate_seconds: float = 0.35


PEERS = Shape(width=256, num_layers=4, heads=8, vocabulary=8192, sequence_tokens=256, sequences=8)
"""The decoder that `make pretrain` trains (configs/model/tiny.yaml)."""

PROPORTIONS = Shape(
    width=512,
    num_layers=6,
    heads=8,
    vocabulary=4096,
    sequence_tokens=1024,
    sequences=2,
    encoder_width=256,
    encoder_heads=4,
)
"""configs/model/metalm_1p3b.yaml at a quarter of its widths and depths: heads of 64, an encoder as
deep and half as wide, a head of 0.11 of the blocks' parameters; spans of full length (64-128)."""

PICTURES = PictureShape(
    width=256,
    num_layers=4,
    heads=8,
    vocabulary=8192,
    sequence_tokens=256,
    sequences=8,
    encoder_width=128,
    encoder_heads=4,
    patch_pixels=8,
    side_patches=8,
    pictures=64,
)
"""The decoder of `make pretrain` with an encoder half as wide; pictures of up to 64 pixels."""

DEALT = replace(
    PICTURES,
    width=128,
    heads=4,
    vocabulary=1024,
    sequence_tokens=160,
    sequences=1,
    encoder_width=448,
    encoder_heads=7,
    side_patches=12,
    pictures=16,
)
"""Where a quarter of the sequences have pictures, their encoder computes twice what the decoder
does; a step has as many sequences as `pictures` says, of which `sequences` are a microbatch."""

DEALT_STAGES = replace(DEALT, sequences=4, encoder_width=320, encoder_heads=5, pictures=128)
"""The same where the encoder computes about as much as the decoder."""

FULL = Plan(
    name="full",
    peers=PEERS,
    proportions=PROPORTIONS,
    # configs/model/tiny.yaml with 4,096 tokens a rank.
    ranks=replace(PEERS, sequence_tokens=512, encoder_width=192, encoder_heads=6),
    # A head that weighs as much as four layers, as one of 64,000 tokens does at H = 1,024.
    stages=replace(
        PEERS, num_layers=8, vocabulary=16384, sequences=1, encoder_width=128, encoder_heads=4
    ),
    pictures=PICTURES,
    dealt=DEALT,
    dealt_stages=DEALT_STAGES,
    light=Effort(rounds=12, steps=2, warmup_steps=3),
    heavy=Effort(rounds=12, warmup_steps=2),
    state_bytes=1200 << 20,
    building_bytes=44 << 20,
    loading_sequences=32_768,
    loading_shards=156_000,
    reading_pictures=2_000,
    reading_files=64,
    timeout_seconds=900,
)

QUICK = replace(
    FULL,
    name="quick",
    proportions=replace(PROPORTIONS, sequences=1),
    dealt_stages=replace(DEALT_STAGES, pictures=64),
    light=Effort(rounds=4),
    heavy=Effort(rounds=3),
    building_bytes=22 << 20,
    loading_sequences=16_384,
    timeout_seconds=300,
)

_TINY = Shape(
    width=32,
    num_layers=1,
    heads=2,
    vocabulary=320,
    sequence_tokens=32,
    sequences=2,
    encoder_width=16,
    encoder_heads=2,
)

_TINY_PICTURES = PictureShape(
    **{**asdict(_TINY), "num_layers": 2},
    patch_pixels=4,
    side_patches=3,
    pictures=16,
)

TINY = Plan(
    name="tiny",
    peers=_TINY,
    proportions=_TINY,
    ranks=_TINY,
    stages=replace(_TINY, num_layers=4),
    pictures=_TINY_PICTURES,
    dealt=_TINY_PICTURES,
    dealt_stages=_TINY_PICTURES,
    light=Effort(rounds=2),
    heavy=Effort(rounds=2),
    state_bytes=12 << 20,
    building_bytes=1 << 19,
    loading_sequences=1_280,
    loading_shards=200,
    reading_pictures=60,
    reading_files=4,
    timeout_seconds=60,
    threads=1,
    rate_seconds=0.01,
)
"""Tries the plumbing; its numbers mean nothing."""
