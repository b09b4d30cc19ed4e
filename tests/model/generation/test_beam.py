"""Beam search against a search without a cache, and against trying every continuation."""

import pytest
import torch

from model.generation.beam import BeamSearch, Found, beam_search
from model.generation.picking import Sampling
from model.reading import Reading
from model.semicausal import SemiCausal
from tests.model.examples import VOCABULARY, tiny_config, tiny_model
from tests.model.generation.oracle import MAX_TOKENS, Prompt, continued, logits_after, packed

PROMPTS = [Prompt(9, [(1, 4)], seed=1), Prompt(4, seed=2), Prompt(6, [(2, 6)], seed=3)]


def model_that_stops() -> SemiCausal:
    """Whose continuations differ, and end now and then."""
    model = tiny_model(tiny_config())
    with torch.no_grad():
        model.decoder.embedding.weight.mul_(0.4)
    return model


def found_by(model: SemiCausal, how: BeamSearch, prompts: list[Prompt]) -> list[Found]:
    return beam_search(
        model,
        [prompt.tokens for prompt in prompts],
        how,
        most_slots=MAX_TOKENS,
        device=torch.device("cpu"),
        spans=packed(prompts),
    )


def penalty(how: BeamSearch, num_tokens: int) -> float:
    return ((5 + num_tokens) / 6) ** how.length_penalty


def plain_search(model: SemiCausal, prompt: Prompt, how: BeamSearch) -> tuple[float, list[int]]:
    """As in the papers: nothing is cut short, nothing is kept of what was computed."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    room = min(how.max_new_tokens, MAX_TOKENS + 1 - prompt.length)
    for length in range(1, room + 1):
        longer: list[tuple[float, list[int]]] = []
        for before, ids in live:
            chances = logits_after(model, prompt, ids).log_softmax(-1).tolist()
            longer += [(before + chance, [*ids, token]) for token, chance in enumerate(chances)]
        longer = sorted(longer, key=lambda each: -each[0])[: 2 * how.num_beams]
        live = []
        for total, ids in longer:
            if ids[-1] == how.stop_token:
                ended.append((total / penalty(how, length), ids[:-1]))
            elif length == room:
                ended.append((total / penalty(how, length), ids))
            else:
                live.append((total, ids))
        live = live[: how.num_beams]
    return max(ended)


@pytest.mark.parametrize("likely", [0, 1, 3])
@pytest.mark.parametrize(("num_beams", "alpha"), [(1, 0.6), (4, 0.6), (4, 0.0), (3, 2.0), (4, 6.0)])
def test_finds_what_a_plain_search_finds(num_beams: int, alpha: float, likely: int) -> None:
    """The stop token is among the likeliest from the start: some ends come early, and lose."""
    model = model_that_stops()
    stop_token = int(logits_after(model, PROMPTS[0], []).argsort(descending=True)[likely])
    how = BeamSearch(
        num_beams=num_beams, length_penalty=alpha, max_new_tokens=5, stop_token=stop_token
    )
    for prompt, found in zip(PROMPTS, found_by(model, how, PROMPTS), strict=True):
        score, ids = plain_search(model, prompt, how)
        assert list(found.ids) == ids
        assert found.score == pytest.approx(score, abs=1e-4)
        length = len(ids) + (found.ending == "stop")
        assert found.log_probability == pytest.approx(score * penalty(how, length), abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_beam_as_wide_as_all_there_is_finds_the_best_of_all(alpha: float) -> None:
    model, prompt = model_that_stops(), PROMPTS[0]
    how = BeamSearch(num_beams=VOCABULARY, length_penalty=alpha, max_new_tokens=2, stop_token=3)
    first = logits_after(model, prompt, []).log_softmax(-1)
    best = (float(first[3]) / penalty(how, 1), [])
    for one in set(range(VOCABULARY)) - {3}:
        second = logits_after(model, prompt, [one]).log_softmax(-1)
        for two in range(VOCABULARY):
            total = float(first[one] + second[two])
            best = max(best, (total / penalty(how, 2), [one] if two == 3 else [one, two]))
    (found,) = found_by(model, how, [prompt])
    assert (found.score, list(found.ids)) == (pytest.approx(best[0], abs=1e-4), best[1])


def test_one_beam_without_an_end_is_greedy() -> None:
    model = tiny_model(tiny_config())
    how = BeamSearch(num_beams=1, max_new_tokens=100, stop_token=VOCABULARY + 1)
    for prompt, found in zip(PROMPTS, found_by(model, how, PROMPTS), strict=True):
        assert list(found.ids) == continued(model, prompt, Sampling(), count=100)
        assert found.ending == "length"


def test_what_makes_no_sense_is_refused() -> None:
    model = tiny_model(tiny_config())
    with pytest.raises(ValueError, match="a beam and a new token at least"):
        found_by(model, BeamSearch(max_new_tokens=0, stop_token=3), PROMPTS)


@pytest.mark.parametrize("alpha", [-3.0, 0.0, 3.0])
def test_goes_on_as_long_as_something_may_score_better(alpha: float) -> None:
    """Where length costs, what ends soon may still score better than what has ended."""
    stop, begin, likely = 0, 1, 2
    chances = torch.full((3, 3), 1e-9)
    chances[begin] = torch.tensor([0.1, 0.3, 0.6])
    chances[likely] = torch.tensor([1.0, 1e-9, 1e-9])

    def read(reading: Reading) -> torch.Tensor:
        return chances[reading.tokens.flatten()[list(reading.wanted)]].log()

    how = BeamSearch(num_beams=2, length_penalty=alpha, max_new_tokens=8, stop_token=stop)
    [found] = beam_search(read, [[begin]], how, most_slots=20, device=torch.device("cpu"))
    assert (found.ids, found.ending) == ((likely,), "stop")
