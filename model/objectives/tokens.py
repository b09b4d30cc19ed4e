"""Replaced tokens: a small generator fills masks in, and the encoder finds what it has replaced.

Source: ELECTRA (2003.10555) §3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from model.batch import PackedSpans
from model.config import Depth, Heads, HiddenWidth, Width
from model.encoders.protocol import EncoderKind
from model.encoders.text import TextEncoderConfig, TextSpans
from model.layers import Layers, normal
from model.loss import LinearCrossEntropy, Loss
from model.objectives.protocol import ObjectiveKind
from model.recompute import Recompute


class ReplacedTokensConfig(ObjectiveKind):
    """Which tokens are masked, and the generator that fills them in.

    The generator is another encoder of the same kind. It shares the embeddings of tokens and
    positions with the one that is trained, and a later run leaves it behind.
    """

    kind: Literal["replaced_tokens"]
    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Of a span's tokens that are masked, one at least."""
    weight: Annotated[float, Field(gt=0, le=1e4)] = 50.0
    """Of finding what was replaced, a mean over all tokens, beside filling in, a mean over the
    masked ones."""
    width: Width = 64
    """Channels of the generator; a quarter to a half of the encoder's is best, in the paper."""
    num_layers: Depth = 2
    heads: Heads = 2
    feed_forward: HiddenWidth = 256
    reads: ClassVar[tuple[type[EncoderKind], ...]] = (TextEncoderConfig,)

    def build(
        self,
        encoder: Any,
        config: TextEncoderConfig,
        *,
        vocabulary: int,
        layers: Layers,
        recompute: Recompute,
    ) -> "Replacing":
        """The generator, and what judges the encoder's vectors."""
        embedded = config.embedding_width or config.width
        shape = {
            "width": self.width,
            "num_layers": self.num_layers,
            "heads": self.heads,
            "feed_forward": self.feed_forward,
            "embedding_width": embedded,
            "init_from": None,
            "trainable_layers": None,
        }
        generator = config.model_copy(update=shape).build(
            vocabulary=vocabulary, layers=layers, recompute=recompute
        )
        generator.embedding, generator.positions = encoder.embedding, encoder.positions
        return Replacing(self, generator, config.width, embedded, layers)

    def faults(self, path: str, encoder: EncoderKind) -> Iterator[str]:
        """Another kind of encoder; sizes that do not fit."""
        yield from super().faults(path, encoder)
        if self.width % self.heads:
            yield f"{path}.heads: {self.heads} heads do not divide width {self.width}"


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedTokens(PackedSpans):
    """Spans of text of which some tokens are masked.

    Attributes:
        whole: as they are.
        shown: [R] their tokens, with `<pad>` where they are masked.
        masked: [K] vectors of the masked tokens, in rising order.
        scored: [C] vectors of all tokens that are scored, in rising order.
        terms: [K] which of these the masked ones are.
    """

    whole: TextSpans
    shown: Int64[Tensor, "R"]
    masked: Int64[Tensor, "K"]
    scored: Int64[Tensor, "C"]
    terms: Int64[Tensor, "K"]


class Replacing(nn.Module):
    """The generator with its head, and the head that finds what it has replaced."""

    def __init__(
        self,
        objective: ReplacedTokensConfig,
        generator: Any,
        width: int,
        embedded: int,
        layers: Layers,
    ):
        super().__init__()
        self.config = objective
        self.generator = generator
        self.narrowing: Any = layers.linear(objective.width, embedded, init=normal(0.02))
        self.narrow_norm: Any = layers.norm(embedded)
        self.head = LinearCrossEntropy(generator.embedding.weight)
        self.hidden: Any = layers.linear(width, width, init=normal(0.02))
        self.judgement: Any = layers.linear(width, 1, init=normal(0.02))

    def forward(self, encoder: Any, spans: MaskedTokens) -> Loss:
        """Nats of filling in and of finding what was replaced, weighted; a term for each token."""
        logits, filled_in = self.fill_in(spans)
        replaced = self.replaced(spans, drawn(logits.detach()))
        found = self.find(encoder, spans, replaced)
        # A mean over masked tokens, all of which are a fixed share, as a sum over all tokens.
        terms = (self.config.weight * found).index_add(
            0, spans.terms, filled_in / self.config.share
        )
        return Loss(terms.sum(), terms.detach())

    def fill_in(self, spans: MaskedTokens) -> tuple[Float[Tensor, "K V"], Float[Tensor, "K"]]:
        """The generator's logits for the masked tokens, and nats of what was there."""
        states = self.generator(replace(spans.whole, tokens=spans.shown))
        states = states.index_select(0, spans.masked)
        logits = self.head(self.narrow_norm(F.gelu(self.narrowing(states))))
        wanted = spans.whole.tokens.index_select(0, self._rows(spans))
        return logits, F.cross_entropy(logits, wanted, reduction="none")

    def replaced(self, spans: MaskedTokens, words: Int64[Tensor, "K"]) -> Int64[Tensor, "R"]:
        """All tokens, the masked ones filled in."""
        return spans.whole.tokens.index_copy(0, self._rows(spans), words)

    def find(
        self, encoder: Any, spans: MaskedTokens, replaced: Int64[Tensor, "R"]
    ) -> Float[Tensor, "C"]:
        """Nats of telling each scored token that is another one than it was."""
        whole = spans.whole
        vectors = encoder(replace(whole, tokens=replaced)).index_select(0, spans.scored)
        logits = self.judgement(F.gelu(self.hidden(vectors)))[:, 0].float()
        rows = whole.vectors.index_select(0, spans.scored)
        is_other = replaced.index_select(0, rows) != whole.tokens.index_select(0, rows)
        return F.binary_cross_entropy_with_logits(logits, is_other.float(), reduction="none")

    def _rows(self, spans: MaskedTokens) -> Int64[Tensor, "K"]:
        return spans.whole.vectors.index_select(0, spans.masked)


def drawn(logits: Float[Tensor, "K V"]) -> Int64[Tensor, "K"]:
    """Tokens drawn by their probabilities, with noise of torch's generator (Gumbel's trick)."""
    noise = torch.empty_like(logits).exponential_().log()
    return (logits - noise).argmax(dim=-1)
