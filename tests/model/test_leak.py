"""No scored target is visible to its own prediction.

The public code of the lineage shifts its mask the wrong way: the first token of a span is dropped
and the last one kept, which is predicted from a vector that has read it. The same check that the
model passes must catch that.
"""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from model.semicausal import SemiCausal
from tests.model import reference
from tests.model.examples import (
    SLOTS,
    VOCABULARY,
    Range,
    collate,
    random_tokens,
    tiny_config,
    tiny_model,
)
from train.data.sample import Sample
from train.data.spans.scoring import scored_tokens

Norm = Literal["deepnorm", "pre"]

LAYOUTS: dict[str, list[Range]] = {
    "no span": [],
    "one span": [(4, 9)],
    "one token": [(4, 5), (9, 10)],
    "several": [(2, 5), (7, 9), (10, 22)],
    "adjacent": [(1, 5), (5, 9), (9, 11)],
    "at the end": [(3, 6), (SLOTS - 6, SLOTS)],
}


def all_logits(model: SemiCausal, tokens: list[int], spans: list[Range]) -> Tensor:
    """[S, V] the logits with which slot t predicts token t + 1."""
    batch = collate([tokens], [spans])
    states = model.decoder(model.inputs(batch.tokens, dict(batch.spans)))[0]
    return states @ model.decoder.embedding.weight.t()


@torch.no_grad()
def sees(model: SemiCausal, tokens: list[int], spans: list[Range]) -> Tensor:
    """[S, S + 1] True where the prediction of token t (column) depends on token p (row)."""
    before = all_logits(model, tokens, spans)
    found = torch.zeros(len(tokens) - 1, len(tokens), dtype=torch.bool)
    for p in range(len(tokens) - 1):
        changed = list(tokens)
        changed[p] = (changed[p] + 11) % VOCABULARY
        after = all_logits(model, changed, spans)
        found[p, 1:] = (before - after).abs().amax(dim=1) > 1e-9
    return found


def leaks(seen: Tensor, scored: list[int]) -> set[tuple[int, int]]:
    """Pairs (p, t) where scored target t is predicted by something that saw token p >= t."""
    return {(p, t) for t in scored for p in range(t, seen.shape[0]) if seen[p, t]}


def wrongly_shifted(num_tokens: int, spans: list[Range]) -> list[int]:
    """Targets under the lineage's mask: zeros at start..stop-2 read as targets, not as sources."""
    mask = np.ones(num_tokens, dtype=bool)
    for start, stop in spans:
        mask[start : stop - 1] = False
    return [t for t in range(1, num_tokens) if mask[t]]


def our_targets(tokens: list[int], spans: list[Range]) -> list[int]:
    sample = Sample(id=0, tokens=np.array(tokens))
    scored = scored_tokens(sample, np.array(spans, dtype=np.int64).reshape(-1, 2))
    return np.flatnonzero(scored).tolist()


@pytest.mark.parametrize("norm", ["deepnorm", "pre"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_scored_target_is_visible_to_its_own_prediction(layout: str, norm: Norm):
    tokens, spans = random_tokens()[0], LAYOUTS[layout]
    model = tiny_model(tiny_config(norm), dtype=torch.float64)
    seen = sees(model, tokens, spans)
    scored = our_targets(tokens, spans)
    assert scored == reference.targets(len(tokens), spans)
    batch = collate([tokens], [spans])
    assert (batch.scored[: batch.num_scored] + 1).tolist() == scored
    assert leaks(seen, scored) == set()
    # The check has power: every prediction depends on every token before its target.
    for t in range(1, len(tokens)):
        assert seen[:t, t].all(), t
    # A scored target left out would be no leak either: nothing is dropped needlessly.
    invisible = [t for t in range(1, len(tokens)) if not leaks(seen, [t])]
    last_inside = {stop - 1 for start, stop in spans if stop - start > 1}
    assert set(invisible) == set(scored)
    assert last_inside.isdisjoint(scored)


@pytest.mark.parametrize("layout", ["one span", "several", "adjacent", "at the end"])
def test_the_check_catches_the_mask_shifted_by_one(layout: str):
    tokens, spans = random_tokens()[0], LAYOUTS[layout]
    model = tiny_model(tiny_config(), dtype=torch.float64)
    wrong = wrongly_shifted(len(tokens), spans)
    assert len(wrong) == len(our_targets(tokens, spans)), "it scores as many, but others"
    found = leaks(sees(model, tokens, spans), wrong)
    assert found == {(stop - 1, stop - 1) for start, stop in spans if stop - start > 1}


def test_interior_tokens_touch_only_terms_after_the_start_of_their_span():
    """Through the model's own loss: labels, scored slots and all."""
    spans = [(2, 5), (7, 9), (10, 22)]
    tokens = random_tokens()[0]
    model = tiny_model(tiny_config())
    batch = collate([tokens], [spans])
    before = model(batch).terms
    targets = (batch.scored[: batch.num_scored] + 1).tolist()
    for start, stop in spans:
        for p in range(start + 1, stop):
            changed = list(tokens)
            changed[p] = (changed[p] + 11) % VOCABULARY
            after = model(collate([changed], [spans])).terms
            for place, t in enumerate(targets):
                difference = (after[place] - before[place]).abs().item()
                if t <= start:
                    assert difference == 0, (p, t)
                else:
                    assert t >= stop
                    assert difference > 0, (p, t)
