"""The chunked loss as it was first written: the reference for what was made faster since."""

from typing import NamedTuple

import torch
from torch import Tensor


class FirstLoss(NamedTuple):
    """Loss and gradients."""

    total: Tensor
    terms: Tensor
    grad_states: Tensor
    grad_weight: Tensor


@torch.no_grad()
def first_loss(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    num_scored: int,
    *,
    chunk: int,
    factor: float = 1.0,
) -> FirstLoss:
    """Of a whole vocabulary, every gradient wanted.

    Args:
        states: [C, H].
        weight: [V, H].
        targets: [C].
        num_scored: slots at the beginning that count.
        chunk: slots whose logits exist at once.
        factor: that the gradients are multiplied with.
    """
    grad_states = torch.zeros_like(states)
    grad_weight = torch.zeros(weight.shape, dtype=torch.float32)
    terms = torch.zeros(states.shape[0], dtype=torch.float32)
    for start in range(0, num_scored, chunk):
        stop = min(start + chunk, num_scored)
        part, target = states[start:stop], targets[start:stop, None]
        logits = (part @ weight.t()).float()
        maxima = logits.amax(dim=1, keepdim=True)
        chosen = logits.gather(1, target)
        exponentials = logits.sub_(maxima).exp_()
        sums = exponentials.sum(dim=1, keepdim=True)
        terms[start:stop] = (sums.log() + maxima - chosen).squeeze(1)
        grad_logits = exponentials.div_(sums)
        grad_logits.scatter_add_(1, target, -torch.ones_like(chosen))
        grad_logits = grad_logits.to(part.dtype)
        torch.mm(grad_logits, weight, out=grad_states[start:stop])
        if part.dtype == torch.float32:
            grad_weight.addmm_(grad_logits.t(), part)
        else:
            grad_weight += grad_logits.t() @ part
    scale = torch.tensor(factor)
    return FirstLoss(
        total=terms.sum(),
        terms=terms,
        grad_states=grad_states * scale.to(grad_states.dtype),
        grad_weight=(grad_weight * scale).to(weight.dtype),
    )
