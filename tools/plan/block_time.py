"""Seconds of a block, forward and backward, of encoders' blocks, of connectors, of adapters."""

from collections.abc import Sequence
from dataclasses import replace

from model.encoders.protocol import SpanLoad, Stack
from model.resampler import ResamplerConnectorConfig
from parallel.mesh import LayoutConfig
from tools.plan.machines import Links, Rates
from tools.plan.task import Products, Task, block_moves, block_products


def block_seconds(
    rates: Rates,
    stack: Stack,
    *,
    tensor: int,
    products: Products,
    moved_bytes: float,
    attention_rate: float,
    again: float = 0.0,
    attention_again: bool = False,
    weights_train: bool = True,
) -> float:
    """Forward and backward of one block on a rank.

    Args:
        rates: of the rank.
        stack: the block, and what goes through it.
        tensor: ranks that share it.
        products: widths of its products on the rank.
        moved_bytes: a row, forward and backward, besides products and attention.
        attention_rate: operations a second.
        again: share of the forward that is computed again.
        attention_again: whether attention is, alone.
        weights_train: whether weights have gradients, a third of the products.
    """
    multiplied = sum(rates.product_seconds(stack.rows, inner, outer) for inner, outer in products)
    if not weights_train:
        multiplied *= (2 + again) / (3 + again)
    # Rates count a backward as two forwards: one of three parts each.
    attention = 4 * stack.pairs * stack.width / tensor / attention_rate
    forward = multiplied + attention + stack.rows * moved_bytes / rates.elementwise / 3
    if not stack.trains:
        return forward + rates.block_seconds / 3
    return (3 + again) * (forward + rates.block_seconds / 3) + attention * attention_again


def stack_seconds(
    rates: Rates,
    stack: Stack,
    layout: LayoutConfig,
    *,
    element_bytes: float,
    weights_train: bool = True,
) -> float:
    """Forward and backward of one block of an encoder on a rank."""
    tensor = layout.tensor
    moves = block_moves(stack.width, stack.hidden, tensor=tensor, rows_split=1)
    return block_seconds(
        rates,
        stack,
        tensor=tensor,
        products=block_products(stack, tensor=tensor),
        moved_bytes=moves * element_bytes,
        attention_rate=rates.span_attention,
        again=float(layout.recompute == "full"),
        attention_again=layout.recompute == "selective",
        weights_train=weights_train,
    )


def beside_seconds(
    rates: Rates, task: Task, rows: float, prefix: str, layout: LayoutConfig
) -> float:
    """Forward and backward of the adapters of some layers: narrow products, each added to rows."""
    assert task.reach is not None, "there are adapters"
    products = task.reach.beside(prefix, tensor=layout.tensor)
    again = float(layout.recompute == "full")
    multiplied = sum(rates.product_seconds(rows, inner, outer) for inner, outer in products)
    moved = sum(rows * (inner + outer) * task.moved_bytes for inner, outer in products)
    return (3 + again) * (multiplied + moved / rates.elementwise)


def encoder_seconds(
    task: Task, layout: LayoutConfig, rates: Rates, modality: str, stacks: Sequence[Stack]
) -> float:
    """Forward and backward of an encoder's blocks, and of adapters beside its layers."""
    e, reach = task.moved_bytes, task.reach
    if reach is None:
        return sum(
            stack.num_blocks * stack_seconds(rates, stack, layout, element_bytes=e)
            for stack in stacks
        )
    num_blocks = sum(stack.num_blocks for stack in stacks)
    start = reach.first_encoder_block(modality, num_blocks)
    first = num_blocks if start is None else start
    prefix = f"encoders.{modality}."
    trains = reach.trains(f"{prefix}blocks.{num_blocks - 1}.attention.qkv.weight")
    fixed, trained = (replace(stacks[-1], trains=is_reached) for is_reached in (False, True))
    return (
        first * stack_seconds(rates, fixed, layout, element_bytes=e)
        + (num_blocks - first)
        * stack_seconds(rates, trained, layout, element_bytes=e, weights_train=trains)
        + beside_seconds(rates, task, trained.rows, prefix, layout)
    )


def connector_seconds(
    task: Task, layout: LayoutConfig, rates: Rates, modality: str, load: SpanLoad
) -> float:
    """Forward and backward of a connector on a rank."""
    part, tensor = task.model.encoders[modality], layout.tensor
    parts = task.connector_parts(modality)
    shared = {"whole": (1, 1), "inner": (tensor, 1), "outer": (1, tensor)}
    seconds = 0.0
    for product in part.connector.products(part.encoder, task.model.decoder.width, load):
        inner, outer = shared[product.split]
        seconds += parts * rates.product_seconds(
            product.rows, product.inner / inner, product.outer / outer
        )
    if not isinstance(part.connector, ResamplerConnectorConfig):
        return seconds
    passes, width = parts > 1, part.encoder.width
    attention = 4 * part.connector.pairs(load) * width / tensor / rates.span_attention
    moves = block_moves(width, part.connector.hidden_of(part.encoder), tensor=tensor, rows_split=1)
    moved = part.connector.rows(load) * moves * task.moved_bytes / rates.elementwise
    # The vectors' norm, and their copy behind the queries: there and back.
    moved += 6 * load.vectors * width * task.moved_bytes / rates.elementwise
    layer = part.connector.num_layers * (rates.block_seconds + moved) / 3
    forward = seconds / parts + attention + layer
    again = passes * (forward if layout.recompute == "full" else 0.0)
    again += passes * (attention if layout.recompute == "selective" else 0.0)
    return seconds + (1 + 2 * passes) * (attention + layer) + again


def connector_traffic(
    task: Task, layout: LayoutConfig, links: Links, modality: str, load: SpanLoad
) -> float:
    """Seconds of a connector's sums over the tensor group."""
    part = task.model.encoders[modality]
    if not isinstance(part.connector, ResamplerConnectorConfig):
        return 0.0
    num_bytes = part.encoder.width * task.element_bytes
    queries = part.connector.rows(load) * num_bytes
    # Forward: of what is mixed and of the hidden layer. Backward: of what three layers have read.
    passes = task.connector_parts(modality) > 1
    sums = 2 + 2 * passes + 2 * (layout.recompute == "full")
    layer = links.all_reduce(queries, ranks=layout.tensor, times=sums)
    read = queries + load.vectors * num_bytes
    layer += links.all_reduce(read, ranks=layout.tensor, times=passes)
    return part.connector.num_layers * layer
