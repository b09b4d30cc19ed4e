"""Three ways to encode pictures with the same encoder: packed, padded, and one after the other."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from model.attention import SpanGrid
from model.block import run_block
from model.encoders.image import ImageEncoder, ImageSpans
from model.layers import Layers, initialize
from tools.bench.encoding import DenseGrid, upstream_step
from tools.bench.media.pictures import skewed_sides, spans_of
from tools.bench.rounds import Findings, contestants
from tools.bench.shapes import PictureShape, Plan
from tools.bench.training import num_parameters
from tools.random_batches import SEED


def ways_to_encode_pictures(plan: Plan) -> Findings:
    """Forward and backward of the encoder alone; a ratio above 1 means that packing is faster."""
    shape = plan.pictures
    config = shape.image_encoder()
    sizes = skewed_sides(np.random.default_rng(SEED), shape, shape.pictures)
    spans = spans_of(sizes, config)
    alone = [spans_of([size], config) for size in sizes]
    encoder = image_encoder(shape)
    found = Findings(
        settings=shape.settings
        | {
            "parts": "encoder alone",
            "rows": spans.num_rows,
            "padded_rows": spans.num_spans * spans.longest_rows,
        }
    )
    ways = {
        "packed": partial(encoder, spans),
        "padded": partial(encode_padded, encoder, spans),
        "one by one": lambda: torch.cat([encoder(each) for each in alone]),
    }
    found.compare(
        contestants(
            {name: upstream_step(encoder, encode) for name, encode in ways.items()},
            tokens=spans.num_vectors,
            parameters=num_parameters(encoder),
            precision="fp32",
        ),
        plan.heavy,
        {
            "packed_vs_padded_images": ("padded", "packed"),
            "packed_vs_loop_images": ("one by one", "packed"),
        },
    )
    return found


def image_encoder(shape: PictureShape) -> ImageEncoder:
    """The encoder of the shape with its first weights."""
    encoder = ImageEncoder(shape.image_encoder(), shape.vocabulary, Layers())
    initialize(encoder, seed=SEED)
    return encoder


def encode_padded(encoder: ImageEncoder, spans: ImageSpans) -> Tensor:
    """The vectors [M, E] of all pictures, each padded to the rows of the largest throughout.

    The usual way: linear layers run over padding as well, and attention masks it.
    """
    R, N, L = spans.num_rows, spans.num_spans, spans.longest_rows
    cells = spans.cells[:R]

    def laid(values: Tensor, filler: int) -> Tensor:
        return values.new_full((N * L, *values.shape[1:]), filler).index_copy(0, cells, values[:R])

    weight = encoder.projection.weight
    x = encoder.projection(encoder.config.normalized(laid(spans.patches, 0)).to(weight.dtype))
    x = encoder.dropout(x + encoder._positions(laid(spans.places, 0), laid(spans.grids, 1)))
    bias = SpanGrid(cells, N, L, N).no_bias(like=x)
    grid = DenseGrid(cells, N, L)
    for block in encoder.blocks:
        x = run_block(block, x, grid, bias)
    if encoder.final_norm is not None:
        x = encoder.final_norm(x)
    return x.index_select(0, cells.index_select(0, spans.vectors[: spans.num_vectors]))
