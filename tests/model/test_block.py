"""Residuals, constants and first weights against independent implementations."""

import math

import pytest
import torch
from torch import Tensor, nn

from model.attention import CausalSelfAttention, SpanSelfAttention
from model.block import Block, NormKind, deepnorm_constants
from model.decoder import sinusoids
from model.layers import Layers, initialize
from model.style import USUAL_STYLE, Style
from tests.model import reference

WIDTH, HEADS, HIDDEN = 24, 3, 40


def test_deepnorm_constants_of_the_paper():
    alpha, beta = deepnorm_constants(24)
    assert alpha == pytest.approx(2.6321, abs=5e-5)
    assert beta == pytest.approx(0.2686, abs=5e-5)


def causal_block(norm: NormKind, *, width: int = WIDTH, depth: int = 2, **sizes: int) -> Block:
    return Block(
        width=width,
        heads=sizes.get("heads", HEADS),
        hidden=sizes.get("hidden", HIDDEN),
        attention=CausalSelfAttention,
        layers=Layers(),
        style=Style(norm=norm),
        depth=depth,
    )


def torch_layer(block: Block, norm: NormKind) -> nn.TransformerEncoderLayer:
    """PyTorch's own layer with the same weights."""
    layer = nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        HIDDEN,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=norm == "pre",
        dtype=torch.float64,
    )
    ours = dict(block.named_parameters())
    size = WIDTH // HEADS
    parts = ours["attention.qkv.weight"].view(HEADS, 3, size, WIDTH).transpose(0, 1)
    offsets = ours["attention.qkv.bias"].view(HEADS, 3, size).transpose(0, 1)
    state = {
        "self_attn.in_proj_weight": parts.reshape(-1, WIDTH),
        "self_attn.in_proj_bias": offsets.reshape(-1),
    }
    for theirs, name in {
        "self_attn.out_proj": "attention.out",
        "linear1": "feed_forward.up",
        "linear2": "feed_forward.down",
        "norm1": "attention_norm",
        "norm2": "feed_forward_norm",
    }.items():
        for kind in ("weight", "bias"):
            state[f"{theirs}.{kind}"] = ours[f"{name}.{kind}"]
    layer.load_state_dict(state)
    return layer


@pytest.mark.parametrize("norm", ["pre", "deepnorm"])
def test_causal_block_equals_torch(norm: NormKind):
    torch.manual_seed(0)
    block = causal_block(norm).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    block.alpha = 1.0  # DeepNorm without its residual scale is a plain post-norm layer
    layer = torch_layer(block, norm)
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    out = block(mine.flatten(0, 1), len(mine)).view(mine.shape)
    wanted = layer(theirs, src_mask=mask, is_causal=True)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    (out**3).sum().backward()
    (wanted**3).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def std(weight: Tensor) -> float:
    return weight.double().std().item()


@pytest.mark.parametrize("attention", [CausalSelfAttention, SpanSelfAttention])
def test_first_weights_of_deepnorm(
    attention: type[CausalSelfAttention] | type[SpanSelfAttention],
):
    width, hidden, heads, depth = 128, 512, 4, 24
    block = Block(
        width=width,
        heads=heads,
        hidden=hidden,
        attention=attention,
        layers=Layers(),
        style=USUAL_STYLE,
        depth=depth,
    )
    initialize(block, seed=1)
    beta = (8 * depth) ** -0.25
    square = math.sqrt(2 / (width + width))
    oblong = math.sqrt(2 / (width + hidden))
    weights = dict(block.named_parameters())
    parts = weights["attention.qkv.weight"].view(heads, 3, -1, width)
    assert std(parts[:, 0]) == pytest.approx(square, rel=0.03)
    assert std(parts[:, 1]) == pytest.approx(square, rel=0.03)
    assert std(parts[:, 2]) == pytest.approx(beta * square, rel=0.03)
    assert std(weights["attention.out.weight"]) == pytest.approx(beta * square, rel=0.03)
    assert std(weights["feed_forward.up.weight"]) == pytest.approx(beta * oblong, rel=0.03)
    assert std(weights["feed_forward.down.weight"]) == pytest.approx(beta * oblong, rel=0.03)
    assert not torch.equal(parts[:, 0], parts[:, 1])
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert weight.count_nonzero() == 0, name
        if "norm.weight" in name:
            assert (weight == 1).all(), name


def test_first_weights_of_pre_norm():
    block = causal_block("pre", width=128, depth=8, hidden=512, heads=4)
    initialize(block, seed=1)
    weights = dict(block.named_parameters())
    wanted = {
        "attention.qkv.weight": 0.02,
        "attention.out.weight": 0.02 / 4,
        "feed_forward.up.weight": 0.02,
        "feed_forward.down.weight": 0.02 / 4,
    }
    for name, value in wanted.items():
        assert std(weights[name]) == pytest.approx(value, rel=0.03), name


@pytest.mark.parametrize("width", [8, 16, 64])
def test_sinusoids_equal_the_formula(width: int):
    table = sinusoids(512, width)
    wanted = torch.stack([reference.sinusoid(position, width) for position in range(512)])
    # Angles are taken in fp32: at position 511 half a unit in the last place is 3e-5.
    torch.testing.assert_close(table.double(), wanted, rtol=0, atol=1e-4)


def test_sinusoids_of_an_odd_width_end_in_zeros():
    table = sinusoids(7, 9)
    assert table.shape == (7, 9)
    assert table[:, -1].count_nonzero() == 0
    assert torch.equal(table[:, :-1], sinusoids(7, 8))
