"""Seconds of a block, forward and backward, of an encoder's blocks, and of adapters beside them."""

from collections.abc import Sequence
from dataclasses import replace

from model.encoders.protocol import Stack
from parallel.mesh import LayoutConfig
from tools.plan.machines import Rates
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
