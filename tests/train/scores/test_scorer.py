"""Answers in batches against one continuation at a time through training's own loss."""

from pathlib import Path

import pytest
import torch

from model.reading import Reading
from parallel.launch import World
from parallel.mesh import Mesh
from tests.train.scores.models import MODEL, generations, likelihoods, model, one_at_a_time
from train.errors import DataError, InUseError, UserError
from train.scores.answers import Answer, Answers
from train.scores.request import Likelihood
from train.scores.scorer import Scorer

WORLD = World(rank=0, size=1, device=torch.device("cpu"))
MESH = Mesh(world=WORLD, data_rank=0, data_size=1)
MADE = model()


class Counted:
    """The model, which counts what it reads and may be killed."""

    def __init__(self, *, most: int | None = None):
        self.rows = 0
        self._left = most

    def __call__(self, reading: Reading) -> torch.Tensor:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left = None if self._left is None else self._left - 1
        self.rows += len(reading.tokens)
        return MADE(reading)


def scorer(answers: Answers, *, batch: int = 8, read: Counted | None = None) -> Scorer:
    return Scorer(read or Counted(), MESH, weights="w", answers=answers, model=MODEL, batch=batch)


def values(answers: list[list[Answer]]) -> list[list[float]]:
    return [
        [each.log_likelihood for each in some if isinstance(each, Likelihood)] for some in answers
    ]


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_equals_one_at_a_time(batch: int) -> None:
    asked = likelihoods()
    found = values(scorer(Answers(None), batch=batch).ask(asked))
    for request, of_request in zip(asked, found, strict=True):
        assert of_request == pytest.approx(one_at_a_time(MADE, request), abs=1e-4)


def test_a_shared_context_is_read_once() -> None:
    asked = likelihoods()
    read = Counted()
    scorer(Answers(None), batch=1, read=read).ask(asked)
    longer = sum(len(each.tokens) > 1 for r in asked for each in r.continuations)
    assert read.rows <= len(asked) + longer


def test_generates_the_same_in_any_batch() -> None:
    alone = scorer(Answers(None), batch=1).ask(generations())
    assert scorer(Answers(None), batch=64).ask(generations()) == alone
    assert any(len(each[0]) > 1 for each in alone if isinstance(each[0], list))


def test_repeats_nothing_after_a_kill(tmp_path: Path) -> None:
    asked = [*likelihoods(), *generations()]
    whole = scorer(Answers(None), batch=2).ask(asked)
    path = tmp_path / "answers.jsonl"
    killed = scorer(Answers(path), batch=2, read=Counted(most=9))
    with pytest.raises(KeyboardInterrupt):
        killed.ask(asked)
    assert killed.computed > 0
    with pytest.raises(InUseError, match="written by another evaluation: wait for its end, or"):
        Answers(path)
    killed.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "likelihood", "key')  # cut short
    again = scorer(Answers(path), batch=2)
    found = again.ask(asked)
    total = sum(len(r.continuations) for r in likelihoods()) + len(generations())
    assert killed.computed + again.computed == total
    for here, there in zip(values(found), values(whole), strict=True):
        assert here == pytest.approx(there, abs=1e-4)
    again.close()
    third = scorer(Answers(path), batch=2, read=Counted(most=0))
    assert third.ask(asked) == found
    assert third.computed == 0


def test_other_weights_are_asked_anew(tmp_path: Path) -> None:
    asked = likelihoods(3)
    answers = Answers(tmp_path / "answers.jsonl")
    scorer(answers).ask(asked)
    other = Scorer(Counted(), MESH, weights="v", answers=answers, model=MODEL, batch=8)
    other.ask(asked)
    assert other.computed == sum(len(each.continuations) for each in asked)


def test_the_same_twice_is_computed_once() -> None:
    asked = likelihoods(4)
    twice = scorer(Answers(None))
    first = twice.ask([*asked, *asked])
    assert first[:4] == first[4:]
    assert twice.computed == sum(len(each.continuations) for each in asked)


def test_damaged_answers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"kind": "likelihood", "key": "' + "0" * 32 + '", "log_likelihood": 1}\n')
    for _ in range(2):  # refused, it lets go of the file
        with pytest.raises(DataError, match=r"answers.jsonl:1 is damaged .* remove the line"):
            Answers(path)


def test_what_is_not_finite_is_no_answer() -> None:
    def read(reading: Reading) -> torch.Tensor:
        return MADE(reading) * float("nan")

    broken = Scorer(read, MESH, weights="w", answers=Answers(None), model=MODEL, batch=8)
    with pytest.raises(UserError, match="is not finite"):
        broken.ask(likelihoods(2))


def test_a_token_that_is_impossible_is_no_answer() -> None:
    """Among finite logits: a likelihood of nothing at all would be stored as none."""

    def read(reading: Reading) -> torch.Tensor:
        logits = MADE(reading)
        logits[:, 10:] = -3e38
        return logits * 3.0

    broken = Scorer(read, MESH, weights="w", answers=Answers(None), model=MODEL, batch=8)
    with pytest.raises(UserError, match="is not finite"):
        broken.ask(likelihoods(2))


def test_of_equally_likely_tokens_each_is_the_likeliest() -> None:
    def read(reading: Reading) -> torch.Tensor:
        return torch.zeros_like(MADE(reading))

    even = Scorer(read, MESH, weights="w", answers=Answers(None), model=MODEL, batch=8)
    found = [each for some in even.ask(likelihoods(5)) for each in some]
    assert all(isinstance(each, Likelihood) and each.is_greedy for each in found)
