"""Rows that are computed for the shape's sake change no number, and their number repeats."""

import pytest
import torch
from torch import Tensor

from model.batch import Batch
from model.semicausal import SemiCausal
from model.steady import ROWS_MULTIPLE, steady_rows
from tests.model.examples import collate, random_tokens, tiny_config, tiny_model


@pytest.mark.parametrize("num_rows", [1, 63, 64, 65, 100, 130])
def test_numbers_of_rows(num_rows: int) -> None:
    half, exact = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    assert steady_rows(num_rows, like=exact, room=1000) == num_rows
    rows = steady_rows(num_rows, like=half, room=1000)
    assert rows % ROWS_MULTIPLE == 0
    assert num_rows <= rows < num_rows + ROWS_MULTIPLE
    assert steady_rows(num_rows, like=half, room=num_rows) == num_rows
    meta = torch.zeros(1, dtype=torch.bfloat16, device="meta")
    assert steady_rows(num_rows, like=meta, room=1000) == num_rows


def gradients(model: SemiCausal, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(batch)
    loss.total.backward()
    assert loss.terms[batch.num_scored :].count_nonzero() == 0
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"loss": loss.total, **found}


@pytest.mark.parametrize("room", [24, 9])
@pytest.mark.parametrize(
    "spans",
    [[[(2, 7), (9, 12)], [(1, 3)]], [[], []], [[(1, 6)], []]],
    ids=["several", "none", "one"],
)
def test_rows_beyond_change_nothing(
    spans: list[list[tuple[int, int]]], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32, as if its products were compiled too: what lies beyond has no share in anything."""
    model = tiny_model(tiny_config(chunk=64))
    batch = collate(random_tokens(sequences=2), spans, room=room)
    wanted = gradients(model, batch)
    rows: list[tuple[int, int]] = []

    def noted(num_rows: int, *, like: Tensor, room: int) -> int:
        rows.append((num_rows, steady_rows(num_rows, like=like, room=room)))
        return rows[-1][1]

    monkeypatch.setattr("model.steady.COMPILED_FOR", (torch.float32,))
    for module in ("model.encoders.text", "model.batch", "model.loss"):
        monkeypatch.setattr(f"{module}.steady_rows", noted)
    found = gradients(model, batch)
    assert len(rows) == 3, "the encoder's rows, the connector's vectors, the head's chunk"
    assert any(more > real for real, more in rows)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
