"""Shapes and effort of each case, the same for all its contestants."""

from dataclasses import asdict, dataclass, replace

from model.decoder import DecoderConfig
from model.encoders.text import TextEncoderConfig
from model.semicausal import EncoderConfig, ModelConfig
from tools.bench.rounds import Effort


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
        encoder_width: E.
        encoder_heads: heads of the encoder.
    """

    width: int
    num_layers: int
    heads: int
    vocabulary: int
    sequence_tokens: int
    sequences: int
    encoder_width: int
    encoder_heads: int

    @property
    def tokens(self) -> int:
        """Decoder slots of a batch."""
        return self.sequences * self.sequence_tokens

    def settings(self, *, encoder: bool) -> dict[str, object]:
        """For the record; the encoder's keys only where there is one."""
        keys = ("encoder_width", "encoder_heads")
        return {name: v for name, v in asdict(self).items() if encoder or name not in keys}

    def decoder(self) -> DecoderConfig:
        """The decoder, without dropout."""
        return DecoderConfig(
            vocabulary=self.vocabulary,
            width=self.width,
            num_layers=self.num_layers,
            heads=self.heads,
            feed_forward=4 * self.width,
            max_tokens=self.sequence_tokens,
        )

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
        """The decoder alone: exactly a GPT."""
        return ModelConfig(decoder=self.decoder(), encoders={})

    def semi_causal(self, *, max_tokens: int) -> ModelConfig:
        """The decoder with its encoder, whose longest span has `max_tokens` rows."""
        encoder = EncoderConfig(encoder=self.encoder(max_tokens=max_tokens))
        return ModelConfig(decoder=self.decoder(), encoders={"text": encoder})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Shapes and effort of a whole bench.

    Attributes:
        peers: causal mode against other implementations.
        proportions: semi-causal against causal, and the ways to encode.
        ranks: ZeRO-3 against DDP.
        stages: a pipeline of two stages.
        light: effort for steps of about half a second.
        heavy: effort for steps of about two seconds.
        state_bytes: training state to save and restore.
        building_bytes: text to build shards from.
        loading_sequences: sequences of 2,048 tokens to read.
        loading_shards: shards of the corpus whose first batch is waited for.
        timeout_seconds: of each case.
        threads: of each case; where there are several ranks they share them.
        rate_seconds: how long each of the planner's rates is measured.
    """

    peers: Shape
    proportions: Shape
    ranks: Shape
    stages: Shape
    light: Effort
    heavy: Effort
    state_bytes: int
    building_bytes: int
    loading_sequences: int
    loading_shards: int
    timeout_seconds: float
    threads: int = 2
    rate_seconds: float = 0.35


PEERS = Shape(
    width=256,
    num_layers=4,
    heads=8,
    vocabulary=8192,
    sequence_tokens=256,
    sequences=8,
    encoder_width=192,
    encoder_heads=6,
)
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

RANKS = Shape(
    width=256,
    num_layers=4,
    heads=8,
    vocabulary=8192,
    sequence_tokens=512,
    sequences=8,
    encoder_width=192,
    encoder_heads=6,
)
"""configs/model/tiny.yaml with 4,096 tokens a rank."""

STAGES = Shape(
    width=256,
    num_layers=8,
    heads=8,
    vocabulary=16384,
    sequence_tokens=256,
    sequences=1,
    encoder_width=128,
    encoder_heads=4,
)
"""A head that weighs as much as four layers, as one of 64,000 tokens does at H = 1,024."""

FULL = Plan(
    peers=PEERS,
    proportions=PROPORTIONS,
    ranks=RANKS,
    stages=STAGES,
    light=Effort(rounds=12, steps=2, warmup_steps=3),
    heavy=Effort(rounds=12, steps=1, warmup_steps=2),
    state_bytes=1200 << 20,
    building_bytes=44 << 20,
    loading_sequences=32_768,
    loading_shards=156_000,
    timeout_seconds=300,
)

QUICK = Plan(
    peers=PEERS,
    proportions=replace(PROPORTIONS, sequences=1),
    ranks=RANKS,
    stages=STAGES,
    light=Effort(rounds=4, steps=1, warmup_steps=1),
    heavy=Effort(rounds=3, steps=1, warmup_steps=1),
    state_bytes=1200 << 20,
    building_bytes=22 << 20,
    loading_sequences=16_384,
    loading_shards=156_000,
    timeout_seconds=120,
)

_TINY = Shape(
    width=32,
    num_layers=1,
    heads=2,
    vocabulary=256,
    sequence_tokens=32,
    sequences=2,
    encoder_width=16,
    encoder_heads=2,
)

TINY = Plan(
    peers=_TINY,
    proportions=_TINY,
    ranks=_TINY,
    stages=replace(_TINY, num_layers=4),
    light=Effort(rounds=2, steps=1, warmup_steps=1),
    heavy=Effort(rounds=2, steps=1, warmup_steps=1),
    state_bytes=12 << 20,
    building_bytes=1 << 19,
    loading_sequences=1_280,
    loading_shards=200,
    timeout_seconds=60,
    threads=1,
    rate_seconds=0.01,
)
"""Tries the plumbing; its numbers mean nothing."""
