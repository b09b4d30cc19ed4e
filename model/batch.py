"""A microbatch of static shape, and the spans in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from model.steady import steady_rows

UNSCORED = -100
"""Label of a slot that carries no loss."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedSpans:
    """The spans of one modality in a microbatch; what their encoder reads is added by each kind.

    Arrays have the static capacity of the microbatch; the first `num_vectors` slots are real. A
    microbatch without spans holds one padding span whose vectors land in the bin slot B*S, so that
    every rank runs every encoder.

    Where a connector reads each item whole, and gives another number of vectors than the encoder,
    `slots` are of its own, item after item, and more is known of the encoder's.

    Attributes:
        slots: [M] decoder slot (in B*S) that each vector fills.
        num_vectors: real vectors of the encoder.
        item_cells: [M] place of each of them in the padded [N, L] grid of items and their vectors;
            None where each fills a slot.
        num_items: N.
        longest_item: L, vectors of the largest item.
    """

    slots: Int64[Tensor, "_"]
    num_vectors: int
    item_cells: Int64[Tensor, "M"] | None = None
    num_items: int = 0
    longest_item: int = 0

    def steady_vectors(self, *, like: Tensor) -> int:
        """Vectors to compute; those behind the real ones land in the bin slot, or in no grid."""
        room = len(self.slots if self.item_cells is None else self.item_cells)
        return steady_rows(self.num_vectors, like=like, room=room)

    def to(self, device: torch.device) -> Self:
        """The same spans with every tensor on `device`."""
        return type(self)(**_each(self, lambda value: value.to(device, non_blocking=True)))

    def pinned(self) -> Self:
        """The same spans in page-locked memory."""
        return type(self)(**_each(self, Tensor.pin_memory))


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One microbatch.

    Attributes:
        tokens: [B, S] decoder slots; a span takes one slot for each of its vectors.
        labels: [B, S] next token, `UNSCORED` where the slot carries no loss.
        scored: [C] indices in B*S of the scored slots in rising order; static capacity B*S, the
            first `num_scored` are real. Of an encoder that trains alone, the slots of the vectors
            that carry a term, and no more of them.
        num_scored: scored slots, known to the host so that nothing has to synchronise.
        first_of_span: [C] True where the scored target is the first token of a span.
        spans: the spans, keyed by modality; every configured modality is present.
        documents: [N] rising indices in B*S of the first slot of each document, after which all
            are B*S; padding at the end of a row is a document too. Slots attend within theirs
            alone. One of few sizes, whatever the number of documents. None where they attend
            across documents.
        positions: [B, S] place of each slot in its document; None where rows count their slots.
        of_source: [n, B] whether a row comes from each of n sources; None where there is one.
    """

    tokens: Int64[Tensor, "B S"]
    labels: Int64[Tensor, "B S"]
    scored: Int64[Tensor, "C"]
    num_scored: int
    first_of_span: Tensor
    spans: Mapping[str, PackedSpans]
    documents: Int32[Tensor, "N"] | None = None
    positions: Int64[Tensor, "B S"] | None = None
    of_source: Bool[Tensor, "n B"] | None = None

    def to(self, device: torch.device) -> Self:
        """The same batch with every tensor on `device`."""
        values = _each(self, lambda value: value.to(device, non_blocking=True))
        values["spans"] = {kind: spans.to(device) for kind, spans in self.spans.items()}
        return type(self)(**values)

    def pinned(self) -> Self:
        """The same batch in page-locked memory, from where a GPU copies while the host goes on."""
        values = _each(self, Tensor.pin_memory)
        values["spans"] = {kind: spans.pinned() for kind, spans in self.spans.items()}
        return type(self)(**values)


def _each(record: Any, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: _changed(value, change) for name, value in values.items()}


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, PackedSpans):  # spans may hold others, as they were or as a part is seen
        return type(value)(**_each(value, change))
    return change(value) if isinstance(value, Tensor) else value
