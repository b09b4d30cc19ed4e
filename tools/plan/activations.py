"""Bytes that autograd keeps from the forward for the backward, and what comes and goes meanwhile.

Counted from what `model` saves and checked against torch's own record of allocations. With R rows
of H channels and F hidden ones, a block keeps 8 R H + 2 R F elements: its queries, keys and values
(3), what attention mixed (1), what its two norms read (2) and wrote (2), and what GELU read and
wrote (2 F). Scores are never kept: the fused kernels keep one logarithm a row and head. In encoders
on a CPU there is none for a bias that trains, and in bf16 none that is used: scores are in fp32.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from model.attention import SpanGrid
from model.decoder import TIED_NAME
from model.encoders.protocol import SpanLoad, Stack
from model.resampler import ResamplerConnectorConfig
from model.semicausal import EncoderConfig
from parallel.costs import Load
from parallel.mesh import LayoutConfig
from tools.plan.task import Candidate, Task
from tools.plan.tuned import ALL, Keeps, Reach
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
        forward_transient: what the forward of a block needs of which nothing is kept.
        first_gradient: where a backward passes layers that are fixed before it comes to one that
            trains: what it then needs, less what it has freed. None where it comes there at once.
    """

    pieces: tuple[float, ...]
    encoder: float
    block_transient: float
    encoder_transient: float
    forward_transient: float = 0.0
    first_gradient: float | None = None


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
    entry = load.slots * decoder.width * e / rows_split
    reach, dropout = task.reach, task.adapter_dropout
    # DeepSpeed's own linear layer, which stage 3 puts in the place of torch's (not of Megatron's),
    # keeps what it reads whether or not its weight trains.
    whatever_trains = candidate.stage == 3 and layout.tensor == 1

    def block_of(number: int) -> _Block:
        keeps = ALL
        if reach is not None:
            name = f"decoder.blocks.{number}"
            keeps = reach.keeps(name, dropout=dropout, whatever_trains=whatever_trains)
        return _block(stack, layout, e, rows_split=rows_split, attention=logarithms, keeps=keeps)

    layers = _Layers.all(share, entry=entry, block=block_of(0))
    if reach is not None:
        layers = _Layers.reached(task, reach, share, entry=entry, block_of=block_of)
    pieces = layers.pieces
    encoder = encoder_transient = 0.0
    encoders = task.model.encoders if share.is_first else {}
    for modality, part in encoders.items():
        spans = load.spans[modality]
        pieces[0] += spans.slots * decoder.width * e
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
                    bias_trains=reach.trains_bias(modality),
                ),
            )  # fmt: skip
            last = f"encoders.{modality}.blocks.{part.encoder.num_layers - 1}"
            keeps = reach.keeps(last, dropout=dropout, whatever_trains=whatever_trains)
            reads |= passes and whatever_trains
        for stack in stacks:
            if stack.trains:
                stack = _padded(stack) if padded else stack
                blocks = _encoder(stack, layout, e, fused=fused, keeps=keeps)
                encoder += blocks.kept
                encoder_transient = max(encoder_transient, blocks.transient)
        of_connector = connector_bytes(
            part, spans, layout, e, H=decoder.width, fused=fused, reads=reads, passes=passes
        )
        encoder += of_connector.kept
        encoder_transient = max(encoder_transient, of_connector.transient)
    return Kept(
        pieces=tuple(pieces),
        encoder=encoder,
        block_transient=layers.transient,
        encoder_transient=encoder_transient,
        forward_transient=layers.forward,
        first_gradient=layers.first_gradient,
    )


def _padded(stack: Stack) -> Stack:
    longest_rows = stack.pairs / stack.cells
    spans, rows = SpanGrid.padded(stack.cells / longest_rows, longest_rows)
    return replace(stack, cells=spans * rows, pairs=spans * rows**2)


class _Block(NamedTuple):
    kept: float
    transient: float
    attention_transient: float = 0.0
    """What the backward of its attention needs, less what that of its feed-forward has freed."""
    forward: float = 0.0
    """What its forward needs where nothing of it is kept."""


