"""Tests of what only a GPU shows; elsewhere they are skipped, and say so.

Nothing here hides that a real component was not tested: `make gpu-check` and its page tell whether
a GPU was there.
"""

from pathlib import Path

import pytest
import torch

NONE_HERE = "there is no CUDA device here; on a machine with one: pytest -m cuda tests/cuda"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cuda)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=NONE_HERE))
