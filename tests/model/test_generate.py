"""Generation with the cache against recomputing everything for every token."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from model.batch import PackedSpans
from model.generate import empty_caches, generate, pick
from model.semicausal import SemiCausal
from tests.model.examples import Range, collate, random_tokens, tiny_config, tiny_model

Norm = Literal["deepnorm", "pre"]
MAX_TOKENS = 40
HOT = 6.0
"""So high a temperature that these models say more than one word."""


def prompt_with(
    spans: list[Range] | None, *, slots: int = 12
) -> tuple[Tensor, dict[str, PackedSpans] | None]:
    batch = collate(random_tokens(slots=slots), None if spans is None else [spans], slots=slots)
    return batch.tokens, dict(batch.spans) or None


def draw(
    model: SemiCausal,
    prompt: Tensor,
    spans: dict[str, PackedSpans] | None = None,
    *,
    top_p: float = 0.95,
    seed: int = 1,
    stop_token: int | None = None,
) -> list[int]:
    return list(
        generate(
            model,
            prompt,
            spans=spans,
            max_new_tokens=12,
            top_p=top_p,
            temperature=HOT,
            stop_token=stop_token,
            generator=torch.Generator().manual_seed(seed),
        )
    )


def logits_without_cache(
    model: SemiCausal, prompt: Tensor, spans: dict[str, PackedSpans] | None, new: list[int]
) -> Tensor:
    """[V] logits after the prompt and `new`, from nothing but a full forward."""
    inputs = model.inputs(prompt, spans)
    if new:
        inputs = torch.cat([inputs, model.decoder.embed(prompt.new_tensor([new]))], dim=1)
    return model.decoder.head.logits(model.decoder(inputs)[0, -1])


PROMPTS: dict[str, list[Range] | None] = {
    "plain": None,
    "no span": [],
    "spans": [(1, 4), (6, 9)],
    "span at the end": [(2, 3), (7, 12)],
}


@torch.no_grad()
@pytest.mark.parametrize("norm", ["deepnorm", "pre"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_cached_logits_equal_uncached(kind: str, norm: Norm):
    model = tiny_model(tiny_config(norm))
    prompt, spans = prompt_with(PROMPTS[kind])
    caches = empty_caches(model, batch=1, capacity=MAX_TOKENS)
    states = model.decoder(model.inputs(prompt, spans), caches=caches)
    new: list[int] = []
    for position in range(prompt.shape[1], MAX_TOKENS):
        cached = model.decoder.head.logits(states[0, -1])
        torch.testing.assert_close(
            cached, logits_without_cache(model, prompt, spans, new), rtol=1e-5, atol=1e-5
        )
        new.append(int(cached.argmax()))
        inputs = model.decoder.embed(prompt.new_tensor([[new[-1]]]))
        states = model.decoder(inputs, start=position, caches=caches)


@torch.no_grad()
@pytest.mark.parametrize("top_p", [0.0, 0.95], ids=["greedy", "top-p"])
@pytest.mark.parametrize("norm", ["deepnorm", "pre"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_tokens_equal_uncached(kind: str, norm: Norm, top_p: float):
    model = tiny_model(tiny_config(norm))
    prompt, spans = prompt_with(PROMPTS[kind])
    found = draw(model, prompt, spans, top_p=top_p)
    wanted: list[int] = []
    generator = torch.Generator().manual_seed(1)
    for _ in found:
        logits = logits_without_cache(model, prompt, spans, wanted)
        wanted.append(pick(logits, top_p=top_p, temperature=HOT, generator=generator))
    assert found == wanted
    assert top_p == 0 or len(set(found)) > 5


@pytest.mark.parametrize("asked", [0, 1, 2, 7])
def test_no_more_tokens_than_asked_for(asked: int):
    model = tiny_model(tiny_config())
    prompt, _ = prompt_with(None)
    assert len(list(generate(model, prompt, max_new_tokens=asked))) == asked


@pytest.mark.parametrize("room", [0, 1, 3])
def test_ends_where_positions_run_out(room: int):
    """A prompt of max_tokens slots still predicts the token after it; nothing can follow."""
    model = tiny_model(tiny_config())
    prompt, spans = prompt_with([(2, 9)], slots=MAX_TOKENS - room)
    found = list(generate(model, prompt, spans=spans, max_new_tokens=100))
    assert len(found) == room + 1
    wanted: list[int] = []
    for _ in found:
        wanted.append(int(logits_without_cache(model, prompt, spans, wanted).argmax()))
    assert found == wanted


def test_stop_token_ends_generation_and_is_not_yielded():
    model = tiny_model(tiny_config())
    prompt, _ = prompt_with(None)
    found = draw(model, prompt)
    stop = found[5]
    wanted = found[: found.index(stop)]
    assert wanted
    assert draw(model, prompt, stop_token=stop) == wanted


def test_top_p_is_reproducible():
    model = tiny_model(tiny_config())
    prompt, _ = prompt_with(None)
    assert draw(model, prompt, seed=1) == draw(model, prompt, seed=1)
    assert draw(model, prompt, seed=1) != draw(model, prompt, seed=2)


def test_a_prompt_longer_than_the_positions_is_refused():
    model = tiny_model(tiny_config())
    prompt, _ = prompt_with(None, slots=MAX_TOKENS + 1)
    with pytest.raises(ValueError, match=r"41 tokens .* 40 positions"):
        list(generate(model, prompt, max_new_tokens=1))


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


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.5, 0.85, 0.999])
def test_draws_come_from_the_nucleus_in_proportion(top_p: float):
    logits = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.7, -4.0])
    temperature = 1.7
    probabilities = torch.softmax(logits / temperature, dim=0).tolist()
    allowed = nucleus(probabilities, top_p)
    generator = torch.Generator().manual_seed(0)
    draws = 3000
    counts = [0] * len(logits)
    for _ in range(draws):
        counts[pick(logits, top_p=top_p, temperature=temperature, generator=generator)] += 1
    mass = sum(probabilities[token] for token in allowed)
    for token, count in enumerate(counts):
        share = probabilities[token] / mass if token in allowed else 0.0
        # Four standard deviations of a binomial share; none at all outside of the nucleus.
        assert abs(count / draws - share) <= 4 * (share * (1 - share) / draws) ** 0.5


def test_greedy_ignores_the_generator():
    logits = torch.tensor([0.3, 2.0, 1.9])
    assert {pick(logits, top_p=0.0) for _ in range(20)} == {1}
