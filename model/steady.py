"""Numbers of rows that repeat, where each new one is compiled anew."""

from typing import Final

import torch
from torch import Tensor

ROWS_MULTIPLE: Final = 64

COMPILED_FOR: Final = (torch.bfloat16, torch.float16)
"""Types whose products oneDNN compiles."""


def steady_rows(num_rows: int, *, like: Tensor, room: int) -> int:
    """So many rows to compute, of which the first are wanted.

    For products in 16 bits on a CPU oneDNN compiles kernels for each shape, and keeps a thousand of
    them: where the number of rows changes with every batch, that takes several times as long as
    the products, and gigabytes. A few rows more repeat a shape.

    Args:
        num_rows: that are wanted.
        like: whose type and device the products have.
        room: rows that there are.
    """
    if like.device.type != "cpu" or like.dtype not in COMPILED_FOR:
        return num_rows
    return max(num_rows, min(room, num_rows + -num_rows % ROWS_MULTIPLE))
