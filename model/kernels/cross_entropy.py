"""Loss of a chunk of logits, and softmax - onehot written over them, in one pass.

A program reads a row, keeping the maximum and the sum of exponentials as it goes, and writes the
gradient over it while the row is still in the cache. Where the vocabulary is split over ranks there
are two passes, and the ranks' maxima and sums are joined between them.

Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018).
"""

from typing import Any, cast, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.layers import VocabularyShard

WIDEST_BLOCK = 32_768
"""Columns that a program holds at once."""
COLUMNS_PER_WARP = 1024
"""32 a thread."""


def cross_entropy_(
    logits: Tensor,
    targets: Tensor,
    *,
    num_tokens: int,
    shard: VocabularyShard | None,
    gradient: bool,
) -> Tensor:
    """What `model.loss.cross_entropy_` computes, in one pass over the logits, or two for a shard.

    Args:
        logits: [C, V] in bf16 or fp32, rows of any stride; of whole 16 columns, they are fastest.
        targets: [C]. One that is no token makes the loss NaN where all columns are here.
        num_tokens: columns that are tokens; those beyond are padding.
        shard: which part of the vocabulary the columns are; None if all.
        gradient: whether to write softmax - onehot over the logits.

    Returns:
        [C] loss of each row, fp32.
    """
    maxima = logits.new_empty(len(logits), dtype=torch.float32)
    joined = logits.new_empty(len(logits), 2, dtype=torch.float32)  # sums and chosen logits
    block = min(WIDEST_BLOCK, triton.next_power_of_2(logits.shape[1]))
    assert logits.stride(1) == targets.stride(0) == 1

    def run(*, reads: bool, writes: bool) -> None:
        cast(Any, _row)[(len(logits),)](
            logits,
            targets,
            maxima,
            joined,
            logits.stride(0),
            logits.shape[1],
            num_tokens,
            0 if shard is None else shard.first,
            IS_WHOLE=shard is None,
            READS=reads,
            WRITES=writes,
            BLOCK=block,
            num_warps=max(1, block // COLUMNS_PER_WARP),
        )

    if shard is None:
        run(reads=True, writes=gradient)
    else:
        run(reads=True, writes=False)
        own = maxima
        maxima = shard.maximum(own.clone())
        joined[:, 0] *= (own - maxima).exp()
        joined = shard.sum(joined)
        if gradient:
            run(reads=False, writes=True)
    sums, chosen = joined.unbind(dim=1)
    return sums.log() + maxima - chosen


# Chunks begin anywhere: were their alignment looked at, each would be compiled again.
@triton.jit(do_not_specialize_on_alignment=["targets", "maxima", "joined"])
@no_type_check
def _row(
    logits,
    targets,
    maxima,
    joined,
    row_stride,
    num_columns,
    num_tokens,
    first,
    IS_WHOLE: tl.constexpr,
    READS: tl.constexpr,
    WRITES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # a chunk may have more elements than an int32 can number
    logits += row * row_stride
    target = tl.load(targets + row) - first
    is_here = (target >= 0) & (target < num_tokens)
    columns = tl.arange(0, BLOCK)
    if READS:
        absent = float("nan") if IS_WHOLE else 0.0
        chosen = tl.load(logits + target, mask=is_here, other=absent).to(tl.float32)
        maximum = float("-inf")
        total = 0.0
        for start in range(0, num_columns, BLOCK):
            column = start + columns
            x = tl.load(logits + column, mask=column < num_columns, other=0.0).to(tl.float32)
            x = tl.where(column < num_tokens, x, float("-inf"))
            higher = tl.maximum(maximum, tl.max(x, axis=0))
            # Of -inf alone there is nothing to add, and -inf - -inf would be NaN.
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(maximum - shift) + tl.sum(tl.exp(x - shift), axis=0)
            maximum = higher
        tl.store(maxima + row, maximum)
        tl.store(joined + 2 * row, total)
        tl.store(joined + 2 * row + 1, chosen)
    else:
        maximum = tl.load(maxima + row)
        total = tl.load(joined + 2 * row)
    if WRITES:
        for start in range(0, num_columns, BLOCK):
            column = start + columns
            x = tl.load(logits + column, mask=column < num_columns, other=0.0).to(tl.float32)
            x = tl.where(column < num_tokens, x, float("-inf"))
            share = tl.exp(x - maximum) / total
            share = tl.where(is_here & (column == target), share - 1.0, share)
            share = share.to(logits.dtype.element_ty)
            tl.store(logits + column, share, mask=column < num_columns)
