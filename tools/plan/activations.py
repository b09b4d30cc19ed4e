"""Bytes that autograd keeps from the forward for the backward, and what comes and goes meanwhile.

Counted from what `model` saves and checked against torch's own record of allocations. With R rows
of H channels and F hidden ones, a block keeps 8 R H + 2 R F elements: its queries, keys and values
(3), what attention mixed (1), what its two norms read (2) and wrote (2), and what GELU read and
wrote (2 F). Scores are never kept: the fused kernels keep one logarithm a row and head. Where the
position bias of an encoder trains on a CPU there is no fused kernel, and scores are kept in fp32.
"""

from dataclasses import dataclass

from model.encoders.protocol import EncoderKind, SpanLoad
from parallel.costs import Load
from tools.plan.task import Candidate, Task
from tools.plan.weights import Share

FP32 = 4
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


def kept(task: Task, candidate: Candidate, share: Share, *, fused: bool) -> Kept:
    """What one microbatch keeps.

    Args:
        task: the run.
        candidate: how it is spread.
        share: what the rank holds.
        fused: whether span attention has a fused kernel even where its bias trains, as on CUDA.
    """
    decoder, layout = task.model.decoder, candidate.layout
    load = task.load(candidate.micro_sequences)
    tensor = layout.tensor
    rows_split = tensor if layout.sequence_parallel else 1
    block = _Block(
        rows=load.slots,
        width=decoder.width,
        hidden=decoder.feed_forward,
        heads=decoder.heads,
        tensor=tensor,
        rows_split=rows_split,
        element_bytes=task.element_bytes,
        dropout=decoder.dropout > 0,
    )
    # Between its projections attention keeps what is computed again: no scores either way.
    layer = block.input_bytes if layout.recompute == "full" else block.kept_bytes
    entry = load.slots * decoder.width * task.element_bytes / rows_split
    written = 0.0
    encoder = encoder_transient = 0.0
    if share.is_first:
        for modality, part in task.model.encoders.items():
            spans = load.spans[modality]
            written += spans.vectors * decoder.width * task.element_bytes
            blocks, transient = _encoder(task, candidate, part.encoder, spans, fused=fused)
            connector_layers = 1 if part.connector.kind == "linear" else part.connector.num_layers
            hidden = 2 * (connector_layers - 1) * decoder.width
            vectors = spans.vectors * (part.encoder.width + hidden) * task.element_bytes
            encoder += blocks + vectors
            encoder_transient = max(encoder_transient, transient)
    pieces = [layers * layer + entry for layers in share.piece_layers]
    pieces[0] += written
    return Kept(
        pieces=tuple(pieces),
        encoder=encoder,
        block_transient=block.transient_bytes(recomputed=layout.recompute == "full"),
        encoder_transient=encoder_transient,
    )


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One block's rows and widths on a rank."""

    rows: float
    width: int
    hidden: int
    heads: int
    tensor: int
    rows_split: int
    element_bytes: int
    dropout: bool

    @property
    def input_bytes(self) -> float:
        """What full recomputation keeps."""
        return self.rows * self.width * self.element_bytes / self.rows_split

    @property
    def kept_bytes(self) -> float:
        """All that is kept, attention's scores aside."""
        width, hidden, e = self.width, self.hidden, self.element_bytes
        whole = (4 + 2 * self.dropout) * width * e + NORM_STATISTICS * FP32
        split = (4 * width + 2 * hidden) * e + self.heads * FP32
        return self.rows * (whole / self.rows_split + split / self.tensor)

    def transient_bytes(self, *, recomputed: bool) -> float:
        """Gradients of the hidden layer before and after GELU, and of the block's output."""
        e = self.element_bytes
        own = self.rows * (2 * self.hidden / self.tensor + self.width) * e
        return own + (self.kept_bytes - self.input_bytes if recomputed else 0.0)


def _encoder(
    task: Task, candidate: Candidate, config: EncoderKind, spans: SpanLoad, *, fused: bool
) -> tuple[float, float]:
    """Bytes that an encoder's trained blocks keep, and the transient of one."""
    tensor, e = candidate.layout.tensor, task.element_bytes
    recompute = candidate.layout.recompute
    kept = largest = 0.0
    for stack in config.stacks(spans):
        if not stack.trains:
            continue
        block = _Block(
            rows=stack.rows,
            width=stack.width,
            hidden=stack.hidden,
            heads=0,
            tensor=tensor,
            rows_split=1,
            element_bytes=e,
            dropout=stack.dropout,
        )
        pairs = stack.pairs * stack.heads / tensor
        if stack.bias_trains and not fused:
            # Copies of queries, keys and values, and the scores, whatever the precision.
            grid = (3 * stack.cells * stack.width / tensor + pairs) * FP32
            # Gradients of the scores come and go in three copies.
            grid_transient = 3 * pairs * FP32
        else:
            grid = stack.cells * (4 * stack.width * e + stack.heads * FP32) / tensor
            grid_transient = 0.0
        each = {
            "none": block.kept_bytes + grid,
            "selective": block.kept_bytes,
            "full": block.input_bytes,
        }[recompute]
        again = grid if recompute != "none" else 0.0
        transient = block.transient_bytes(recomputed=recompute == "full")
        largest = max(largest, max(transient, grid_transient) + again)
        # The bias itself, once for all layers; and the embeddings' norm, where it trains.
        norm = (2 + stack.dropout) * stack.rows * stack.width * e * stack.bias_trains
        kept += stack.num_blocks * each + pairs * e + norm
    return kept, largest


def head_bytes(task: Task, *, load: Load, vocabulary_rows: int) -> "Head":
    """What the head and its loss take, on a rank of the last stage."""
    decoder, e = task.model.decoder, task.element_bytes
    weight = vocabulary_rows * decoder.width
    states = load.slots * decoder.width * e
    chunk = min(decoder.loss_chunk_tokens, load.slots)
    # In bf16 the chunk's logits exist in both types, and so does the weight's gradient.
    cast = 0 if e == FP32 else e
    logits = chunk * vocabulary_rows * (FP32 + cast)
    return Head(
        forward=2 * states + weight * (FP32 + cast) + logits,
        backward=2 * states + weight * (2 * FP32 + cast),
        left=weight * e,
    )


@dataclass(frozen=True, kw_only=True)
class Head:
    """Bytes of the head for one microbatch.

    Attributes:
        forward: gathered states, their gradient and the weight's, one chunk of logits.
        backward: both gradients, before and after they are scaled.
        left: the weight's gradient, waiting for the embedding's where they are tied.
    """

    forward: float
    backward: float
    left: float
