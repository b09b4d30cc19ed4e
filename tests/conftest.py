"""Fixtures that many tests share, and the flag that rewrites golden files."""

import pytest

from model import torchvision_free

# Before any test module imports streaming, peft or transformers.
torchvision_free.install()

pytest_plugins = ["tests.lab_fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files instead of comparing"
    )
