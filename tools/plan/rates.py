"""Timings that a calibration is made of; each function runs inside a rank."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import SpanGrid, SpanSelfAttention
from model.decoder import Decoder, DecoderConfig, Piece
from model.layers import Layers, initialize, normal
from model.loss import LinearCrossEntropy, usual_chunk_tokens, why_no_triton
from parallel.costs import causal_stack
from parallel.launch import own_device
from parallel.zero.config import Precision
from tools.plan.machines import ZERO_RATES, Link, Links, Rates
from tools.plan.step_time import UPDATE_BYTES, block_seconds, head_moves
from tools.plan.task import block_moves, block_products

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

HEAD_WIDTH = 64
NUM_BLOCKS = 4
NUM_SPANS = 6
SPAN_ROWS = 129
UPDATE_ELEMENTS = 8_000_000
MESSAGE_BYTES = (1 << 16, 1 << 22, 1 << 25)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is timed, by kind of device.

    Attributes:
        rows: slots.
        products: (inner, outer) widths of matrix products.
        widths: of whole blocks.
        head: width and vocabulary of the head.
        seconds: how long each is repeated.
    """

    rows: int
    products: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    head: tuple[int, int]
    seconds: float


CPU = Sizes(
    rows=512,
    products=((64, 64), (256, 256), (512, 1024), (1024, 2048), (2048, 4096)),
    widths=(256, 512, 1024),
    head=(512, 16384),
    seconds=0.35,
)
CUDA = Sizes(
    rows=8192,
    products=((256, 256), (1024, 1024), (2048, 2048), (2048, 8192), (4096, 16384)),
    widths=(1024, 2048, 4096),
    head=(2048, 65536),
    seconds=0.25,
)


def small_decoder(width: int) -> DecoderConfig:
    """A decoder of a few blocks."""
    return DecoderConfig(
        vocabulary=512,
        width=width,
        num_layers=NUM_BLOCKS,
        heads=width // HEAD_WIDTH,
        feed_forward=4 * width,
        max_tokens=16,
    )


def compute_rates(precision: Precision, sizes: Sizes) -> Rates:
    """Products, attention, blocks and the update, on all ranks of a group at once.

    What ZeRO takes is nil: it needs an engine to be timed with.
    """
    bench = _Bench(sizes, DTYPES[precision])
    draft = Rates(
        products=[bench.product_rate(inner, outer) for inner, outer in sizes.products],
        attention=bench.attention_rate(),
        span_attention=bench.span_attention_rate(),
        elementwise=1.0,
        logits=1.0,
        update=bench.update_rate(),
        block_seconds=0.0,
        microbatch_seconds=0.0,
        **dict.fromkeys(ZERO_RATES, [0.0] * 4),
    )
    elementwise, block_seconds = bench.fit_blocks(draft)
    logits = bench.logit_rate(draft)
    found = {"elementwise": elementwise, "logits": logits, "block_seconds": block_seconds}
    return draft.model_copy(update=found)


def group_links() -> Links:
    """Latency and bandwidth among all ranks; every rank must call it."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    links: dict[str, list[tuple[float, float]]] = {"reduce": [], "gather": [], "send": []}
    for num_bytes in MESSAGE_BYTES:
        whole = torch.ones(num_bytes // 4, device=own_device())
        part = whole[: len(whole) // ranks].clone()

        def swap(whole: Tensor = whole) -> None:
            if rank < 2:
                pair = (dist.send, dist.recv) if rank == 0 else (dist.recv, dist.send)
                for call in pair:
                    call(whole, 1 - rank)

        share = (ranks - 1) / ranks * num_bytes
        repeats = 20 if num_bytes < (1 << 20) else 4
        reduce = _fixed(partial(dist.all_reduce, whole), repeats)
        gather = _fixed(partial(dist.all_gather_single, whole, part), repeats)
        links["reduce"].append((2 * share, reduce))
        links["gather"].append((share, gather))
        links["send"].append((num_bytes, _fixed(swap, repeats) / 2))
    return Links(**{kind: _link(points) for kind, points in links.items()})


def seconds_of(work: Callable[[], object], *, at_least: float) -> float:
    """Time of one call: the lower quartile of as many as fit into `at_least` seconds, and three.

    What else the machine does makes calls slower and never faster.
    """
    work()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()  # others must be as busy
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < at_least:
        times.append(_once(work))
    return statistics.quantiles(times, n=4, method="inclusive")[0]


def trained_seconds(
    forward: Callable[[], Tensor], module: nn.Module | None = None, *, at_least: float
) -> float:
    """Time of a forward and its backward, from which a module's gradients are dropped."""
    gradient = torch.randn_like(forward())

    def both() -> None:
        forward().backward(gradient)
        if module is not None:
            module.zero_grad(set_to_none=True)

    return seconds_of(both, at_least=at_least)


def _fixed(work: Callable[[], object], repeats: int) -> float:
    """Median time of a collective call, which all ranks must repeat as often."""
    times: list[float] = []
    for _ in range(repeats + 1):
        dist.barrier()
        times.append(_once(work))
    return statistics.median(times[1:])


def _once(work: Callable[[], object]) -> float:
    _synchronize()
    started = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - started


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _link(points: Sequence[tuple[float, float]]) -> Link:
    """The line through the smallest and the largest message."""
    (small, quick), (large, slow) = points[0], points[-1]
    rate = (large - small) / max(slow - quick, 1e-9)
    return Link(latency_seconds=max(0.0, quick - small / rate), bytes_per_second=rate)


