"""What one rank alone cannot do is told by all, though they wait for it inside a collective."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel import compiled
from tests.corpora import write_corpus
from tests.train.runs import Main, start, train
from train import microbatch
from train.exit_status import ExitStatus


def lacking_memory(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """The last rank has less memory than the first."""
    forward_backward = microbatch.forward_backward

    def limited(*given: Any, **options: Any) -> Any:
        if os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward_backward(*given, **options)

    microbatch.forward_backward = limited
    train(arguments, output, environment)


def lacking_a_compiler(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """The last rank's compiler fails; the first one's is slow to begin with."""

    def call(self: Any, *inputs: Any) -> Any:
        if os.environ["RANK"] == "1" and torch.is_grad_enabled():
            raise compiled.CompileError("model.compile: the blocks cannot be compiled (no disk)")
        return self._function(*inputs)

    compiled._Compiled.__call__ = call
    train(arguments, output, environment)


@pytest.mark.parametrize(
    ("main", "override", "said"),
    [
        (lacking_memory, "batch.try_first=true", "batch.micro_sequences: a microbatch of 1 does"),
        (lacking_a_compiler, "model.compile=blocks", "the blocks cannot be compiled (no disk)"),
    ],
    ids=["memory", "compiler"],
)
def test_all_ranks_end_alike(tmp_path: Path, main: Main, override: str, said: str) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    steps = ("steps=3", "batch.micro_sequences=1", "batch.sequences=2", override)
    attempt = start(corpus, tmp_path / "run", *steps, ranks=2, main=main)
    attempt.wait()
    first, last = (rank.output() for rank in attempt.ranks)
    statuses = [rank.poll() for rank in attempt.ranks]
    assert statuses == [ExitStatus.MISTAKE] * 2, first + last
    assert said in last
    assert said in first
    assert "(rank 1 of 2)" in first
    assert "Traceback" not in first + last
