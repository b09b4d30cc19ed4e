"""Replaced tokens, step by step and beside plain sums; what gradients pass through."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.encoders.text import TextEncoderConfig
from model.layers import initialize
from model.objectives import tokens
from model.objectives.alone import EncoderAlone
from model.objectives.tokens import MaskedTokens, ReplacedTokensConfig, drawn
from train.data.masks.kinds import masking
from train.data.spans.places import FlatSpans
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import pack_text
from train.data.tokens import SpecialTokens

VOCABULARY, SLOTS = 40, 60
LENGTHS = [20, 7, 1, 13, 9]
OWNERS = [0, 0, 0, 1, 1]
STARTS = [2, 30, 50, 1, 40]
OBJECTIVE = ReplacedTokensConfig(
    kind="replaced_tokens", width=8, heads=2, feed_forward=16, num_layers=1, weight=50.0
)


def config(**options: Any) -> TextEncoderConfig:
    shape = {"width": 16, "num_layers": 2, "heads": 2, "feed_forward": 24, "max_tokens": 30}
    return TextEncoderConfig.model_validate(shape | {"dropout": 0.0} | options)


def masked(encoder: TextEncoderConfig, *, unscored: int | None = None) -> tuple[Any, Any]:
    """Tokens of two sequences, and their spans with masks."""
    words = np.random.default_rng(0).integers(4, VOCABULARY, size=(2, SLOTS))
    room = SpanCapacity(tokens=SLOTS, spans=4, longest_tokens=29)
    flat = FlatSpans(*(np.array(each, dtype=np.int64) for each in (OWNERS, STARTS, LENGTHS)))
    spans = pack_text(words, flat, capacity=room, start_token=0)
    masks = masking(OBJECTIVE, encoder, modality="text", seed=1, special=SpecialTokens())
    draws = [None if n == unscored else np.random.default_rng(n) for n in range(len(LENGTHS))]
    return words, masks.masked(spans, draws)


def alone(encoder: TextEncoderConfig) -> Any:
    model = EncoderAlone("text", encoder, OBJECTIVE, vocabulary=VOCABULARY)
    initialize(model, seed=1)
    with torch.no_grad():  # what is judged must depend on what is read
        model.objective.judgement.weight.mul_(20)
    return model


def test_masks() -> None:
    """A share of each span, one at least; shown as padding, and everything else as it is."""
    words, found = masked(config(), unscored=3)
    spans = found.spans
    assert isinstance(spans, MaskedTokens)
    place = {
        (owner, start + number): vector
        for vector, (owner, start, number) in enumerate(
            (owner, start, number)
            for owner, start, length in zip(OWNERS, STARTS, LENGTHS, strict=True)
            for number in range(length)
        )
    }
    counts = np.zeros(len(LENGTHS), dtype=int)
    bounds = np.cumsum(LENGTHS)
    for vector in spans.masked.tolist():
        counts[np.searchsorted(bounds, vector, side="right")] += 1
    assert counts.tolist() == [3, 1, 1, 0, 1]
    rows = spans.whole.vectors.tolist()
    for (owner, slot), vector in place.items():
        is_masked = vector in spans.masked.tolist()
        assert int(spans.shown[rows[vector]]) == (3 if is_masked else words[owner, slot])
        assert int(spans.whole.tokens[rows[vector]]) == words[owner, slot]
    scored = [v for (owner, slot), v in place.items() if not (owner == 1 and 1 <= slot < 14)]
    assert spans.scored.tolist() == found.vectors.tolist() == scored
    assert spans.scored[spans.terms].tolist() == spans.masked.tolist()


@pytest.mark.parametrize("embedding_width", [None, 12])
def test_the_loss_is_that_of_plain_sums(
    embedding_width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean over masked tokens of filling in, and one over all of finding, weighted."""
    encoder = config(embedding_width=embedding_width)
    _, found = masked(encoder)
    spans, model = found.spans, alone(encoder)
    words = torch.tensor([9, 5, 30, 11, 8, 7, 20, 21])[: len(spans.masked)]
    words[0] = spans.whole.tokens[spans.whole.vectors[spans.masked[0]]]  # by luck what was there
    monkeypatch.setattr(tokens, "drawn", lambda logits: words)
    loss = model.objective(model.encoders["text"], spans)
    judge, read = model.objective, spans.whole.vectors.tolist()
    shown = {"tokens": spans.shown}
    states = judge.generator(spans_with(spans.whole, **shown))
    filled_in = torch.tensor(0.0)
    replaced = spans.whole.tokens.clone()
    for vector, word in zip(spans.masked.tolist(), words, strict=True):
        hidden = judge.narrow_norm(F.gelu(judge.narrowing(states[vector])))
        logits = model.encoders["text"].embedding.weight @ hidden
        filled_in = filled_in - logits.log_softmax(0)[spans.whole.tokens[read[vector]]]
        replaced[read[vector]] = word
    vectors = model.encoders["text"](spans_with(spans.whole, tokens=replaced))
    find = torch.tensor(0.0)
    for vector in range(sum(LENGTHS)):
        score = judge.judgement(F.gelu(judge.hidden(vectors[vector])))[0]
        is_other = replaced[read[vector]] != spans.whole.tokens[read[vector]]
        find = find - torch.log(torch.sigmoid(score if is_other else -score))
    torch.testing.assert_close(loss.total, filled_in / 0.15 + 50.0 * find, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.terms.sum(), loss.total, rtol=1e-5, atol=1e-4)
    assert len(loss.terms) == sum(LENGTHS)


def spans_with(spans: Any, **changed: Any) -> Any:
    return type(spans)(**{**vars(spans), **changed})


def test_nothing_flows_back_through_what_was_drawn() -> None:
    """Finding what was replaced trains the encoder alone, filling in the generator alone."""
    encoder = config()
    _, found = masked(encoder)
    spans, model = found.spans, alone(encoder)
    judge = model.objective
    logits, filled_in = judge.fill_in(spans)
    of_generator = [p for p in judge.generator.blocks.parameters()]
    of_encoder = [p for p in model.encoders["text"].blocks.parameters()]
    find = judge.find(model.encoders["text"], spans, judge.replaced(spans, drawn(logits.detach())))
    for loss, mine, others in (
        (find, of_encoder, of_generator),
        (filled_in, of_generator, of_encoder),
    ):
        shares = torch.autograd.grad(
            loss.sum(), [*mine, *others], allow_unused=True, retain_graph=True
        )
        assert all(share is not None for share in shares[: len(mine)])
        assert all(share is None for share in shares[len(mine) :])


def test_embeddings_are_shared() -> None:
    model = alone(config())
    shared = model.objective.generator.embedding.weight
    assert shared is model.encoders["text"].embedding.weight is model.objective.head.weight
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if name.endswith("embedding.weight")] == [
        "encoders.text.embedding.weight"
    ]
    assert "encoders.text.positions.weight" in names
    assert "objective.generator.positions.weight" not in names
    assert isinstance(model.objective.generator.widening, nn.Module), "from the encoder's width"


def test_words_are_drawn_by_their_chances() -> None:
    torch.manual_seed(0)
    chances = torch.tensor([0.7, 0.2, 0.1, 0.0])
    found = drawn(chances.log().expand(20_000, -1))
    counts = torch.bincount(found, minlength=4) / len(found)
    torch.testing.assert_close(counts, chances, atol=0.02, rtol=0)
