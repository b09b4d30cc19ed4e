"""Three ways to encode spans with the same encoder: packed, padded, and the whole sequence."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from model.attention import SpanGrid
from model.encoders.text import TextEncoder, TextSpans
from model.layers import Layers, initialize
from tools.bench.rounds import Findings, Step, contestants
from tools.bench.shapes import RATIO, Plan, Shape
from tools.bench.training import num_parameters
from tools.random_batches import SEED
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ways_to_encode(plan: Plan) -> Findings:
    """Forward and backward of the encoder alone; a ratio above 1 means that packing is faster."""
    shape = plan.proportions
    longest = shape.longest_rows
    found = Findings(
        settings=shape.settings | {"ratio": RATIO, "padded_rows": longest, "parts": "encoder alone"}
    )
    [batch] = shape.batches(ratio=RATIO, count=1)
    spans = batch.spans["text"]
    assert isinstance(spans, TextSpans)
    whole = whole_sequence(batch.tokens, spans)
    for precision, dtype in DTYPES.items():
        # Positions for the whole sequence, so that all three ways use the same weights.
        encoder = text_encoder(shape, dtype=dtype)
        ways: dict[str, Callable[[], Tensor]] = {
            "packed": partial(encoder, spans),
            "padded": partial(encode_padded, encoder, spans, longest=longest),
            "whole sequence": partial(encoder, whole),
        }
        steps = {
            f"{name} {precision}": upstream_step(encoder, encode) for name, encode in ways.items()
        }
        suffix = "" if precision == "fp32" else f"_{precision}"
        found.compare(
            contestants(
                steps,
                tokens=shape.tokens,
                parameters=num_parameters(encoder),
                precision=precision,
            ),
            plan.heavy,
            {
                f"packed_vs_{name.replace(' ', '_')}{suffix}": (
                    f"{name} {precision}",
                    f"packed {precision}",
                )
                for name in ("padded", "whole sequence")
            },
        )
    return found


def text_encoder(shape: Shape, *, dtype: torch.dtype) -> TextEncoder:
    """The encoder of the shape, with positions for a whole sequence and its start token."""
    config = shape.encoder(max_tokens=shape.sequence_tokens + 1)
    encoder = TextEncoder(config, shape.vocabulary, Layers())
    initialize(encoder, seed=SEED)
    return encoder.to(dtype)


def upstream_step(encoder: nn.Module, encode: Callable[[], Tensor]) -> Step:
    """Forward of some vectors and the backward of a gradient drawn at random."""
    with torch.no_grad():
        vectors = encode()
    # The last layer is a norm: the gradient of a plain sum would be nil.
    upstream = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(SEED))
    upstream = upstream.to(vectors.dtype)

    def step() -> None:
        encode().backward(upstream)
        encoder.zero_grad(set_to_none=True)

    return step


@dataclass(frozen=True)
class DenseGrid(SpanGrid):
    """A grid whose every cell is a row: laying out and taking back cost nothing."""

    @property
    def num_rows(self) -> int:
        """All of them."""
        return self.num_spans * self.longest_rows

    def scatter(self, rows: Tensor) -> Tensor:
        """[N*L, ...] -> [N, L, ...]."""
        return rows.view(self.num_spans, self.longest_rows, *rows.shape[1:])

    def gather(self, grid: Tensor) -> Tensor:
        """[N, L, ...] -> [N*L, ...]."""
        return grid.reshape(-1, *grid.shape[2:])


def encode_padded(encoder: TextEncoder, spans: TextSpans, *, longest: int) -> Tensor:
    """The vectors [M, E] of all span tokens, each span padded to `longest` rows throughout.

    The usual way: linear layers run over padding as well, and attention masks it.
    """
    R, N = spans.num_rows, spans.num_spans
    packed_cells = spans.cells[:R]
    owners = packed_cells.div(spans.longest_rows, rounding_mode="floor")
    cells = owners * longest + packed_cells % spans.longest_rows
    tokens = spans.tokens.new_zeros(N * longest).index_copy(0, cells, spans.tokens[:R])
    positions = torch.arange(longest).repeat(N)
    x = encoder.embedding_norm(encoder.embedding(tokens) + encoder.positions(positions))
    bias = encoder._bias(SpanGrid(cells, N, longest))
    grid = DenseGrid(cells, N, longest)
    for block in encoder.blocks:
        x = block(x, grid, bias)
    return x.index_select(0, cells.index_select(0, spans.vectors[: spans.num_vectors]))


def whole_sequence(tokens: Tensor, spans: TextSpans) -> TextSpans:
    """Each sequence as one span, of which only the vectors of the real spans are taken.

    Args:
        tokens: [B, S].
        spans: the real spans.
    """
    B, S = tokens.shape
    capacity = SpanCapacity(tokens=S, spans=1, longest_tokens=S)
    everything = FlatSpans.of([np.array([[0, S]])] * B)
    whole = pack_text(tokens.numpy(), everything, capacity=capacity, start_token=0)
    slots = spans.slots[: spans.num_vectors]
    vectors = whole.vectors.index_select(0, slots)
    return replace(whole, vectors=vectors, slots=slots, num_vectors=len(slots))
