"""Rows that are generated together, against recomputing everything for each token of each alone."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch

from model.generation.choices import Choices
from model.generation.decoding import Decoding, Request, Row, generate
from model.generation.picking import Sampling
from model.reading import Cache, Reading
from model.semicausal import SemiCausal
from tests.model.examples import tiny_config, tiny_model
from tests.model.generation.oracle import (
    MAX_TOKENS,
    Prompt,
    continued,
    logits_after,
    packed,
)

Norm = Literal["deepnorm", "pre"]
CPU = torch.device("cpu")
HOT = Sampling(temperature=6.0, top_p=0.95, seed=1)
"""So high a temperature that these models say more than one word."""

ALONE = {
    "plain": Prompt(12),
    "no span": Prompt(12, []),
    "spans": Prompt(12, [(1, 4), (6, 9)]),
    "span at the end": Prompt(12, [(2, 3), (7, 12)]),
    "one token": Prompt(1),
}

TOGETHER = [
    Prompt(5, [(1, 3)], seed=1),
    Prompt(12, [(1, 4), (7, 12)], seed=2),
    Prompt(1, seed=3),
    Prompt(9, seed=4),
    Prompt(12, [(3, 4)], seed=5),
]


def together(
    model: SemiCausal, prompts: Sequence[Prompt], requests: Sequence[Request]
) -> list[Row]:
    return generate(
        model,
        [prompt.tokens for prompt in prompts],
        requests,
        most_slots=MAX_TOKENS,
        device=CPU,
        spans=packed(prompts),
    )


def alone(model: SemiCausal, prompt: Prompt, **options: Any) -> Row:
    options = {"max_new_tokens": 12, "sampling": HOT} | options
    return together(model, [prompt], [Request(**options)])[0]


@pytest.mark.parametrize("norm", ["deepnorm", "pre"])
@pytest.mark.parametrize("kind", ALONE)
def test_logits_of_rows_equal_those_without_cache(kind: str, norm: Norm) -> None:
    """Rows of several lengths read on by one token, by several, and by different numbers."""
    model = tiny_model(tiny_config(norm))
    prompts = [ALONE[kind], Prompt(7, [(2, 6)], seed=9)]
    cache = Cache(14)  # it must grow
    rows: list[list[int]] = [[], []]
    news = [[[4], [5]], [[6], [7, 8, 9]], [[1, 2], [3]], [[4, 5, 6, 7], [8]], [[1], [2]]]
    for new in [None, *news]:
        tokens = [prompt.tokens for prompt in prompts] if new is None else new
        spans = packed(prompts) if new is None else None
        reading = Reading.of(tokens, cache, device=CPU, spans=spans)
        with torch.no_grad():
            logits = model(reading)
        reading.done()
        for row, some in zip(rows, new or [], strict=new is not None):
            row += some
        for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            wanted = logits_after(model, prompt, row)
            torch.testing.assert_close(logits[index], wanted, rtol=1e-5, atol=1e-5)
        assert cache.lengths == [p.length + len(row) for p, row in zip(prompts, rows, strict=True)]


@pytest.mark.parametrize("sampling", [Sampling(), HOT, Sampling(temperature=6.0, top_k=5, top_p=1)])
@pytest.mark.parametrize("norm", ["deepnorm", "pre"])
def test_each_prompt_is_continued_as_if_it_were_alone(norm: Norm, sampling: Sampling) -> None:
    model = tiny_model(tiny_config(norm))
    requests = [Request(max_new_tokens=count, sampling=sampling) for count in (12, 3, 40, 7, 20)]
    rows = together(model, TOGETHER, requests)
    for prompt, request, row in zip(TOGETHER, requests, rows, strict=True):
        wanted = continued(model, prompt, sampling, count=request.max_new_tokens)
        assert row.ids == wanted
        assert row.ending == "length"
    assert sampling.is_greedy or len(set(rows[0].ids)) > 5


def test_rows_come_and_go_while_others_are_generated() -> None:
    model = tiny_model(tiny_config())
    decoding = Decoding(model, most_slots=MAX_TOKENS, device=CPU)
    samplings = [Sampling(temperature=6.0, top_p=0.9, seed=seed) for seed in range(5)]
    counts = (12, 4, 15, 9, 6)
    wanted = [
        continued(model, prompt, sampling, count=count)
        for prompt, sampling, count in zip(TOGETHER, samplings, counts, strict=True)
    ]
    rows: list[Row] = []
    for first, stop, steps in ((0, 2, 2), (2, 3, 4), (3, 5, 1)):
        prompts = TOGETHER[first:stop]
        requests = [
            Request(max_new_tokens=counts[index], sampling=samplings[index])
            for index in range(first, stop)
        ]
        tokens = [prompt.tokens for prompt in prompts]
        rows += decoding.admit(tokens, requests, spans=packed(prompts))
        for _ in range(steps):
            decoding.step()
    decoding.drop(rows[2])  # nobody wants it any more
    while decoding.step():
        pass
    for index, row in enumerate(rows):
        assert row.ids == (wanted[2][: len(row.ids)] if index == 2 else wanted[index])
        assert row.ending == (None if index == 2 else "length")
    assert len(rows[2].ids) == 6
    assert not decoding.rows


@pytest.mark.parametrize("asked", [0, 1, 2, 7])
def test_no_more_tokens_than_asked_for(asked: int) -> None:
    row = alone(tiny_model(tiny_config()), ALONE["plain"], max_new_tokens=asked)
    assert len(row.tokens) == asked
    assert row.ending == "length"


@pytest.mark.parametrize("room", [0, 1, 3])
def test_ends_where_positions_run_out(room: int) -> None:
    """A prompt of max_tokens slots still predicts the token after it; nothing can follow."""
    model = tiny_model(tiny_config())
    prompts = [Prompt(MAX_TOKENS - room, [(2, 9)]), Prompt(30, seed=3)]
    rows = together(model, prompts, [Request(max_new_tokens=100)] * 2)
    for prompt, row in zip(prompts, rows, strict=True):
        assert len(row.ids) == MAX_TOKENS + 1 - prompt.length
        assert row.ids == continued(model, prompt, Sampling(), count=100)
        assert row.ending == "length"


def test_stop_tokens_end_a_row_and_are_not_of_it() -> None:
    model = tiny_model(tiny_config())
    found = alone(model, ALONE["plain"]).ids
    stop = found[5]
    wanted = found[: found.index(stop)]
    assert wanted
    row = alone(model, ALONE["plain"], stop_tokens=frozenset({stop}))
    assert (row.ids, row.ending) == (wanted, "stop")
    first = alone(model, ALONE["plain"], stop_tokens=frozenset({found[0], stop}))
    assert (first.ids, first.ending) == ([], "stop")


def test_draws_are_reproducible() -> None:
    model, prompt = tiny_model(tiny_config()), ALONE["plain"]
    other = Sampling(temperature=6.0, top_p=0.95, seed=2)
    assert alone(model, prompt).ids == alone(model, prompt).ids
    assert alone(model, prompt).ids != alone(model, prompt, sampling=other).ids


def test_a_prompt_must_have_tokens_and_fit_the_positions() -> None:
    model = tiny_model(tiny_config())
    with pytest.raises(ValueError, match=r"41 tokens .* 40 positions: shorten"):
        alone(model, Prompt(MAX_TOKENS + 1))
    with pytest.raises(ValueError, match="no tokens"):
        together(model, [Prompt(0)], [Request(max_new_tokens=1)])


def test_log_probabilities_are_the_models_own() -> None:
    """Before temperature and constraints, of what was chosen and of the likeliest."""
    model = tiny_model(tiny_config())
    requests = [
        Request(max_new_tokens=4, sampling=HOT, num_top=3),
        Request(max_new_tokens=4, sampling=HOT),
        Request(max_new_tokens=4, num_top=0),
    ]
    rows = together(model, TOGETHER[:3], requests)
    for prompt, request, row in zip(TOGETHER[:3], requests, rows, strict=True):
        for at, token in enumerate(row.tokens):
            if request.num_top is None:
                assert token.log_probability != token.log_probability
                continue
            wanted = logits_after(model, prompt, row.ids[:at]).double().log_softmax(-1)
            assert token.log_probability == pytest.approx(float(wanted[token.id]), abs=1e-4)
            values, places = wanted.topk(3)
            ids, chances = zip(*token.top, strict=True) if token.top else ((), ())
            assert list(ids) == places.tolist()[: request.num_top]
            assert list(chances) == pytest.approx(values.tolist()[: request.num_top], abs=1e-4)


def test_what_is_generated_is_one_of_the_choices() -> None:
    """The likeliest allowed token at each place, by brute force over full forwards."""
    model = tiny_model(tiny_config())
    sequences = [[1, 2, 3], [1, 2], [4], [1, 5, 6, 7]]
    choices = Choices(sequences, stop_token=30)
    requests = [
        Request(max_new_tokens=9, choices=choices, stop_tokens=frozenset({30})),
        Request(max_new_tokens=9),
        Request(max_new_tokens=9, choices=Choices([[8, 9]])),
    ]
    rows = together(model, TOGETHER[:3], requests)
    new: list[int] = []
    while True:
        fitting = [s for s in sequences if s[: len(new)] == new]
        allowed = sorted({s[len(new)] if len(s) > len(new) else 30 for s in fitting})
        if allowed == [30]:
            break
        logits = logits_after(model, TOGETHER[0], new)
        token = max(allowed, key=lambda token, logits=logits: float(logits[token]))
        if token == 30:
            break
        new.append(token)
    assert rows[0].ids == new
    assert new in sequences
    assert rows[1].ids == continued(model, TOGETHER[1], Sampling(), count=9)
    assert (rows[2].ids, rows[2].ending) == ([8, 9], "stop")
    hot = Sampling(temperature=50.0, top_p=1.0)
    drawn = {
        tuple(
            alone(
                model,
                TOGETHER[0],
                choices=choices,
                stop_tokens=frozenset({30}),
                sampling=Sampling(temperature=hot.temperature, top_p=1.0, seed=seed),
            ).ids
        )
        for seed in range(40)
    }
    assert drawn == set(map(tuple, sequences))


@pytest.mark.parametrize(
    ("sequences", "told"),
    [
        ([], "nothing to choose from"),
        ([[]], "a choice has no tokens"),
        ([[1, 2], [3], [1, 2]], "two choices are the same"),
        ([[1, 2], [1]], "a choice is the beginning of another one: name a token"),
    ],
)
def test_choices_that_make_no_sense_are_refused(sequences: list[list[int]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Choices(sequences)


def test_a_model_that_diverged_says_so() -> None:
    model = tiny_model(tiny_config())
    torch.nn.init.constant_(model.decoder.embedding.weight[7], float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        alone(model, ALONE["plain"])
