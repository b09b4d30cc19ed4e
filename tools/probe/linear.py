"""A linear map from vectors to classes, by ridge regression."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

STRENGTHS: Final = tuple(10.0**power for power in range(-3, 5))
"""Of the penalty, for each row that is fitted; the best on a part of these is taken."""
_HELD_BACK: Final = 5
"""Of so many rows one chooses the strength."""


def answers(
    fitted: Tensor, labels: Sequence[str], asked: Tensor, choices: Sequence[Sequence[str] | None]
) -> list[str]:
    """What a probe says of vectors that it was not fitted on.

    Args:
        fitted: [n, E].
        labels: of each.
        asked: [m, E].
        choices: among which labels of each of these; None: all that there are.
    """
    classes = sorted(set(labels))
    place = {name: number for number, name in enumerate(classes)}
    targets = torch.tensor([place[name] for name in labels])
    mean, std = fitted.double().mean(dim=0), fitted.double().std(dim=0).clamp(min=1e-6)
    x, queries = (fitted.double() - mean) / std, (asked.double() - mean) / std
    is_held = torch.arange(len(x)) % _HELD_BACK == _HELD_BACK - 1
    found: list[tuple[float, float]] = []
    for strength in STRENGTHS:
        scores = _scores(x[~is_held], targets[~is_held], len(classes), x[is_held], strength)
        right = (scores.argmax(dim=1) == targets[is_held]).double().mean()
        found.append((float(right), strength))
    best = max(found)[1]
    scores = _scores(x, targets, len(classes), queries, best)
    said: list[str] = []
    for row, offered in zip(scores, choices, strict=True):
        known = [place[name] for name in offered if name in place] if offered else None
        if known is not None and not known:
            said.append("")  # it has seen none of them
            continue
        number = int(row.argmax()) if known is None else known[int(row[known].argmax())]
        said.append(classes[number])
    return said


def _scores(
    x: Tensor, targets: Tensor, num_classes: int, queries: Tensor, strength: float
) -> Tensor:
    """[m, c] of each class, by least squares with a penalty on the squares of the weights."""
    wanted = torch.nn.functional.one_hot(targets, num_classes).double()
    mean = wanted.mean(dim=0)
    penalty = strength * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (wanted - mean))
    return queries @ weights + mean
