"""Decoders of other kinds than ours, described as work, so that runs of others can be foretold."""

from dataclasses import dataclass
from typing import Any

from model.semicausal import ModelConfig
from parallel.mesh import LayoutConfig
from parallel.zero.config import ZeroConfig
from tools.plan.task import Candidate, Products, Task
from tools.plan.weights import Share, Weight


@dataclass(frozen=True, kw_only=True, eq=False)
class Described(Task):
    """A decoder of another kind.

    Attributes:
        moves: elements of width that a block moves a row.
        gated: whether its feed-forward layers have a gate; then norms have no bias, nor products.
        key_value_share: width of the keys, over that of the queries.
        recomputed: share of a forward that is computed again.
    """

    moves: float
    gated: bool = False
    key_value_share: float = 1.0
    recomputed: float = 0.0

    @property
    def decoder_elements(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All parameters."""
        if not self.gated:
            return super().decoder_elements
        decoder = self.model.decoder
        layer = sum(a * b for a, b in self.layer_products(tensor=1)) + 2 * decoder.width
        tables = (2 - decoder.tied_head) * decoder.vocabulary * decoder.width
        return int(decoder.num_layers * layer + tables + decoder.width)

    def layer_products(self, *, tensor: int) -> Products:
        """Queries, keys and values; output; gate, if there is one, and up; down."""
        width, hidden = self.model.decoder.width, self.model.decoder.feed_forward / tensor
        split = width / tensor
        queries_keys_values = split * (1 + 2 * self.key_value_share)
        up = hidden * (1 + self.gated)
        return (width, queries_keys_values), (split, width), (width, up), (hidden, width)

    def layer_moves(self, layout: LayoutConfig) -> float:
        """What was counted."""
        return self.element_bytes * self.moves * self.model.decoder.width / layout.tensor

    def again(self, layout: LayoutConfig) -> float:
        """What the run says."""
        return self.recomputed

    def share(self, candidate: Candidate, pipeline_rank: int) -> Share:
        """All of it, over the ranks of a tensor group."""
        tensor, decoder = candidate.layout.tensor, self.model.decoder
        return Share(
            weights=[Weight(self.decoder_elements // tensor, (True, False, 1.0))],
            pieces=((0, decoder.num_layers),),
            is_first=True,
            is_last=True,
            vocabulary_rows=decoder.vocabulary // tensor,
        )


def decoder_of(
    width: int,
    num_layers: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    *,
    tokens: int,
    tied: bool = True,
) -> dict[str, Any]:
    """Keys of a decoder."""
    return {
        "width": width,
        "num_layers": num_layers,
        "heads": heads,
        "feed_forward": hidden,
        "vocabulary": vocabulary,
        "max_tokens": tokens,
        "norm": "pre",
        "tied_head": tied,
        "loss_chunk_tokens": 1 << 20,  # they make all logits at once, in many passes
        "loss_kernel": "torch",
    }


def common_of(decoder: dict[str, Any], *, sequences: int, tokens: int) -> dict[str, Any]:
    """What all runs of a decoder have in common."""
    return {
        "model": ModelConfig.model_validate({"decoder": decoder, "encoders": {}}),
        "precision": "bf16",
        "sequences": sequences,
        "sequence_tokens": tokens,
        "spans": {},
        "zero": ZeroConfig(),
        "steps": 1,
    }
