"""What the tests of tools.corpus share."""

from pathlib import Path

import pytest

from tests import warm
from tests.corpora import write_tokenizer
from tools.corpus.tokenizer import CorpusTokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def loaded(tokenizer: Path) -> CorpusTokenizer:
    return CorpusTokenizer.from_file(tokenizer)


@pytest.fixture(scope="session")
def _server() -> None:
    # Worker processes come from the server that tests of ranks use, started as they want it.
    warm.context()


@pytest.fixture
def processes(_server: None) -> None:
    """Asked for by tests that use more than one process."""
