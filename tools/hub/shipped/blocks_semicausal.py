"""Positions, attention of the decoder, and blocks, for transformers.

Letters in shapes: B sequences, S slots, K keys, H decoder width, A heads, G heads of keys and
values, D width of a head.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Absolute positions [...] as vectors [..., width]: sines in the first half, then cosines."""
    half = width // 2
    places = torch.arange(half, device=positions.device)
    frequencies = torch.exp(places * -(math.log(10_000.0) / max(half - 1, 1)))
    angles = positions[..., None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width % 2))


def rotation(
    positions: Tensor, width: int, theta: float, scaling: dict[str, Any] | None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., 1, width] by which queries and keys at these positions are turned."""
    steps = torch.arange(0, width, 2, device=positions.device).float()
    angles = positions[..., None].float() * stretched(theta ** (-steps / width), scaling)
    angles = torch.cat([angles, angles], dim=-1)[..., None, :]
    return angles.cos(), angles.sin()


def stretched(frequencies: Tensor, scaling: dict[str, Any] | None) -> Tensor:
    """Frequencies of a rope that was stretched for longer texts, as transformers has them."""
    if scaling is None:
        return frequencies
    long = frequencies / scaling["factor"]
    if scaling["kind"] == "linear":
        return long
    low, high = scaling["low_factor"], scaling["high_factor"]
    turns = scaling["original_tokens"] * frequencies / (2 * math.pi)
    share = (turns - low) / (high - low)
    between = (1 - share) * long + share * frequencies
    return torch.where(turns < low, long, torch.where(turns > high, frequencies, between))


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions, halves of a head's channels against each other."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines.to(x.dtype) + torch.cat([-second, first], dim=-1) * sines.to(x.dtype)


class Reach:
    """Which keys each new slot sees: those up to itself that are no padding.

    Args:
        slots: [S] places of the new slots among all.
        mask: [B, K] of all slots so far, 0 on padding; or [B, 1, S, K], what each slot sees, as
            caches of fixed size bring it; None without padding.
        starts: whether there are no slots before the new ones.
    """

    def __init__(self, slots: Tensor, mask: Tensor | None, *, starts: bool):
        self._slots = slots
        self._given = mask
        self._is_plain = starts and mask is None
        self._masks: dict[int, Tensor | None] = {}

    def mask(self, num_keys: int) -> Tensor | None:
        """[B or 1, 1, S, K] what each slot sees of the keys; None where it is plainly causal."""
        if num_keys not in self._masks:
            self._masks[num_keys] = self._made(num_keys)
        return self._masks[num_keys]

    def _made(self, num_keys: int) -> Tensor | None:
        given = self._given
        if self._is_plain and num_keys == len(self._slots):
            return None
        if given is not None and given.ndim == 4:
            return given[..., :num_keys]
        keys = torch.arange(num_keys, device=self._slots.device)
        mask = (keys <= self._slots[:, None])[None, None]
        if given is None:
            return mask
        real = F.pad(given.bool(), (0, max(0, num_keys - given.shape[1])))[:, :num_keys]
        # A slot of padding sees itself, so that nothing divides by zero.
        return mask & real[:, None, None, :] | (keys == self._slots[:, None])


class CausalAttention(nn.Module):
    """Attention of the decoder, with rotary positions and grouped keys and values where asked."""

    def __init__(self, shape: dict[str, Any], layer: int):
        super().__init__()
        width, heads = shape["width"], shape["heads"]
        biases = shape.get("biases", "all")
        self.layer = layer
        self.kv_heads = shape.get("kv_heads") or heads
        self.head_width = shape.get("head_width") or width // heads
        fused = (heads + 2 * self.kv_heads) * self.head_width
        self.qkv = nn.Linear(width, fused, bias=biases != "none")
        self.out = nn.Linear(heads * self.head_width, width, bias=biases == "all")

    def forward(
        self,
        x: Tensor,
        reach: Reach,
        turns: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
        slots: Tensor,
    ) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        B, S, _ = x.shape
        # Group after group: the queries of a group, its key, its value.
        qkv = self.qkv(x).view(B, S, self.kv_heads, -1, self.head_width)
        query = qkv[..., :-2, :].reshape(B, S, -1, self.head_width)
        key, value = qkv[..., -2, :], qkv[..., -1, :]
        if turns is not None:
            query, key = turned(query, *turns), turned(key, *turns)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if cache is not None:
            key, value = cache.update(key, value, self.layer, {"cache_position": slots})
        shared = query.shape[1] // self.kv_heads
        if shared > 1:
            key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        mask = reach.mask(key.shape[2])
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        return self.out(mixed.transpose(1, 2).reshape(B, S, -1))


class FeedForward(nn.Module):
    """Linear, GELU, linear; or with a gate (SwiGLU)."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        width, hidden = shape["width"], shape["feed_forward"]
        has_bias = shape.get("biases", "all") == "all"
        self.activation = shape.get("activation", "gelu")
        if self.activation == "swiglu":
            self.gate = nn.Linear(width, hidden, bias=has_bias)
        self.up = nn.Linear(width, hidden, bias=has_bias)
        self.down = nn.Linear(hidden, width, bias=has_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[.., width] -> [.., width]."""
        if self.activation == "swiglu":
            return self.down(F.silu(self.gate(x)) * self.up(x))
        if self.activation == "quick_gelu":
            hidden = self.up(x)
            return self.down(hidden * torch.sigmoid(1.702 * hidden))
        approximate = "tanh" if self.activation == "gelu_tanh" else "none"
        return self.down(F.gelu(self.up(x), approximate=approximate))


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[.., width] -> [.., width]."""
        return x * self.weight


class Block(nn.Module):
    """Attention and feed-forward, each with a residual and a norm before or behind it."""

    def __init__(self, shape: dict[str, Any], attention: nn.Module):
        super().__init__()
        norm = shape.get("norm", "deepnorm")
        self.is_pre_norm = norm == "pre"
        self.alpha = (2 * shape["num_layers"]) ** 0.25 if norm == "deepnorm" else 1.0
        self.attention = attention
        self.attention_norm = norm_of(shape)
        self.feed_forward = FeedForward(shape)
        self.feed_forward_norm = norm_of(shape)
        is_scaled = shape.get("layer_scale") is not None
        self.attention_scale = Scale(shape["width"]) if is_scaled else nn.Identity()
        self.feed_forward_scale = Scale(shape["width"]) if is_scaled else nn.Identity()

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """[.., width] -> [.., width]; `context` goes to the attention."""
        if self.is_pre_norm:
            x = x + self.attention_scale(self.attention(self.attention_norm(x), *context))
            return x + self.feed_forward_scale(self.feed_forward(self.feed_forward_norm(x)))
        mixed = self.attention_scale(self.attention(x, *context))
        x = self.attention_norm(self.alpha * x + mixed)
        hidden = self.feed_forward_scale(self.feed_forward(x))
        return self.feed_forward_norm(self.alpha * x + hidden)


def norm_of(shape: dict[str, Any], *, width: int | None = None) -> nn.Module:
    """The norm that a decoder or encoder has throughout."""
    kind = nn.RMSNorm if shape.get("norm_layer") == "rms_norm" else nn.LayerNorm
    return kind(width or shape["width"], eps=shape.get("norm_epsilon", 1e-5))