@dataclass(frozen=True)
class _Bench:
    """What a rank computes of these sizes and this type in a second."""

    sizes: Sizes
    dtype: torch.dtype

    def product_rate(self, inner: int, outer: int) -> tuple[float, float]:
        """Size and operations a second of the three products that training makes of one."""
        rows = self.sizes.rows
        x, g = self._random(rows, inner), self._random(rows, outer)
        w = self._random(outer, inner)

        def three() -> None:
            F.linear(x, w)
            torch.mm(g, w)
            torch.mm(g.t(), x)

        with torch.no_grad():
            taken = seconds_of(three, at_least=self.sizes.seconds)
        return (rows * inner * outer) ** (1 / 3), 3 * 2 * rows * inner * outer / taken

    def attention_rate(self) -> float:
        """Operations a second of causal attention."""
        S, heads = min(self.sizes.rows, 2048), 8
        q, k, v = (self._random(1, heads, S, HEAD_WIDTH) for _ in range(3))
        taken = self._trained(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return 3 * 4 * S * (S + 1) / 2 * heads * HEAD_WIDTH / taken

    def span_attention_rate(self) -> float:
        """The same in an encoder."""
        heads = 4
        width = heads * HEAD_WIDTH
        cells = torch.arange(NUM_SPANS * SPAN_ROWS, device=own_device())
        grid = SpanGrid(cells, NUM_SPANS, SPAN_ROWS)
        init = normal(0.02)
        attention = SpanSelfAttention(
            width,
            heads,
            layers=Layers(),
            query_key_init=init,
            value_init=init,
            out_init=init,
        )
        qkv = self._random(len(cells), 3 * width)
        bias = self._random(NUM_SPANS, heads, SPAN_ROWS, SPAN_ROWS)
        taken = self._trained(lambda: attention._mix(qkv, grid, bias))
        return 3 * 4 * NUM_SPANS * SPAN_ROWS**2 * width / taken

    def logit_rate(self, known: Rates) -> float:
        """Bytes a second of the head besides its products."""
        (width, vocabulary), rows = self.sizes.head, self.sizes.rows
        weight = nn.Parameter(self._random(vocabulary, width).detach() * 0.02)
        head = LinearCrossEntropy(weight)
        element_bytes = weight.element_size()
        chunk = usual_chunk_tokens(
            on_gpu=weight.is_cuda, num_rows=vocabulary, element_bytes=element_bytes
        )
        states = self._random(rows, width)
        targets = torch.randint(vocabulary, (rows,), device=own_device())
        taken = self._trained(lambda: head(states, targets, rows).total, head)
        num_chunks = max(1.0, rows / chunk)
        products = 3 * num_chunks * known.product_seconds(rows / num_chunks, width, vocabulary)
        moved = head_moves(
            rows,
            width,
            vocabulary,
            num_chunks=num_chunks,
            fused_bytes=element_bytes if why_no_triton(own_device()) is None else None,
        )
        return moved / max(taken - products, 0.02 * taken)

    def update_rate(self) -> float:
        """Bytes a second of fused AdamW on a flat shard, as ZeRO drives it."""
        flat = nn.Parameter(torch.zeros(UPDATE_ELEMENTS, device=own_device()))
        flat.grad = torch.ones_like(flat)
        optimizer = torch.optim.AdamW([flat], lr=1e-4, fused=True)
        taken = seconds_of(optimizer.step, at_least=self.sizes.seconds)
        return UPDATE_BYTES * UPDATE_ELEMENTS / taken

    def fit_blocks(self, known: Rates) -> tuple[float, float]:
        """Element-wise bytes a second, and seconds a call: what products and attention leave."""
        return _fitted([self._block_rest(known, width) for width in self.sizes.widths])

    def _block_rest(self, known: Rates, width: int) -> tuple[float, float, float]:
        """Bytes that a block moves, seconds besides products and attention, seconds in all."""
        config, rows = small_decoder(width), self.sizes.rows
        piece = Piece(first_layer=0, last_layer=1, is_first=False, is_last=False)
        decoder = Decoder(config, Layers(), pieces=[piece])
        initialize(decoder, seed=1)
        block = decoder.blocks["0"].to(device=own_device(), dtype=self.dtype)
        x = self._random(rows, width)
        num_sequences = max(1, rows // 2048)
        taken = self._trained(lambda: block(x, num_sequences), block)
        stack = causal_stack(config, sequences=num_sequences, sequence_tokens=rows // num_sequences)
        rest = taken - block_seconds(
            known,
            stack,
            tensor=1,
            products=block_products(stack, tensor=1),
            moved_bytes=0,
            attention_rate=known.attention,
        )
        moved = rows * block_moves(stack.width, stack.hidden, tensor=1, rows_split=1)
        moved *= x.element_size()
        return moved, max(rest, 0.02 * taken), taken

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=own_device(), dtype=self.dtype, requires_grad=True)

    def _trained(self, forward: Callable[[], Tensor], module: nn.Module | None = None) -> float:
        return trained_seconds(forward, module, at_least=self.sizes.seconds)


def _fitted(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Rate and constant of seconds = bytes / rate + constant, neither negative.

    Least squares of the error relative to what the whole block took.

    Args:
        points: bytes, seconds, seconds of the whole block.
    """
    moved, seconds, whole = np.array(points).T
    columns = np.stack([moved, np.ones_like(moved)], axis=1) / whole[:, None]
    slope, constant = np.linalg.lstsq(columns, seconds / whole, rcond=None)[0]
    if slope > 0 and constant > 0:
        return float(1 / slope), float(constant)
    return float((columns[:, 0] ** 2).sum() / (columns[:, 0] * seconds / whole).sum()), 0.0
