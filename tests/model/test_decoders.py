"""Decoders of other kinds: what they read slot by slot, packed, and with keys that heads share."""

from typing import Any

import pytest
import torch

from model.decoder import Decoder
from model.layers import Layers, initialize
from model.reading import Cache, Reading
from model.semicausal import ModelConfig, SemiCausal
from tests.model.examples import collate, random_tokens, tiny_config, tiny_model
from tests.model.test_within import SPANS, alone, packed, trained

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"norm": "pre", "positions": "learned", "activation": "gelu_tanh"},
    "qwen2": {
        "norm": "pre",
        "positions": "rope",
        "norm_layer": "rms_norm",
        "activation": "swiglu",
        "biases": "qkv",
        "heads": 4,
        "kv_heads": 2,
        "head_width": 6,
    },
}


def of_kind(kind: str, **changes: Any) -> ModelConfig:
    config = tiny_config()
    decoder = config.decoder.model_dump() | KINDS[kind] | {"embedding_scale": 20.0} | changes
    return ModelConfig.model_validate(config.model_dump() | {"decoder": decoder})


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_reading_in_pieces_is_reading_at_once(kind: str) -> None:
    """Rows of several lengths, the shorter one behind, then token by token."""
    model = tiny_model(of_kind(kind))
    rows = [random_tokens(sequences=1)[0][:20], random_tokens(sequences=2)[1][:17]]
    cache = Cache()
    states: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for part in ((0, 7), (7, 8), (8, 16), (16, 17)):
        new = [row[slice(*part)] for row in rows]
        reading = Reading.of(new, cache, device=torch.device("cpu"), wants_all=True)
        logits = model(reading).view(2, part[1] - part[0], -1)
        reading.done()
        for row in (0, 1):
            states[row].append(logits[row])
    for row in (0, 1):
        whole = model.decoder(model.inputs(torch.tensor([rows[row][:17]])))
        wanted = model.decoder.head.logits(whole)[0]
        torch.testing.assert_close(torch.cat(states[row]), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_row_is_the_sum_of_its_documents(kind: str) -> None:
    model = tiny_model(of_kind(kind))
    terms, grads = trained(model, [packed(SPANS)])
    one_by_one = [
        collate([tokens], [inside or []]) for tokens, inside in alone(SPANS) if len(tokens) > 1
    ]
    wanted_terms, wanted_grads = trained(model, one_by_one)
    torch.testing.assert_close(terms, wanted_terms, rtol=1e-5, atol=1e-5)
    for name, grad in grads.items():
        scale = max(1.0, wanted_grads[name].abs().max().item())
        torch.testing.assert_close(grad, wanted_grads[name], rtol=0, atol=1e-5 * scale, msg=name)


@torch.no_grad()
def test_shared_keys_are_copies_of_them() -> None:
    """A group's key and value, given to each of its heads, make a decoder without groups."""
    grouped = tiny_model(of_kind("qwen2"))
    single = SemiCausal(of_kind("qwen2", kv_heads=None)).eval()
    values = dict(grouped.state_dict())
    for name in [name for name in values if name.startswith("decoder") and ".qkv." in name]:
        groups = values[name].view(2, 4, 6, *values[name].shape[1:])
        query, key, value = groups[:, :2], groups[:, 2:3], groups[:, 3:]
        heads = torch.stack([query, key.expand_as(query), value.expand_as(query)], dim=2)
        values[name] = heads.reshape(-1, *values[name].shape[1:])
    single.load_state_dict(values)
    tokens = torch.tensor(random_tokens(sequences=2))
    ours, theirs = (model.decoder(model.inputs(tokens)) for model in (grouped, single))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rope_sees_distances_alone() -> None:
    """All positions moved by as much change nothing; one moved alone does."""
    model = tiny_model(of_kind("qwen2"))
    decoder: Decoder = model.decoder
    inputs = model.inputs(torch.tensor(random_tokens(sequences=1)))
    S = inputs.shape[1]

    def states(positions: torch.Tensor) -> torch.Tensor:
        turns = decoder.turns(S, inputs.device, positions=positions[None])
        return decoder.run(decoder.enter(inputs), model.pieces[0], num_sequences=1, turns=turns)

    places = torch.arange(S)
    torch.testing.assert_close(states(places), states(places + 11), rtol=1e-4, atol=1e-4)
    moved = places.clone()
    moved[5:] += 1
    assert (states(places) - states(moved)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "d.kv_heads: 3 groups do not divide 4 heads: choose a divisor"),
        ({"head_width": 5}, "d.positions: rope turns pairs of channels and heads have 5"),
        ({"head_width": None, "heads": 3, "kv_heads": 3}, "d.heads: 3 heads do not divide width"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    faults = list(of_kind("qwen2", **changes).decoder.faults("d"))
    assert len(faults) == 1
    assert message in faults[0]


def test_first_weights_of_groups_are_drawn() -> None:
    """Queries, keys and values alike, and nothing is left unset."""
    model = SemiCausal(of_kind("qwen2"), Layers())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
                module.reset_parameters()
    initialize(model, seed=1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    weight = dict(model.named_parameters())["decoder.blocks.0.attention.qkv.weight"]
    groups = weight.view(2, 4, 6, 16)
    for part in groups.unbind(dim=1):
        assert 0.01 < part.std() < 0.03
