"""Fixtures that many tests share, and the flag that rewrites golden files."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

from tests import array_checker

# Before anything imports triton: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Before anything imports `model`: shapes that forwards declare are checked in tests.
install_import_hook("model", f"{array_checker.__name__}.check")
array_checker.leave_graphs_alone()

from model import torchvision_free  # noqa: E402  # after the hook

# Before any test module imports streaming, peft or transformers.
torchvision_free.install()

pytest_plugins = ["tests.lab_fixtures", "tests.train.watch.wandb_run.server"]

# A shell that starts the tests in the background has them, and all that they start, ignore the one,
# nohup the other.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long a machine takes to draw or to run an example says nothing about the code.
hypothesis.settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any_machine")


LONGEST = (
    *("distributed/parity/test_daily", "tools/test_lab_slurm", "parallel/test_compiled"),
    *("train/test_faults", "train/test_slurm_run", "tools/corpus/test_restart"),
    *("distributed/test_layout", "train/watch/wandb_run/test_writer", "train/test_lora"),
    *("train/wrong_numbers/test_not_finite", "train/wrong_numbers/test_spikes"),
)
"""Files that take a minute: they come first, or the last one would run beside an idle core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = {Path(__file__).parent / f"{name}.py" for name in LONGEST}
    items.sort(key=lambda item: item.path not in files)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files instead of comparing"
    )


def pytest_make_parametrize_id(val: object) -> str | None:
    """Of bytes how many: packed ones may hold the time, and all processes must agree on names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
