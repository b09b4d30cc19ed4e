"""One tiny model that is served, for all that ask it."""

from collections.abc import Iterator

import httpx
import pytest

from model.layers import initialize
from model.semicausal import SemiCausal
from tests.corpora import write_tokenizer
from tests.tools.serve.serving import Slowly, serving
from tests.train.test_prompt import MODEL
from tools.serve.worker import Worker
from train.text import Speaker


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    path = tmp_path_factory.mktemp("serve") / "tokenizer.json"
    write_tokenizer(path)
    model = SemiCausal(MODEL).eval()
    initialize(model, seed=1)
    return Speaker(model, path, read=Slowly(model))


@pytest.fixture(scope="module")
def served(speaker: Speaker) -> Iterator[tuple[httpx.Client, Worker]]:
    with serving(speaker) as pair:
        yield pair


@pytest.fixture
def client(served: tuple[httpx.Client, Worker]) -> httpx.Client:
    return served[0]
