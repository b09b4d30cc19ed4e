"""Fixtures that many tests share, and the flag that rewrites golden files."""

import pytest

pytest_plugins = ["tests.lab_fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files instead of comparing"
    )
