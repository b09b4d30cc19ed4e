"""Generation with a key-value cache, greedy or top-p, with bidirectional spans in the prompt."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from model.attention import KeyValueCache
from model.batch import PackedSpans
from model.semicausal import SemiCausal


def empty_caches(model: SemiCausal, *, batch: int, capacity: int) -> list[KeyValueCache]:
    """One empty cache for each block, room for `capacity` slots."""
    config = model.decoder.config
    like = next(model.decoder.parameters())
    shape = (batch, config.heads, capacity, config.width // config.heads)
    return [
        KeyValueCache(like.new_empty(shape), like.new_empty(shape))
        for _ in range(config.num_layers)
    ]


@torch.no_grad()
def generate(
    model: SemiCausal,
    prompt: Int64[Tensor, "1 S"],
    *,
    spans: Mapping[str, PackedSpans] | None = None,
    max_new_tokens: int,
    top_p: float = 0.0,
    temperature: float = 1.0,
    stop_token: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield new tokens one by one.

    The prompt's spans are encoded once, when the prompt is read; what is generated is plain text
    and enters the decoder as token embeddings.

    Args:
        model: in eval mode.
        prompt: the decoder's first slots.
        spans: spans of the prompt by modality; the slots they fill are inside it.
        max_new_tokens: at most this many; fewer if the decoder's positions run out.
        top_p: smallest set of tokens that holds this much probability; 0 is greedy.
        temperature: divides the logits before top-p.
        stop_token: ends generation; it is not yielded.
        generator: source of randomness for top-p.

    Raises:
        FloatingPointError: the model diverged, or its weights are damaged.
    """
    S, most = prompt.shape[1], model.decoder.config.max_tokens
    if S > most:
        raise ValueError(f"the prompt has {S} tokens but the decoder {most} positions: shorten it")
    # The last new token is read by nobody: it takes no slot.
    stop = min(S + max_new_tokens, most + 1)
    caches = empty_caches(model, batch=1, capacity=max(S, stop - 1))
    states = model.decoder(model.inputs(prompt, spans), caches=caches)
    for position in range(S, stop):
        logits = model.decoder.head.logits(states[:, -1])[0]
        if not logits.isfinite().all():
            raise FloatingPointError("what the model predicts is not finite")
        token = pick(logits, top_p=top_p, temperature=temperature, generator=generator)
        if token == stop_token:
            return
        yield token
        if position == stop - 1:
            return
        inputs = model.decoder.embed(prompt.new_tensor([[token]]))
        states = model.decoder(inputs, start=position, caches=caches)


def pick(
    logits: Float[Tensor, "V"],
    *,
    top_p: float,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> int:
    """Choose one token: the likeliest where `top_p` is 0, else a draw from the top-p nucleus."""
    if top_p <= 0:
        return int(logits.argmax())
    # The likeliest is 0 whatever the temperature, where the others may become -inf.
    logits = (logits - logits.max()) / max(temperature, torch.finfo(logits.dtype).tiny)
    probabilities, order = torch.softmax(logits, dim=-1).sort(descending=True)
    # A token stays while the mass before it is below top_p, and the likeliest always does.
    before = probabilities.cumsum(0) - probabilities
    kept = probabilities.masked_fill(before >= top_p, 0.0)
    kept[0] = probabilities[0]
    return int(order[torch.multinomial(kept, 1, generator=generator)])
