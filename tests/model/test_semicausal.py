"""The model against the brute-force reference, and against itself without encoders."""

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from model.batch import UNSCORED, Batch
from model.layers import initialize
from model.semicausal import ModelConfig, SemiCausal, parameter_counts
from tests.model import reference
from tests.model.examples import (
    SLOTS,
    Range,
    collate,
    random_tokens,
    tiny_config,
    tiny_model,
)

Norm = Literal["deepnorm", "pre"]
NORMS: list[Norm] = ["deepnorm", "pre"]

LAYOUTS: dict[str, list[list[Range]]] = {
    "one span": [[(4, 9)]],
    "several spans": [[(2, 5), (7, 8), (10, 22)]],
    "adjacent spans": [[(1, 5), (5, 9), (9, 11)]],
    "span at the end": [[(3, 6), (SLOTS - 5, SLOTS)]],
    "no span": [[]],
    "uneven sequences": [[(1, 3), (8, 12), (12, 20)], [], [(SLOTS - 12, SLOTS)]],
}


def expected_terms(
    weights: reference.Weights,
    config: ModelConfig,
    sequences: list[list[int]],
    spans: list[list[Range]],
) -> Tensor:
    """Reference losses in the order of the batch's scored slots."""
    losses: list[Tensor] = []
    for tokens, ranges in zip(sequences, spans, strict=True):
        by_target = reference.terms(weights, config, tokens, ranges)
        losses += [by_target[t] for t in sorted(by_target)]
    return torch.stack(losses)


def leaf_weights(model: SemiCausal) -> dict[str, Tensor]:
    """The reference works in double precision whatever the model does."""
    return {
        name: parameter.detach().clone().double().requires_grad_()
        for name, parameter in model.named_parameters()
    }


