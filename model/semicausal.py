"""The whole model: spans become vectors, vectors take slots, the decoder reads the slots."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, cast

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from model.attention import Attention
from model.backend import Backend
from model.batch import Batch, PackedSpans
from model.config import Compile, Config
from model.connector import LinearConnectorConfig, MlpConnectorConfig
from model.decoder import Decoder, DecoderConfig, Piece, whole_piece
from model.encoders.image import ImageEncoderConfig
from model.encoders.kinds import AnyEncoderConfig
from model.encoders.protocol import EncoderKind, ItemEncoderKind
from model.layers import Layers
from model.loss import Loss
from model.reading import Reading
from model.recompute import Recompute
from model.resampler import ResamplerConnectorConfig

ConnectorConfig = Annotated[
    LinearConnectorConfig | MlpConnectorConfig | ResamplerConnectorConfig,
    Field(discriminator="kind"),
]


class EncoderConfig(Config):
    """One encoder and the connector behind it."""

    encoder: AnyEncoderConfig
    connector: ConnectorConfig = Field(default_factory=LinearConnectorConfig)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        encoder, slots = cast(EncoderKind, self.encoder), self.connector.item_slots
        if slots is not None and not isinstance(encoder, ItemEncoderKind):
            raise ValueError(
                f"connector.kind: {self.connector.kind} gives {slots} vectors whatever is read, "
                f"and a span of {encoder.kind} has a slot for each of its tokens: choose linear "
                "or mlp"
            )
        if slots is not None and isinstance(encoder, ImageEncoderConfig) and encoder.text:
            raise ValueError(
                f"connector.kind: {self.connector.kind} gives {slots} vectors whatever is read, "
                "and text that is read behind a picture (encoder.text) has a slot for each of its "
                "tokens: choose linear or mlp"
            )
        heads = self.connector.tensor_sizes(encoder).get("heads", encoder.heads)
        if heads != encoder.heads and encoder.width % heads:
            raise ValueError(
                f"connector.heads: {heads} heads do not divide encoder.width {encoder.width}: "
                "choose a number that does"
            )
        return self

    @property
    def longest_span(self) -> int:
        """Decoder slots of the longest span."""
        return self.connector.item_slots or self.encoder.longest_span

    def item_slots(self, size: Sequence[int]) -> int:
        """Decoder slots of an item.

        Args:
            size: what was recorded of it when the corpus was built.

        Raises:
            ValueError: it is larger than what is read; the message is the end of a sentence.
        """
        assert isinstance(self.encoder, ItemEncoderKind), "only items have sizes"
        vectors = self.encoder.item_vectors(size)
        return self.connector.item_slots or vectors


class ModelConfig(Config):
    """A decoder, and any encoders by modality. Without encoders the model is exactly a GPT."""

    decoder: DecoderConfig
    encoders: Annotated[dict[str, EncoderConfig], Field(default_factory=dict)]
    """Keyed by modality."""
    compile: Compile = "auto"
    """`blocks` compiles the blocks of decoder and encoders for training, which fuses what lies
    between their matrix products; `auto` does so on CUDA where there is a compiler. The first step
    waits for it (a minute, less with a warm `compile_cache`). `none` computes as it stands."""
    attention: Backend = "auto"
    """What computes the decoder's attention: `auto` is what torch holds for fastest, but for calls
    that it would plan anew for each shape; `flash`, `cudnn`, `efficient` or `math`, or `flash3` or
    `flash4` of a package that is installed. `math` is also what computes the encoders'."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values; peft asks a model's `config` for them."""
        return self.model_dump(mode="json")


class SemiCausal(nn.Module):
    """MetaLM: bidirectional encoders behind the slots of one causal decoder.

    Source: MetaLM §2.1-2.3.

    Args:
        config: the whole model.
        layers: where the decoder's weights come from; dense by default.
        encoder_layers: where those of encoders and connectors come from; the same by default.
        pieces: what a pipeline stage holds, in model order; by default everything.
        recompute: activations that are computed again in the backward.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: Layers | None = None,
        *,
        encoder_layers: Layers | None = None,
        pieces: Sequence[Piece] | None = None,
        recompute: Recompute = "none",
    ):
        super().__init__()
        layers = layers or Layers()
        encoder_layers = encoder_layers or layers
        self.config = config
        self.sequence_parallel = layers.sequence_parallel
        self.pieces = tuple(pieces or [whole_piece(config.decoder)])
        self.decoder = Decoder(config.decoder, layers, pieces=self.pieces, recompute=recompute)
        self.encoders, self.connectors = nn.ModuleDict(), nn.ModuleDict()
        reads_spans = any(piece.is_first for piece in self.pieces)
        vocabulary, width = config.decoder.vocabulary, config.decoder.width
        encoders = config.encoders if reads_spans else {}
        for modality, part in encoders.items():
            self.encoders[modality] = part.encoder.build(
                vocabulary=vocabulary, layers=encoder_layers, recompute=recompute
            )
            self.connectors[modality] = part.connector.build(
                part.encoder, width, layers=encoder_layers, recompute=recompute
            )
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = config.attention

    @property
    def has_tied_ends(self) -> bool:
        """Whether the token embedding and the head are one weight, wherever they lie."""
        return self.config.decoder.tied_head

    def inputs(
        self, tokens: Tensor, spans: Mapping[str, PackedSpans] | None = None
    ) -> Float[Tensor, "B S H"]:
        """Decoder inputs: token embeddings, with span vectors written over their slots.

        There is one slot more, B*S, which receives the vectors of padding spans and is cut off. So
        every rank runs every encoder in every microbatch, with or without spans.
        """
        B, S = tokens.shape
        if not spans:
            return self.decoder.embed(tokens)
        with_bin = torch.cat([tokens.reshape(-1), tokens.new_zeros(1)])
        x = self.decoder.embed(with_bin)
        for modality, part in spans.items():
            vectors = self.connectors[modality](self.encoders[modality](part), part)
            slots = part.slots[: len(vectors)]
            x = x.index_copy(0, slots, vectors.to(x.dtype))
        return x[: B * S].view(B, S, -1)

    def forward(
        self, batch: Batch | Reading, rows: Float[Tensor, "R H"] | None = None, *, piece: int = 0
    ) -> Loss | Float[Tensor, "..."]:
        """Loss over the scored slots of one microbatch, summed; or what the next stage reads.

        Args:
            batch: the microbatch, the same on every stage; or what is to be read, of which the
                last piece gives the logits [W, V] of the wanted slots in fp32.
            rows: what the stage before has computed; None for the first piece.
            piece: which of the held pieces to run.
        """
        part, positions = self.pieces[piece], batch.positions
        if isinstance(batch, Reading):
            # Slots behind a row's end may have none; nobody sees them.
            positions = batch.positions.clamp(max=self.config.decoder.max_tokens - 1)
        if part.is_first:
            inputs = self.inputs(batch.tokens, batch.spans)
            rows = self.decoder.enter(inputs, positions=positions)
        assert rows is not None, "only the first piece starts from the batch"
        B, S = batch.tokens.shape
        turns = self.decoder.turns(S, batch.tokens.device, positions=positions)
        if isinstance(batch, Reading):
            rows = self.decoder.run(rows, part, num_sequences=B, turns=turns, reading=batch)
            if not part.is_last:
                return rows
            states = self.decoder.leave(rows)
            if len(batch.wanted) < len(states):
                wanted = torch.tensor(batch.wanted, device=states.device)
                states = states.index_select(0, wanted)
            return self.decoder.head(states)
        rows = self.decoder.run(rows, part, num_sequences=B, turns=turns, documents=batch.documents)
        if not part.is_last:
            if torch.is_grad_enabled() and not rows.requires_grad:
                # Pipelines run a backward through every piece, also where nothing trains.
                rows.requires_grad_()
            return rows
        states = self.decoder.leave(rows).index_select(0, batch.scored)
        targets = batch.labels.reshape(-1).index_select(0, batch.scored)
        return self.decoder.head(states, targets, batch.num_scored)


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, counted on the meta device: nothing is allocated."""
    with torch.device("meta"):
        model = SemiCausal(config)
    counts = {"decoder": _count(model.decoder)}
    for modality in model.encoders:
        counts[f"encoder.{modality}"] = _count(model.encoders[modality])
        counts[f"connector.{modality}"] = _count(model.connectors[modality])
    return counts


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
