"""Where services that tests kill leave their sockets."""

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A directory that goes with the test; its name is short, for names of sockets have to fit."""
    tmp_path_factory.getbasetemp()  # lies where it always does
    with (
        tempfile.TemporaryDirectory(prefix="w-", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", directory)
        patch.setattr(tempfile, "tempdir", directory)
        yield
