"""Cross-entropy over scored slots alone, in chunks: the logits of a batch never exist."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from model.layers import Initializer, VocabularyShard


class Loss(NamedTuple):
    """What the head returns.

    Attributes:
        total: [] sum over scored slots, nats, fp32. Divide by the global count.
        terms: [C] loss of each scored slot, fp32, without gradient; zero beyond `num_scored`.
    """

    total: Tensor
    terms: Tensor


class LinearCrossEntropy(nn.Module):
    """The head and its loss in one module.

    A tied weight is the embedding's own parameter. This module registers it too, so that ZeRO-3
    gathers it once per call and not once per chunk.

    Args:
        weight: [V, H], or a rank's rows of it.
        chunk_tokens: scored slots whose logits exist at once.
        shard: which rows, and what joins them; None if all.
        init: first values of a weight that is the head's own.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        chunk_tokens: int,
        shard: VocabularyShard | None = None,
        init: Initializer | None = None,
    ):
        super().__init__()
        self.weight = weight
        self.chunk_tokens = chunk_tokens
        self.shard = shard
        self.init = init

    def forward(
        self, states: Float[Tensor, "C H"], targets: Int64[Tensor, "C"], num_scored: int
    ) -> Loss:
        """Loss of the first `num_scored` states; the rest is padding of the static shape.

        Where the vocabulary is split, the loss is that of the whole one, and the gradient of the
        states is this rank's part of a sum over ranks.
        """
        weight = self.weight
        if not torch.is_grad_enabled():
            # An autograd function asks which inputs want gradients, not whether any are wanted.
            states, weight = states.detach(), weight.detach()
        total, terms = _ChunkedCrossEntropy.apply(
            states, weight, targets, num_scored, self.chunk_tokens, self.shard
        )
        return Loss(total, terms)

    def logits(self, states: Float[Tensor, "... H"]) -> Float[Tensor, "... V"]:
        """Logits in fp32, for generation."""
        return torch.matmul(states, self.weight.t()).float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are computed in the forward, while a chunk's logits are at hand.

    d total / d logits = softmax - onehot needs nothing from upstream but a scalar factor, which
    the backward multiplies in.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        targets: Tensor,
        num_scored: int,
        chunk: int,
        shard: VocabularyShard | None,
    ) -> tuple[Tensor, Tensor]:
        wants_states, wants_weight = ctx.needs_input_grad[:2]
        grad_states = torch.zeros_like(states) if wants_states else None
        # bf16 sums over dozens of chunks would lose small terms: the weight's gradient is fp32.
        grad_weight = (
            torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            if wants_weight
            else None
        )
        terms = torch.zeros(states.shape[0], dtype=torch.float32, device=states.device)
        for start in range(0, num_scored, chunk):
            stop = min(start + chunk, num_scored)
            part, target = states[start:stop], targets[start:stop, None]
            logits = (part @ weight.t()).float()
            here = None
            if shard is not None:
                logits[:, shard.size :] = float("-inf")  # padding rows
                target = target - shard.first
                here = (target >= 0) & (target < shard.size)
                target = target.clamp(0, logits.shape[1] - 1)
            maxima = logits.amax(dim=1, keepdim=True)
            if shard is not None:
                maxima = shard.maximum(maxima)
            chosen = logits.gather(1, target)
            exponentials = logits.sub_(maxima).exp_()
            sums = exponentials.sum(dim=1, keepdim=True)
            if shard is not None:
                assert here is not None
                chosen = chosen.masked_fill(~here, 0.0)
                sums, chosen = shard.sum(torch.cat([sums, chosen], dim=1)).split(1, dim=1)
            terms[start:stop] = (sums.log() + maxima - chosen).squeeze(1)
            if not (wants_states or wants_weight):
                continue
            grad_logits = exponentials.div_(sums)
            minus_one = -torch.ones_like(chosen) if here is None else -here.to(chosen.dtype)
            grad_logits.scatter_add_(1, target, minus_one)
            grad_logits = grad_logits.to(part.dtype)
            if grad_states is not None:
                torch.mm(grad_logits, weight, out=grad_states[start:stop])
            if grad_weight is not None:
                if part.dtype == torch.float32:
                    grad_weight.addmm_(grad_logits.t(), part)
                else:
                    grad_weight += grad_logits.t() @ part
        ctx.save_for_backward(grad_states, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_total = grads[0]
        grad_states, grad_weight = ctx.saved_tensors
        if grad_states is not None:
            grad_states = grad_states * grad_total.to(grad_states.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_total).to(ctx.weight_dtype)
        return grad_states, grad_weight, None, None, None, None