class _Layers(NamedTuple):
    """Decoder layers of a rank; see `Kept`."""

    pieces: list[float]
    transient: float
    forward: float = 0.0
    first_gradient: float | None = None

    @classmethod
    def all(cls, share: Share, *, entry: float, block: _Block) -> "_Layers":
        """Those of a model that trains as a whole."""
        return cls([layers * block.kept + entry for layers in share.piece_layers], block.transient)

    @classmethod
    def reached(
        cls,
        task: Task,
        reach: Reach,
        share: Share,
        *,
        entry: float,
        block_of: Callable[[int], _Block],
    ) -> "_Layers":
        """Those of a model of which a part trains.

        Args:
            task: the run.
            reach: how far its gradients go.
            share: what the rank holds.
            entry: bytes of a piece's input, and of its output.
            block_of: a decoder layer.
        """
        firsts = [reach.first_layer_of(piece) for piece in share.pieces]
        # What the next stage is sent stays here until its gradient comes back.
        pieces = [
            sum(block_of(number).kept for number in range(first, end))
            + entry * (first < end or not share.is_last)
            for first, (_, end) in zip(firsts, share.pieces, strict=True)
        ]
        begin, end = share.pieces[-1]
        top = block_of(end - 1)
        transient = top.transient if firsts[-1] < end else 0.0
        # The first block's input, before and after positions are added to it.
        forward = top.forward + 2 * entry if firsts[0] > share.pieces[0][0] else 0.0
        head = TIED_NAME if task.model.decoder.tied_head else HEAD_NAME
        if share.is_last and (reach.trains(head) or reach.touches("decoder.final_norm.")):
            return cls(pieces, transient, forward)
        last = reach.last_decoder_layer((begin, end))
        if last is None:
            return cls(pieces, transient, forward, -pieces[-1])
        freed = sum(block_of(number).kept for number in range(last + 1, end))
        if not reach.touches(f"decoder.blocks.{last}.feed_forward"):
            return cls(pieces, transient, forward, block_of(last).attention_transient - freed)
        first_gradient = block_of(last).transient - freed if freed else None
        return cls(pieces, transient, forward, first_gradient)


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
    # Gradients of the hidden layer before and after GELU, and of the block's output; of a gate, one
    # more. GELU's output is gone by then: where it was kept, that is one layer less.
    hidden_gradients = (2 + stack.gated - keeps.hidden) * hidden / tensor
    transient = stack.rows * (hidden_gradients + width) * e
    # Gradients of queries, keys and values, of what is mixed and of the residual. What the hidden
    # layer and the norms kept is gone.
    gone = (1 + 2 * stack.gated + keeps.hidden) * hidden / tensor + 2 * width / rows_split
    mixing = stack.rows * (stack.fused / tensor + 2 * width - gone) * e
    # Hidden layer before and after GELU; the block's input, a branch and its norm.
    forward = stack.rows * ((2 + stack.gated) * hidden / tensor + 3 * width / rows_split) * e
    match layout.recompute:
        case "none" | "selective":
            return _Block(everything + attention, transient, mixing, forward)
        case "full":
            again = everything + attention - inputs
            return _Block(inputs, transient + again, mixing + again, forward)


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


def connector_bytes(
    part: EncoderConfig,
    load: SpanLoad,
    layout: LayoutConfig,
    e: int,
    *,
    H: int,
    fused: bool,
    reads: bool,
    passes: bool,
) -> _Block:
    """Bytes that a connector keeps, and what the backward of one of its layers needs besides.

    Args:
        part: the connector, and what stands before it.
        load: what it reads.
        layout: of the run.
        e: bytes of an element.
        H: width of the decoder.
        fused: whether attention has a fused kernel whatever its bias and type.
        reads: whether its layers keep what they read.
        passes: whether gradients go through it.
    """
    connector, E = part.connector, part.encoder.width
    if not isinstance(connector, ResamplerConnectorConfig):
        layers = connector.products(part.encoder, H, load)
        hidden = 2 * (len(layers) - 1) * H
        return _Block(load.vectors * (reads * E + passes * hidden) * e, 0.0)
    if not passes:
        return _Block(0.0, 0.0)
    tensor, rows, hidden = layout.tensor, connector.rows(load), connector.hidden_of(part.encoder)
    pairs = connector.pairs(load) / connector.num_layers
    cells = load.spans * (load.longest + connector.queries)
    heads = connector.heads_of(part.encoder)
    # Keys and values in the grid of items; no scores where a kernel is fused.
    mixing = (2 * cells * E * e + rows * heads * FP32) / tensor
    if not fused and e != FP32:
        # Copies of queries, keys and values, and the scores, in fp32.
        mixing = ((rows + 2 * cells) * E + pairs * heads) * FP32 / tensor
    # Residuals and norms of queries; what makes keys and values reads vectors and queries.
    read = (load.vectors + rows) * E * e
    whole = rows * (4 * E * e + NORM_STATISTICS * FP32) + read
    # Queries, what is mixed, the hidden layer before and after GELU; keys and values.
    split = rows * (2 * E + 2 * hidden) * e + 2 * read
    layer = whole + split / tensor + mixing
    # Gradients of the hidden layer, or of keys and values before and behind the grid.
    transient = max(rows * 2 * hidden, (4 * cells + 2 * rows) * E) * e / tensor
    match layout.recompute:
        case "none":
            kept = layer
        case "selective":
            kept, transient = layer - mixing, transient + mixing
        case "full":
            kept, transient = rows * E * e, transient + layer
    behind = rows * (2 * E * e + NORM_STATISTICS * FP32)
    return _Block(connector.num_layers * kept + behind, transient)


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
