"""Which tokens may be drawn, and how often."""

import pytest
import torch

from model.generation.picking import Sampling, pick

LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.7, -4.0])


def nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """Smallest set of likeliest tokens that holds at least `top_p`, by brute force."""
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    chosen: set[int] = set()
    mass = 0.0
    for token in order:
        chosen.add(token)
        mass += probabilities[token]
        if mass >= top_p:
            break
    return chosen


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.5, 0.85, 0.999, 1.0])
def test_draws_come_from_the_nucleus_in_proportion(top_p: float, top_k: int | None) -> None:
    sampling = Sampling(temperature=1.7, top_p=top_p, top_k=top_k)
    probabilities = torch.softmax(LOGITS / sampling.temperature, dim=0)
    if top_k is not None:
        least = probabilities.sort(descending=True).values[top_k - 1]
        probabilities = probabilities.where(probabilities >= least, torch.zeros(()))
    shares = (probabilities / probabilities.sum()).tolist()
    allowed = nucleus(shares, top_p) - {token for token, share in enumerate(shares) if share == 0}
    generator = torch.Generator().manual_seed(0)
    draws = 3000
    counts = [0] * len(LOGITS)
    for _ in range(draws):
        counts[pick(LOGITS, sampling, generator)] += 1
    mass = sum(shares[token] for token in allowed)
    for token, count in enumerate(counts):
        share = shares[token] / mass if token in allowed else 0.0
        # Four standard deviations of a binomial share; none at all outside of the nucleus.
        assert abs(count / draws - share) <= 4 * (share * (1 - share) / draws) ** 0.5


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0, top_p=1), Sampling(temperature=9, top_p=1, top_k=1)],
)
def test_greedy_ignores_the_generator(sampling: Sampling) -> None:
    logits = torch.tensor([0.3, 2.0, 1.9])
    assert {pick(logits, sampling) for _ in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e-40, 1e-320, 1e300])
@pytest.mark.parametrize("top_p", [1e-60, 0.5, 1.0])
def test_every_temperature_gives_a_token(temperature: float, top_p: float) -> None:
    logits = torch.tensor([0.3, 2.0, 1.9])
    sampling = Sampling(temperature=temperature, top_p=top_p)
    drawn = {pick(logits, sampling) for _ in range(20)}
    assert drawn == {1} if temperature < 1 else drawn <= {0, 1, 2}