def assert_same_gradients(
    model: SemiCausal, weights: dict[str, Tensor], *, tolerance: float
) -> None:
    for name, parameter in model.named_parameters():
        wanted = weights[name].grad
        wanted = torch.zeros_like(weights[name]) if wanted is None else wanted
        assert parameter.grad is not None, name
        error = (parameter.grad - wanted).abs().max().item()
        # Sums over the batch reach tens: relative to the weight's own largest gradient.
        assert error <= tolerance * max(1.0, wanted.abs().max().item()), (name, error)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_terms_and_gradients_equal_the_reference(layout: str, norm: Norm):
    spans = LAYOUTS[layout]
    sequences = random_tokens(sequences=len(spans))
    config = tiny_config(norm)
    model = tiny_model(config)
    batch = collate(sequences, spans)
    weights = leaf_weights(model)
    wanted = expected_terms(weights, config, sequences, spans)
    wanted.sum().backward()

    loss = model(batch)
    loss.total.backward()

    assert batch.num_scored == len(wanted)
    terms = loss.terms[: batch.num_scored].double()
    torch.testing.assert_close(terms, wanted, rtol=1e-5, atol=1e-5)
    assert loss.terms[batch.num_scored :].count_nonzero() == 0
    torch.testing.assert_close(loss.total.double(), wanted.sum(), rtol=1e-5, atol=1e-5)
    assert_same_gradients(model, weights, tolerance=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_and_gradients_equal_the_reference_in_double_precision(layout: str, norm: Norm):
    # The head works in fp32 by design, so the loss is taken over full logits here.
    spans = LAYOUTS[layout]
    sequences = random_tokens(sequences=len(spans), seed=1)
    config = tiny_config(norm)
    model = tiny_model(config, dtype=torch.float64)
    table = torch.stack([reference.sinusoid(p, config.decoder.width) for p in range(40)])
    torch.testing.assert_close(model.decoder.positions, table, rtol=0, atol=5e-6)
    model.decoder.positions.copy_(table)  # the model's own table is rounded to fp32
    batch = collate(sequences, spans)
    weights = leaf_weights(model)
    wanted = expected_terms(weights, config, sequences, spans)
    wanted.sum().backward()

    states = model.decoder(model.inputs(batch.tokens, dict(batch.spans)))
    losses = F.cross_entropy(
        (states @ model.decoder.embedding.weight.t()).flatten(0, 1),
        batch.labels.flatten(),
        ignore_index=UNSCORED,
        reduction="none",
    )
    losses.sum().backward()

    chosen = losses[batch.scored[: batch.num_scored]]
    torch.testing.assert_close(chosen, wanted, rtol=1e-10, atol=1e-10)
    assert_same_gradients(model, weights, tolerance=1e-10)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_chunk_size_does_not_change_the_loss(chunk: int):
    spans = LAYOUTS["uneven sequences"]
    sequences = random_tokens(sequences=3)
    batch = collate(sequences, spans)
    assert batch.num_scored < batch.scored.numel(), "the capacity has slack"
    whole, chunked = tiny_model(tiny_config(chunk=64)), tiny_model(tiny_config(chunk=chunk))
    losses = [model(batch) for model in (whole, chunked)]
    for loss in losses:
        loss.total.backward()
    torch.testing.assert_close(losses[0].terms, losses[1].terms, rtol=1e-6, atol=1e-6)
    for a, b in zip(whole.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_span_tokens_enter_the_decoder_as_vectors_alone():
    """The word embedding of a token that lies inside spans only has no effect on any state."""
    tokens, spans = random_tokens()[0], [(6, 11)]
    tokens = [token if token != 36 else 0 for token in tokens]
    tokens[6] = tokens[8] = tokens[10] = 36
    batch = collate([tokens], [spans])
    model = tiny_model(tiny_config())
    before = model.decoder(model.inputs(batch.tokens, dict(batch.spans)))
    with torch.no_grad():
        model.decoder.embedding.weight[36] += 1.0
    after = model.decoder(model.inputs(batch.tokens, dict(batch.spans)))
    assert torch.equal(before, after)


def test_order_of_sequences_does_not_matter():
    spans = LAYOUTS["uneven sequences"]
    sequences = random_tokens(sequences=3)
    model = tiny_model(tiny_config())
    total = model(collate(sequences, spans)).total
    turned = model(collate(sequences[::-1], spans[::-1])).total
    apart = sum(
        (model(collate([s], [r])).total for s, r in zip(sequences, spans, strict=True)),
        start=torch.tensor(0.0),
    )
    torch.testing.assert_close(total, turned, rtol=1e-6, atol=0)
    torch.testing.assert_close(total, apart, rtol=1e-6, atol=0)


# A model without spans is a GPT.


def gradients(model: SemiCausal, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model(batch)
    loss.total.backward()
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return loss.total, found


@pytest.mark.parametrize("norm", NORMS)
def test_without_spans_the_model_is_a_gpt_to_the_last_bit(norm: Norm):
    sequences = random_tokens(sequences=2)
    gpt = SemiCausal(tiny_config(norm, encoder=False))
    mixed = SemiCausal(tiny_config(norm))
    for model in (gpt, mixed):
        initialize(model, seed=7)
    total, wanted = gradients(gpt, collate(sequences, None))
    semi_total, found = gradients(mixed, collate(sequences, [[], []]))
    assert torch.equal(total, semi_total)
    for name, gradient in wanted.items():
        assert torch.equal(found.pop(name), gradient), name
    assert found, "encoder and connector take part in every microbatch"
    for name, gradient in found.items():
        assert gradient.count_nonzero() == 0, name
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("norm", NORMS)
def test_first_weights_depend_on_seed_and_name_alone(norm: Norm):
    def first(*, encoder: bool, seed: int) -> dict[str, Tensor]:
        model = SemiCausal(tiny_config(norm, encoder=encoder))
        torch.manual_seed(torch.seed())  # whatever the global stream holds
        initialize(model, seed=seed)
        return dict(model.named_parameters())

    gpt, mixed, other = (
        first(encoder=False, seed=3),
        first(encoder=True, seed=3),
        first(encoder=False, seed=4),
    )
    assert set(gpt) <= set(mixed)
    for name, weight in gpt.items():
        assert torch.equal(weight, mixed[name]), name
        if name.endswith("weight") and "norm" not in name:
            assert not torch.equal(weight, other[name]), name
    same_shape = "decoder.blocks.{}.feed_forward.up.weight"
    assert not torch.equal(gpt[same_shape.format(0)], gpt[same_shape.format(1)])


@pytest.mark.parametrize("norm", NORMS)
def test_first_loss_is_that_of_a_uniform_guess(norm: Norm):
    path = Path(__file__).parents[2] / "configs/model/tiny.yaml"
    values = yaml.safe_load(path.read_text())["model"]
    values["decoder"]["norm"] = norm
    config = ModelConfig.model_validate(values)
    assert (config.decoder.num_layers, config.decoder.width) == (4, 256)
    model = SemiCausal(config).eval()
    initialize(model, seed=0)
    slots, vocabulary = 128, config.decoder.vocabulary
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (2, slots + 1), generator=generator).tolist()
    batch = collate(tokens, [[(10, 24), (60, 75)], [(100, 115)]], slots=slots)
    with torch.no_grad():
        mean = model(batch).total / batch.num_scored
    assert mean.item() == pytest.approx(math.log(vocabulary), abs=0.1)


# Which parts train.


@pytest.mark.parametrize(("asked", "trained"), [(0, 0), (1, 1), (2, 2), (None, 2)])
def test_only_the_last_layers_of_a_given_encoder_train(asked: int | None, trained: int):
    config = tiny_config(init_from="somewhere", trainable_layers=asked)
    model = tiny_model(config)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    kept = tuple(f"encoders.text.blocks.{layer}." for layer in range(3 - trained, 3))
    wanted = {
        name
        for name, _ in model.named_parameters()
        if name.startswith("encoders.") and not name.startswith(kept or "-")
    }
    assert frozen == wanted
    model(collate(random_tokens(), [[(3, 9)]])).total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name


def test_an_encoder_from_scratch_trains_whole():
    assert all(parameter.requires_grad for parameter in SemiCausal(tiny_config()).parameters())


# Sizes of the paper's models.


def shipped(name: str) -> ModelConfig:
    path = Path(__file__).parents[2] / "configs/model" / f"{name}.yaml"
    return ModelConfig.model_validate(yaml.safe_load(path.read_text())["model"])


def block_parameters(width: int, feed_forward: int) -> int:
    attention = 4 * width * width + 4 * width
    hidden = 2 * width * feed_forward + feed_forward + width
    return attention + hidden + 4 * width


def test_sizes_of_the_language_model():
    counts = parameter_counts(shipped("metalm_1p3b"))
    assert counts["decoder"] == 24 * block_parameters(2048, 8192) + 64_000 * 2048
    assert 1.33e9 < counts["decoder"] < 1.35e9
    assert 366e6 < counts["encoder.text"] < 369e6
    assert counts["encoder.text"] == (
        24 * block_parameters(1024, 4096) + (64_000 + 512 + 2) * 1024 + 32 * 16
    )
    assert counts["connector.text"] == 1024 * 2048 + 2048


def test_size_of_the_vision_language_decoder():
    counts = parameter_counts(shipped("metalm_vl_353m"))
    assert counts["decoder"] == pytest.approx(353.8e6, rel=1e-3)
