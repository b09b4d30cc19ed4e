"""Timings that a calibration is made of; each function runs inside a rank."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import CausalSelfAttention, SpanGrid, SpanSelfAttention
from model.block import Block
from model.encoders.protocol import Stack
from model.layers import Layers, initialize
from model.loss import LinearCrossEntropy
from parallel.mesh import LayoutConfig
from parallel.zero.config import Precision
from tools.plan.machines import ZERO_RATES, Link, Links, Rates
from tools.plan.step_time import (
    UPDATE_BYTES,
    block_moves,
    block_seconds,
    head_moves,
)

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

HEAD_WIDTH = 64
LOSS_CHUNK_TOKENS = 256
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


def compute_rates(precision: Precision, sizes: Sizes) -> Rates:
    """Products, attention, blocks and the update, on all ranks of a group at once.

    What ZeRO takes is nil: it needs an engine to be timed with.
    """
    device, dtype = _device(), DTYPES[precision]
    products: list[tuple[float, float]] = []
    for inner, outer in sizes.products:
        x, g = (torch.randn(sizes.rows, n, device=device, dtype=dtype) for n in (inner, outer))
        w = torch.randn(outer, inner, device=device, dtype=dtype)

        def three(x: Tensor = x, g: Tensor = g, w: Tensor = w) -> None:
            F.linear(x, w)
            torch.mm(g, w)
            torch.mm(g.t(), x)

        operations = 3 * 2 * sizes.rows * inner * outer
        size = (sizes.rows * inner * outer) ** (1 / 3)
        products.append((size, operations / seconds_of(three, at_least=sizes.seconds)))
    draft = Rates(
        products=products,
        attention=_attention_rate(dtype, sizes),
        span_attention=_span_attention_rate(dtype, sizes),
        elementwise=1.0,
        logits=1.0,
        update=_update_rate(sizes),
        block_seconds=0.0,
        microbatch_seconds=0.0,
        **dict.fromkeys(ZERO_RATES, [0.0] * 4),
    )
    elementwise, block_seconds = _fit_blocks(draft, dtype, sizes)
    logits = _logit_rate(draft, dtype, sizes)
    found = {"elementwise": elementwise, "logits": logits, "block_seconds": block_seconds}
    return draft.model_copy(update=found)


def group_links() -> Links:
    """Latency and bandwidth among all ranks; every rank must call it."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    reduce: list[tuple[float, float]] = []
    gather: list[tuple[float, float]] = []
    send: list[tuple[float, float]] = []
    for num_bytes in MESSAGE_BYTES:
        whole = torch.ones(num_bytes // 4, device=_device())
        part = whole[: len(whole) // ranks].clone()

        def swap(whole: Tensor = whole) -> None:
            if rank < 2:
                pair = (dist.send, dist.recv) if rank == 0 else (dist.recv, dist.send)
                for call in pair:
                    call(whole, 1 - rank)

        share = (ranks - 1) / ranks * num_bytes
        repeats = 20 if num_bytes < (1 << 20) else 4
        reduce.append((2 * share, _fixed(lambda w=whole: dist.all_reduce(w), repeats)))
        gather.append(
            (share, _fixed(lambda w=whole, p=part: dist.all_gather_single(w, p), repeats))
        )
        send.append((num_bytes, _fixed(swap, repeats) / 2))
    return Links(reduce=_link(reduce), gather=_link(gather), send=_link(send))


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
        _synchronize()
        started = time.perf_counter()
        work()
        _synchronize()
        times.append(time.perf_counter() - started)
    return statistics.quantiles(times, n=4, method="inclusive")[0]


def _fixed(work: Callable[[], object], repeats: int) -> float:
    """Median time of a collective call, which all ranks must repeat as often."""
    times: list[float] = []
    for number in range(repeats + 1):
        dist.barrier()
        started = time.perf_counter()
        work()
        _synchronize()
        if number:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _link(points: Sequence[tuple[float, float]]) -> Link:
    """The line through the smallest and the largest message."""
    (small, quick), (large, slow) = points[0], points[-1]
    rate = (large - small) / max(slow - quick, 1e-9)
    return Link(latency_seconds=max(0.0, quick - small / rate), bytes_per_second=rate)


def _attention_rate(dtype: torch.dtype, sizes: Sizes) -> float:
    S, heads = min(sizes.rows, 2048), 8
    shape = (1, heads, S, HEAD_WIDTH)
    q, k, v = (
        torch.randn(shape, device=_device(), dtype=dtype, requires_grad=True) for _ in range(3)
    )
    g = torch.randn(shape, device=_device(), dtype=dtype)

    def both() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(g)

    operations = 3 * 4 * S * (S + 1) / 2 * heads * HEAD_WIDTH
    return operations / seconds_of(both, at_least=sizes.seconds)


def _span_attention_rate(dtype: torch.dtype, sizes: Sizes) -> float:
    heads = 4
    width = heads * HEAD_WIDTH
    cells = torch.arange(NUM_SPANS * SPAN_ROWS, device=_device())
    grid = SpanGrid(cells, NUM_SPANS, SPAN_ROWS)
    attention = SpanSelfAttention(width, heads, layers=Layers(), qkv_init=_small, out_init=_small)
    shapes = ((len(cells), 3 * width), (NUM_SPANS, heads, SPAN_ROWS, SPAN_ROWS))
    qkv, bias = (
        torch.randn(shape, device=_device(), dtype=dtype, requires_grad=True) for shape in shapes
    )
    g = torch.randn(len(cells), width, device=_device(), dtype=dtype)

    def both() -> None:
        attention._mix(qkv, grid, bias).backward(g)

    operations = 3 * 4 * NUM_SPANS * SPAN_ROWS**2 * width
    return operations / seconds_of(both, at_least=sizes.seconds)


def _logit_rate(known: Rates, dtype: torch.dtype, sizes: Sizes) -> float:
    """What the head takes besides its products."""
    width, vocabulary = sizes.head
    chunk = min(LOSS_CHUNK_TOKENS, sizes.rows)
    weight = nn.Parameter(torch.randn(vocabulary, width, device=_device(), dtype=dtype) * 0.02)
    head = LinearCrossEntropy(weight, chunk_tokens=chunk)
    states = torch.randn(sizes.rows, width, device=_device(), dtype=dtype, requires_grad=True)
    targets = torch.randint(vocabulary, (sizes.rows,), device=_device())

    def both() -> None:
        head(states, targets, sizes.rows).total.backward()
        weight.grad = None

    taken = seconds_of(both, at_least=sizes.seconds)
    num_chunks = sizes.rows / chunk
    products = 3 * num_chunks * known.product_seconds(chunk, width, vocabulary)
    moved = head_moves(sizes.rows, width, vocabulary, num_chunks=num_chunks)
    return moved / max(taken - products, 0.02 * taken)


def _update_rate(sizes: Sizes) -> float:
    """Fused AdamW on a flat shard, as ZeRO drives it."""
    flat = nn.Parameter(torch.zeros(UPDATE_ELEMENTS, device=_device()))
    flat.grad = torch.ones_like(flat)
    optimizer = torch.optim.AdamW([flat], lr=1e-4, fused=True)
    return UPDATE_BYTES * UPDATE_ELEMENTS / seconds_of(optimizer.step, at_least=sizes.seconds)


def _fit_blocks(known: Rates, dtype: torch.dtype, sizes: Sizes) -> tuple[float, float]:
    """Element-wise bytes a second, and seconds a call: what products and attention leave."""
    rest: list[tuple[float, float, float]] = []
    for width in sizes.widths:
        hidden = 4 * width
        block = Block(
            width=width,
            heads=width // HEAD_WIDTH,
            hidden=hidden,
            attention=CausalSelfAttention,
            layers=Layers(),
            norm="deepnorm",
            depth=12,
        )
        initialize(block, seed=1)
        block.to(device=_device(), dtype=dtype)
        x = torch.randn(sizes.rows, width, device=_device(), dtype=dtype, requires_grad=True)
        g = torch.randn_like(x)
        num_sequences = max(1, sizes.rows // 2048)

        def both(
            block: nn.Module = block, x: Tensor = x, g: Tensor = g, n: int = num_sequences
        ) -> None:
            block(x, n).backward(g)
            block.zero_grad(set_to_none=True)

        taken = seconds_of(both, at_least=sizes.seconds)
        stack = Stack(
            num_blocks=1,
            width=width,
            hidden=hidden,
            heads=width // HEAD_WIDTH,
            rows=sizes.rows,
            cells=sizes.rows,
            pairs=sizes.rows * (sizes.rows // num_sequences + 1) / 2,
            dropout=False,
            trains=True,
            bias_trains=False,
        )
        num_bytes = block_moves(stack, tensor=1, rows_split=1) * x.element_size()
        rest_seconds = taken - block_seconds(
            known,
            stack,
            LayoutConfig(),
            rows_split=1,
            attention_rate=known.attention,
            element_bytes=0,
        )
        rest.append((num_bytes, max(rest_seconds, 0.02 * taken), taken))
    return _fitted(rest)


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


def _small(weight: Tensor, generator: torch.Generator) -> None:
    weight.normal_(0.0, 0.02, generator=generator)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
