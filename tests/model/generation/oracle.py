"""Generation without any cache: a full forward of one prompt alone for each token."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.batch import PackedSpans
from model.generation.picking import Sampling, pick
from model.semicausal import SemiCausal
from tests.model.examples import Range, collate, random_tokens, tiny_config

MAX_TOKENS = tiny_config().decoder.max_tokens


@dataclass
class Prompt:
    """A prompt of random tokens, and its spans (None: nothing is packed for an encoder)."""

    length: int
    spans: list[Range] | None = None
    seed: int = 0
    tokens: list[int] = field(init=False)

    def __post_init__(self):
        self.tokens = random_tokens(slots=self.length, seed=self.seed)[0][: self.length]


def packed(prompts: Sequence[Prompt]) -> dict[str, PackedSpans] | None:
    """Spans of several prompts, whose rows begin at slot 0."""
    if all(prompt.spans is None for prompt in prompts):
        return None
    longest = max(prompt.length for prompt in prompts)
    # One more is a sequence's last token, which has no slot.
    rows = [[*prompt.tokens, 0] for prompt in prompts]
    return dict(collate(rows, [prompt.spans or [] for prompt in prompts], slots=longest).spans)


@torch.no_grad()
def logits_after(model: SemiCausal, prompt: Prompt, new: Sequence[int]) -> Tensor:
    """[V] logits behind the prompt and `new`, from nothing but a full forward."""
    tokens = torch.tensor([prompt.tokens])
    inputs = model.inputs(tokens, packed([prompt]))
    if new:
        inputs = torch.cat([inputs, model.decoder.embed(tokens.new_tensor([list(new)]))], dim=1)
    return model.decoder.head.logits(model.decoder(inputs)[0, -1])


@torch.no_grad()
def all_logits(model: SemiCausal, prompt: Prompt) -> Tensor:
    """[S, V] logits of all slots of a prompt."""
    states = model.decoder(model.inputs(torch.tensor([prompt.tokens]), packed([prompt])))
    return model.decoder.head.logits(states[0])


def continued(model: SemiCausal, prompt: Prompt, sampling: Sampling, *, count: int) -> list[int]:
    """The next `count` tokens, or as many as the positions allow."""
    new: list[int] = []
    generator = torch.Generator().manual_seed(sampling.seed)
    for _ in range(min(count, MAX_TOKENS + 1 - prompt.length)):
        new.append(pick(logits_after(model, prompt, new), sampling, generator))
    return new
