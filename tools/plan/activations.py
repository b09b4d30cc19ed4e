"""Bytes that autograd keeps from the forward for the backward, and what comes and goes meanwhile.

Counted from what `model` saves and checked against torch's own record of allocations. With R rows
of H channels and F hidden ones, a block keeps 8 R H + 2 R F elements: its queries, keys and values
(3), what attention mixed (1), what its two norms read (2) and wrote (2), and what GELU read and
wrote (2 F). Scores are never kept: the fused kernels keep one logarithm a row and head. In encoders
on a CPU there is none for a bias that trains, and in bf16 none that is used: scores are in fp32.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from model.attention import SpanGrid
from model.encoders.protocol import Stack
from parallel.costs import Load
from parallel.mesh import LayoutConfig
from tools.plan.task import Candidate, Task
from tools.plan.tuned import ALL, Keeps
from tools.plan.weights import Share

FP32 = 4
HEAD_NAME = "decoder.head.weight"
NORM_STATISTICS = 4
"""Mean and inverse deviation of a row, of two norms, in fp32."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Activations of one microbatch on one rank, in bytes.

    Attributes:
        pieces: of each piece: its decoder layers, and its inputs or what the stage before sent.
        encoder: all encoders and connectors.
        block_transient: what the backward of one block needs besides.
        encoder_transient: the same for a block of an encoder.
    """

    pieces: tuple[float, ...]
    encoder: float
    block_transient: float
    encoder_transient: float


def kept(
    task: Task, candidate: Candidate, share: Share, *, fused: bool, padded: bool = False
) -> Kept:
    """What one microbatch keeps.

    Args:
        task: the run.
        candidate: how it is spread.
        share: what the rank holds.
        fused: whether span attention has a fused kernel whatever its bias and type, as on CUDA.
        padded: whether its grid is larger than the spans ask for, as off the CPU.
    """
    decoder, layout, e = task.model.decoder, candidate.layout, task.element_bytes
    load = task.load(candidate.micro_sequences)
    rows_split = layout.tensor if layout.sequence_parallel else 1
    stack = task.decoder_layer(candidate.micro_sequences)
    # Fused kernels keep one logarithm a row and head.
    logarithms = stack.rows * stack.heads * FP32 / layout.tensor
    layer = _block(stack, layout, e, rows_split=rows_split, attention=logarithms)
    entry = load.slots * decoder.width * e / rows_split
    pieces = [layers * layer.kept + entry for layers in share.piece_layers]
    reach = task.reach
    if reach is not None:
        first, dropout = reach.first_decoder_layer, task.adapter_dropout

        def tuned(number: int) -> float:
            if number < first:
                return 0.0
            keeps = reach.keeps(f"decoder.blocks.{number}", dropout=dropout)
            block = _block(
                stack, layout, e, rows_split=rows_split, attention=logarithms, keeps=keeps
            )
            return block.kept

        pieces = [
            sum(tuned(number) for number in range(*piece)) + entry * (piece[1] > first)
            for piece in share.pieces
        ]
    encoder = encoder_transient = 0.0
    encoders = task.model.encoders if share.is_first else {}
    for modality, part in encoders.items():
        spans = load.spans[modality]
        pieces[0] += spans.vectors * decoder.width * e
        stacks = part.encoder.stacks(spans)
        reads, passes = True, True
        keeps = ALL
        if reach is not None:
            start = reach.first_encoder_block(modality, part.encoder.num_layers)
            reads = reach.touches(f"connectors.{modality}.")
            passes = reads or start is not None
            stacks = () if start is None else (
                replace(
                    stacks[-1],
                    num_blocks=part.encoder.num_layers - start,
                    trains=True,
                    bias_trains=reach.trains(f"encoders.{modality}.relative_bias.weight"),
                ),
            )  # fmt: skip
            last = f"encoders.{modality}.blocks.{part.encoder.num_layers - 1}"
            keeps = reach.keeps(last, dropout=task.adapter_dropout)
        for stack in stacks:
            if stack.trains:
                stack = _padded(stack) if padded else stack
                blocks = _encoder(stack, layout, e, fused=fused, keeps=keeps)
                encoder += blocks.kept
                encoder_transient = max(encoder_transient, blocks.transient)
        hidden = 2 * (part.connector.num_layers - 1) * decoder.width
        encoder += spans.vectors * (reads * part.encoder.width + passes * hidden) * e
    return Kept(
        pieces=tuple(pieces),
        encoder=encoder,
        block_transient=layer.transient,
        encoder_transient=encoder_transient,
    )


def _padded(stack: Stack) -> Stack:
    longest_rows = stack.pairs / stack.cells
    spans, rows = SpanGrid.padded(stack.cells / longest_rows, longest_rows)
    return replace(stack, cells=spans * rows, pairs=spans * rows**2)


class _Block(NamedTuple):
    kept: float
    transient: float


def _block(
    stack: Stack,
    layout: LayoutConfig,
    e: int,
    *,
    rows_split: int,
    attention: float,
    keeps: Keeps = ALL,
) -> _Block:
    """Bytes that one block keeps, attention's own included, and what its backward needs besides."""
    width, hidden, tensor = stack.width, stack.hidden, layout.tensor
    inputs = stack.rows * width * e / rows_split
    whole = (2 + keeps.norms + 2 * stack.dropout) * width * e + NORM_STATISTICS * FP32
    split = stack.fused + stack.inner + (1 + 2 * stack.gated + keeps.hidden) * hidden
    if stack.turned or stack.fused < 3 * stack.inner:
        split += 3 * stack.inner  # what attention reads is not what the projection wrote
    everything = stack.rows * (whole / rows_split + split * e / tensor + keeps.channels * e)
    # Gradients of the hidden layer before and after GELU, and of the block's output.
    transient = stack.rows * (2 * hidden / tensor + width) * e
    match layout.recompute:
        case "none" | "selective":
            return _Block(everything + attention, transient)
        case "full":
            return _Block(inputs, transient + everything + attention - inputs)


