"""A bound on the calls that a block makes: unlike seconds they are the same on a busy machine."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def soon(*, calls: int = 2_000_000) -> Generator[None]:
    """Asserts that a block makes few calls, of Python and of C; fifteen seconds hold many more."""
    made = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert made < calls
