"""Log-probabilities of given tokens, against a full forward for each of them."""

from dataclasses import replace

import pytest
import torch

from model.generation import scoring
from model.generation.decoding import Request, generate
from model.generation.picking import Sampling
from model.generation.scoring import score
from tests.model.examples import tiny_config, tiny_model
from tests.model.generation.oracle import (
    MAX_TOKENS,
    Prompt,
    all_logits,
    continued,
    logits_after,
    packed,
)

CONTEXTS = [Prompt(7, [(1, 5)], seed=1), Prompt(1, seed=2), Prompt(12, [(1, 2), (9, 12)], seed=3)]
CONTINUATIONS = [
    [[3, 4, 5], [3], [9, 8, 7, 6, 5, 4]],
    [],
    [[1], [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]],
]


@pytest.mark.parametrize("at_once", [None, 1, 2, 4])
def test_tokens_have_the_probability_that_a_full_forward_gives(
    at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once is not None:
        monkeypatch.setattr(scoring, "MOST_SLOTS", at_once)
    model = tiny_model(tiny_config())
    assert CONTEXTS[2].length + len(CONTINUATIONS[2][1]) == MAX_TOKENS + 1
    found = score(
        model,
        [context.tokens for context in CONTEXTS],
        CONTINUATIONS,
        device=torch.device("cpu"),
        spans=packed(CONTEXTS),
        num_top=2,
    )
    assert [[[t.id for t in tokens] for tokens in some] for some in found] == CONTINUATIONS
    for context, some in zip(CONTEXTS, found, strict=True):
        for tokens in some:
            for at, token in enumerate(tokens):
                before = [t.id for t in tokens[:at]]
                wanted = logits_after(model, context, before).log_softmax(-1)
                assert token.log_probability == pytest.approx(float(wanted[token.id]), abs=1e-5)
                values, places = wanted.topk(2)
                assert [place for place, _ in token.top] == places.tolist()
                assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize("spanned", [True, False])
@pytest.mark.parametrize("at_once", [None, 1, 5])
def test_prompts_are_told_of_while_they_are_read(
    at_once: int | None, spanned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once is not None:
        monkeypatch.setattr(scoring, "MOST_SLOTS", at_once)
    model = tiny_model(tiny_config())
    prompts = [replace(prompt, spans=prompt.spans if spanned else None) for prompt in CONTEXTS]
    requests = [
        Request(max_new_tokens=3, num_top=1, echoes=True),
        Request(max_new_tokens=2),
        Request(max_new_tokens=0, num_top=2, echoes=True),
    ]
    rows = generate(
        model,
        [prompt.tokens for prompt in prompts],
        requests,
        most_slots=MAX_TOKENS,
        device=torch.device("cpu"),
        spans=packed(prompts),
    )
    for prompt, request, row in zip(prompts, requests, rows, strict=True):
        assert row.ids == continued(model, prompt, Sampling(), count=request.max_new_tokens)
        assert [token.id for token in row.echo] == (prompt.tokens if request.echoes else [])
        for at, token in enumerate(row.echo):
            if at == 0:
                assert token.log_probability != token.log_probability
                continue
            wanted = all_logits(model, prompt)[at - 1].log_softmax(-1)
            assert token.log_probability == pytest.approx(float(wanted[token.id]), abs=1e-5)
            assert token.top[0][0] == int(wanted.argmax())


def test_a_model_that_diverged_says_so() -> None:
    model = tiny_model(tiny_config())
    torch.nn.init.constant_(model.decoder.embedding.weight[7], float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        score(model, [[1]], [[[2, 7, 3]]], device=torch.device("cpu"))
