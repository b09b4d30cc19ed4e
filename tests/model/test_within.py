"""Documents packed into a row, kept apart, train as they would one a row."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.batch import Batch
from model.loss import Loss
from model.recompute import Recompute
from model.semicausal import SemiCausal
from tests.model import reference
from tests.model.examples import SLOTS, Range, collate, random_tokens, tiny_config, tiny_model

DOCUMENTS: list[list[Range]] = [
    [(0, 9), (9, 11), (11, 25)],
    [(0, 1), (1, 14), (14, 19)],  # the rest is padding
]
SPANS: list[list[Range]] = [[(2, 5), (7, 8), (12, 20), (20, 24)], [(2, 6), (15, 18)]]
"""At the beginning and the end of documents, and adjacent."""


def packed(spans: list[list[Range]] | None) -> Batch:
    rows = random_tokens(sequences=2)
    return collate([rows[0], rows[1][:19]], spans, documents=DOCUMENTS)


def alone(spans: list[list[Range]] | None) -> list[tuple[list[int], list[Range] | None]]:
    """Each document's tokens, and its spans counted from its own first token."""
    found: list[tuple[list[int], list[Range] | None]] = []
    for row, (tokens, documents) in enumerate(
        zip(random_tokens(sequences=2), DOCUMENTS, strict=True)
    ):
        for start, stop in documents:
            inside = None
            if spans is not None:
                mine = [(a, b) for a, b in spans[row] if start <= a < stop]
                inside = [(a - start, b - start) for a, b in mine]
            found.append((tokens[start:stop], inside))
    return found


class DoubleHead(nn.Module):
    """The head as it reads, in the model's own precision; ours takes losses in fp32."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight

    def forward(self, states: Tensor, targets: Tensor, num_scored: int) -> Loss:
        logits = states[:num_scored] @ self.weight.t()
        terms = functional.cross_entropy(logits, targets[:num_scored], reduction="none")
        return Loss(terms.sum(), terms)


def in_double(norm: Literal["deepnorm", "pre"] = "deepnorm", *, encoder: bool = True) -> SemiCausal:
    model = tiny_model(tiny_config(norm, encoder=encoder), dtype=torch.float64)
    model.decoder.register_module("head", DoubleHead(model.decoder.embedding.weight))
    return model


def trained(model: SemiCausal, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss terms in the order of the slots, and gradients of their sum."""
    model.zero_grad()
    terms: list[Tensor] = []
    for batch in batches:
        loss = model(batch)
        assert isinstance(loss, Loss)
        loss.total.backward()
        terms.append(loss.terms[: batch.num_scored])
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return torch.cat(terms), {name: grad.clone() for name, grad in grads.items()}


@pytest.mark.parametrize("spans", [SPANS, None], ids=["spans", "GPT"])
@pytest.mark.parametrize("norm", ["deepnorm", "pre"])
@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-12), (False, 1e-5)])
def test_a_packed_row_is_the_sum_of_its_documents(
    norm: Literal["deepnorm", "pre"],
    spans: list[list[Range]] | None,
    double: bool,
    tolerance: float,
):
    encoder = spans is not None
    plain = tiny_model(tiny_config(norm, encoder=encoder))
    model = in_double(norm, encoder=encoder) if double else plain
    terms, grads = trained(model, [packed(spans)])
    one_by_one = [
        collate([tokens], None if inside is None else [inside])
        for tokens, inside in alone(spans)
        if len(tokens) > 1
    ]
    wanted_terms, wanted_grads = trained(model, one_by_one)
    torch.testing.assert_close(terms, wanted_terms, rtol=tolerance, atol=tolerance)
    assert grads.keys() == wanted_grads.keys()
    for name, grad in grads.items():
        scale = wanted_grads[name].abs().max().item()
        torch.testing.assert_close(
            grad, wanted_grads[name], rtol=0, atol=tolerance * max(1.0, scale), msg=name
        )


def test_terms_are_those_of_the_reference():
    config, model = tiny_config(), in_double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    terms, _ = trained(model, [packed(SPANS)])
    wanted = [
        term
        for tokens, inside in alone(SPANS)
        if len(tokens) > 1
        for term in reference.terms(weights, config, tokens, inside or []).values()
    ]
    # As far as positions in fp32 allow.
    torch.testing.assert_close(terms, torch.stack(wanted), rtol=1e-7, atol=1e-7)


@torch.no_grad()
def test_no_document_sees_another():
    """Bit for bit; and across documents they do, so that the check has power."""
    model = tiny_model(tiny_config())
    rows = random_tokens(sequences=1)
    changed = [list(rows[0])]
    changed[0][4] = (changed[0][4] + 11) % 37
    for documents, sees in ((DOCUMENTS[:1], False), (None, True)):
        batch, other = (
            collate(tokens, [[(2, 7), (12, 16)]], documents=documents) for tokens in (rows, changed)
        )
        before, after = (model(one).terms[: one.num_scored] for one in (batch, other))
        later = batch.scored[: batch.num_scored] >= 9
        assert torch.equal(before[later], after[later]) != sees
        assert not torch.equal(before, after)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_nothing(recompute: Recompute):
    config = tiny_config()
    plain = tiny_model(config)
    again = SemiCausal(config, recompute=recompute)
    again.load_state_dict(plain.state_dict())
    terms, grads = trained(plain, [packed(SPANS)])
    same_terms, same_grads = trained(again.eval(), [packed(SPANS)])
    assert torch.equal(terms, same_terms)
    assert all(torch.equal(grad, same_grads[name]) for name, grad in grads.items())


def test_one_document_a_row_is_plain_causal_attention():
    """Bit for bit, for it is the same call."""
    model = tiny_model(tiny_config())
    rows, spans = random_tokens(sequences=2), [[(2, 7)], [(12, 16)]]
    masked = collate(rows, spans, documents=[[(0, SLOTS + 1)]] * 2)
    assert masked.documents is not None
    terms, grads = trained(model, [masked])
    wanted_terms, wanted_grads = trained(model, [collate(rows, spans)])
    assert torch.equal(terms, wanted_terms)
    assert all(torch.equal(grad, wanted_grads[name]) for name, grad in grads.items())