def _encoder(
    stack: Stack, layout: LayoutConfig, e: int, *, fused: bool, keeps: Keeps = ALL
) -> _Block:
    """Bytes that all blocks of an encoder keep, and what the backward of one needs besides."""
    pairs = stack.pairs * stack.heads / layout.tensor
    if not fused and (stack.bias_trains or e != FP32):
        # Copies of queries, keys and values, and the scores, whatever the precision.
        grid = (3 * stack.cells * stack.width / layout.tensor + pairs) * FP32
        # Gradients of the scores come and go in three copies.
        grid_transient = 3 * pairs * FP32
    else:
        grid = stack.cells * (4 * stack.width * e + stack.heads * FP32) / layout.tensor
        grid_transient = 0.0
    block = _block(stack, layout, e, rows_split=1, attention=0.0, keeps=keeps)
    again = grid if layout.recompute != "none" else 0.0
    # The bias itself, once for all layers; and the embeddings' norm, where it trains.
    norm = (2 + stack.dropout) * stack.rows * stack.width * e * stack.bias_trains
    kept = stack.num_blocks * (block.kept + grid - again) + pairs * e + norm
    return _Block(kept, max(block.transient, grid_transient) + again)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Bytes of the head for one microbatch.

    Attributes:
        forward: gathered states, their gradient and the weight's, one chunk of logits.
        backward: both gradients, before and after they are scaled.
        left: the weight's gradient, waiting for the embedding's where they are tied.
    """

    forward: float = 0.0
    backward: float = 0.0
    left: float = 0.0


def head_bytes(
    task: Task, *, load: Load, vocabulary_rows: int, on_gpu: bool, trains: bool = True
) -> Head:
    """What the head and its loss take, on a rank of the last stage; its weight trains or not."""
    decoder, e = task.model.decoder, task.element_bytes
    weight = vocabulary_rows * decoder.width * trains
    states = load.slots * decoder.width * e
    chunk = task.loss_chunk(num_rows=vocabulary_rows, on_gpu=on_gpu)
    logits = min(chunk, load.slots) * vocabulary_rows * e
    # Torch's pass over logits in bf16 works on a copy in fp32.
    exact = 0 if e == FP32 or task.loss_is_fused(on_gpu=on_gpu) else FP32
    exact *= min(chunk, load.scored) * vocabulary_rows
    # The weight's gradient is summed in fp32: on GPUs in the product itself, elsewhere a chunk's
    # comes first in its own type, and in fp32. One chunk alone writes it in its own type, and CPUs
    # scale it in fp32.
    is_alone, casts = load.scored <= chunk, e != FP32 and not on_gpu
    summed = e if is_alone else FP32
    partial = casts * (not is_alone) * (e + FP32)
    scaling = casts * (1 + is_alone) * FP32
    fullest = max(exact + (not is_alone) * weight * summed, weight * (summed + partial))
    return Head(
        forward=2 * states + logits + fullest,
        backward=2 * states + weight * (summed + scaling + e),
        left=weight * e,
    )
