"""Semi-causal language model (MetaLM) for transformers: spans are read by a bidirectional encoder.

Every slot of the decoder holds a token, or a vector that the encoder made of the token there:
tokens of a span are read in both directions, each span alone, and the decoder reads all slots
causally.

Source: Language Models are General-Purpose Interfaces (2206.06336).

Letters in shapes: B sequences, S slots, K keys, H decoder width, E encoder width, A heads, G heads
of keys and values, D width of a head, N spans, L rows of the longest span, V vocabulary.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_semicausal import SemicausalConfig

UNSCORED = -100
USUAL_EMBEDDING_SCALE = 50.0
NUM_BUCKETS = 32
MAX_DISTANCE = 128
_CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Absolute positions [...] as vectors [..., width]: sines in the first half, then cosines."""
    half = width // 2
    places = torch.arange(half, device=positions.device)
    frequencies = torch.exp(places * -(math.log(10_000.0) / max(half - 1, 1)))
    angles = positions[..., None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width % 2))


def rotation(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., 1, width] by which queries and keys at these positions are turned."""
    steps = torch.arange(0, width, 2, device=positions.device).float()
    angles = positions[..., None].float() * theta ** (-steps / width)
    angles = torch.cat([angles, angles], dim=-1)[..., None, :]
    return angles.cos(), angles.sin()


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions, halves of a head's channels against each other."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines.to(x.dtype) + torch.cat([-second, first], dim=-1) * sines.to(x.dtype)


def distance_buckets(longest: int, device: torch.device) -> Tensor:
    """T5's bucket [L, L] of the distance from each query row to each key row."""
    rows = torch.arange(longest, device=device)
    distance = rows[None, :] - rows[:, None]
    half = NUM_BUCKETS // 2
    exact = half // 2
    far = distance.abs()
    ratio = torch.log(far.clamp(min=exact).float() / exact) / math.log(MAX_DISTANCE / exact)
    logarithmic = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(far < exact, far, logarithmic) + half * (distance > 0).long()


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


class SpanAttention(nn.Module):
    """Attention of an encoder: every row of a span sees all of it."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        self.heads = shape["heads"]
        self.qkv = nn.Linear(shape["width"], 3 * shape["width"])
        self.out = nn.Linear(shape["width"], shape["width"])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[N, L, E] -> [N, L, E]; `bias` [N, A, L, L] is added to the scores."""
        N, L, E = x.shape
        parts = self.qkv(x).view(N, L, self.heads, 3, -1).unbind(dim=3)
        query, key, value = (part.transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(x.dtype))
        return self.out(mixed.transpose(1, 2).reshape(N, L, E))


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
        approximate = "tanh" if self.activation == "gelu_tanh" else "none"
        return self.down(F.gelu(self.up(x), approximate=approximate))


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

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """[.., width] -> [.., width]; `context` goes to the attention."""
        if self.is_pre_norm:
            x = x + self.attention(self.attention_norm(x), *context)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(self.alpha * x + self.attention(x, *context))
        return self.feed_forward_norm(self.alpha * x + self.feed_forward(x))


def norm_of(shape: dict[str, Any], *, width: int | None = None) -> nn.Module:
    """The norm that a decoder or encoder has throughout."""
    kind = nn.RMSNorm if shape.get("norm_layer") == "rms_norm" else nn.LayerNorm
    return kind(width or shape["width"], eps=shape.get("norm_epsilon", 1e-5))


class Decoder(nn.Module):
    """Token embedding, causal blocks and the head."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        self.shape = shape
        self.embedding: nn.Module = nn.Embedding(shape["vocabulary"], shape["width"])
        if shape.get("positions") == "learned":
            self.positions = nn.Embedding(shape["max_tokens"], shape["width"])
        blocks = (
            Block(shape, CausalAttention(shape, layer)) for layer in range(shape["num_layers"])
        )
        self.blocks = nn.ModuleList(blocks)
        is_pre = shape["norm"] == "pre"
        self.final_norm = norm_of(shape) if is_pre else nn.Identity()
        self.head: nn.Module = nn.Linear(shape["width"], shape["vocabulary"], bias=False)

    def forward(
        self, inputs: Tensor, positions: Tensor, reach: Reach, cache: Cache | None, slots: Tensor
    ) -> tuple[Tensor, ...]:
        """The states [B, S, H] before each block, and those that the head reads."""
        shape = self.shape
        kind = shape.get("positions", "sinusoidal")
        x = inputs * shape.get("embedding_scale", USUAL_EMBEDDING_SCALE)
        turns = None
        if kind == "rope":
            width = shape.get("head_width") or shape["width"] // shape["heads"]
            turns = rotation(positions, width, shape["rope_theta"])
        elif kind == "learned":
            x = x + self.positions(positions)
        else:
            x = x + sinusoids(positions, shape["width"]).to(x.dtype)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], reach, turns, cache, slots))
        states[-1] = self.final_norm(states[-1])
        return tuple(states)


class TextEncoder(nn.Module):
    """Reads spans of tokens, each alone and behind a start token, in both directions."""

    def __init__(self, shape: dict[str, Any], vocabulary: int):
        super().__init__()
        self.shape = shape
        inner = shape.get("embedding_width") or shape["width"]
        self.embedding = nn.Embedding(vocabulary, inner)
        self.positions = nn.Embedding(shape["max_tokens"], inner)
        self.embedding_norm = norm_of(shape, width=inner)
        if inner != shape["width"]:
            self.widening = nn.Linear(inner, shape["width"])
        if shape.get("relative_positions", True):
            self.relative_bias = nn.Embedding(NUM_BUCKETS, shape["heads"])
        blocks = (Block(shape, SpanAttention(shape)) for _ in range(shape["num_layers"]))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, is_real: Tensor) -> Tensor:
        """Vectors [N, L, E] of spans [N, L], start rows included."""
        L = tokens.shape[1]
        x = self.embedding(tokens) + self.positions(torch.arange(L, device=tokens.device))
        x = self.embedding_norm(x)
        if hasattr(self, "widening"):
            x = self.widening(x)
        bias = x.new_zeros(1, 1, L, L)
        if hasattr(self, "relative_bias"):
            bias = self.relative_bias(distance_buckets(L, tokens.device)).permute(2, 0, 1)[None]
        bias = bias.masked_fill(~is_real[:, None, None, :], float("-inf"))
        for block in self.blocks:
            x = block(x, bias)
        return x


class Connector(nn.Module):
    """Linear layers with GELU between them, from an encoder's width to the decoder's."""

    def __init__(self, shape: dict[str, Any], encoder_width: int, width: int):
        super().__init__()
        num_layers = 1 if shape["kind"] == "linear" else shape["num_layers"]
        widths = [encoder_width, *[width] * num_layers]
        layers = (nn.Linear(*sizes) for sizes in pairwise(widths))
        self.layers = nn.ModuleList(layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """[M, E] -> [M, H]."""
        *hidden, last = self.layers
        for layer in hidden:
            vectors = F.gelu(layer(vectors))
        return last(vectors)


def laid_out(
    tokens: Tensor, spans: Tensor, *, start_token: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The spans of a batch, one a row behind its start token.

    Args:
        tokens: [B, S].
        spans: [B, S] number of the span that each slot lies in, counted from 1 in its row; else 0.
        start_token: opens each span.

    Returns:
        Tokens [N, L], which of them are real, and [M] the slot in B*S of each that is no start;
        None where there is no span.
    """
    names = spans + torch.arange(len(spans), device=spans.device)[:, None] * (spans.max() + 1)
    slots = (spans > 0).view(-1).nonzero()[:, 0]
    if not len(slots):
        return None
    _, lengths = names.reshape(-1)[slots].unique_consecutive(return_counts=True)
    firsts = lengths.cumsum(0) - lengths
    if not (slots.diff()[~torch.isin(torch.arange(1, len(slots)).to(slots), firsts)] == 1).all():
        raise ValueError("spans: the slots of one span do not follow each other")
    columns = torch.arange(int(lengths.max()) + 1, device=tokens.device)
    is_real = columns <= lengths[:, None]
    laid = tokens.new_full(is_real.shape, start_token)
    laid[is_real & (columns > 0)] = tokens.reshape(-1)[slots]
    return laid, is_real, slots


class SemicausalForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal decoder that also reads what a bidirectional encoder makes of marked spans."""

    config_class = SemicausalConfig
    config: SemicausalConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_cache_class = True
    _no_split_modules = ("Block",)
    _tied_weights_keys = {"decoder.head.weight": "decoder.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: SemicausalConfig):
        super().__init__(config)
        shape: dict[str, Any] = config.shape
        decoder, encoders = shape["decoder"], shape["encoders"]
        self.decoder = Decoder(decoder)
        self.encoders, self.connectors = nn.ModuleDict(), nn.ModuleDict()
        for modality, part in encoders.items():
            self.encoders[modality] = TextEncoder(part["encoder"], decoder["vocabulary"])
            self.connectors[modality] = Connector(
                part["connector"], part["encoder"]["width"], decoder["width"]
            )
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As transformers does, but no weight is ever left random or unread.

        Raises:
            ValueError: tensors are missing, left over or of another shape; the message names them.
        """
        wants_info = options.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*arguments, output_loading_info=True, **options)
        model, info = loaded
        faults = [
            f"{what} {', '.join(sorted(map(str, info[key])))}"
            for key, what in (
                ("missing_keys", "it lacks"),
                ("unexpected_keys", "it has left over"),
                ("mismatched_keys", "of another shape are"),
            )
            if info.get(key)
        ]
        if faults:
            raise ValueError(f"the checkpoint is not of this model: {'; '.join(faults)}")
        return (model, info) if wants_info else model

    def get_input_embeddings(self) -> nn.Module:
        """Of tokens that no span holds."""
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces them."""
        self.decoder.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.decoder.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces it."""
        self.decoder.head = new_embeddings

    def embed(self, input_ids: Tensor, spans: Tensor | None = None) -> Tensor:
        """Decoder inputs [B, S, H]: token embeddings, and vectors over the slots of spans.

        Raises:
            ValueError: the model has no encoder, or a span is longer than it reads.
        """
        x = self.decoder.embedding(input_ids)
        if spans is None or not spans.any():
            return x
        if not self.encoders:
            raise ValueError("spans: the model has no encoder that could read them")
        encoder: Any
        ((modality, encoder),) = self.encoders.items()
        laid = laid_out(input_ids, spans, start_token=encoder.shape["start_token"])
        assert laid is not None, "there is a span"
        tokens, is_real, slots = laid
        if tokens.shape[1] > encoder.shape["max_tokens"]:
            raise ValueError(
                f"spans: one has {tokens.shape[1] - 1} tokens, and the encoder reads "
                f"{encoder.shape['max_tokens'] - 1}: shorten it"
            )
        is_vector = is_real.clone()
        is_vector[:, 0] = False
        vectors = self.connectors[modality](encoder(tokens, is_real)[is_vector])
        return x.view(-1, x.shape[-1]).index_copy(0, slots, vectors.to(x.dtype)).view(x.shape)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        spans: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits of each slot, and the loss where there are labels.

        Args:
            input_ids: [B, S] tokens, those of spans included.
            attention_mask: [B, K] 0 on padding, which may lie on either side.
            position_ids: [B, S]; by default slots are counted, padding left out.
            past_key_values: of the slots before, as transformers 4 calls them.
            cache: the same, as transformers 5 does.
            inputs_embeds: [B, S, H] instead of tokens.
            labels: [B, S] tokens to predict, each by the slot before it; -100 is not scored.
            use_cache: whether to return keys and values.
            output_hidden_states: whether to return the states before each block and the last.
            return_dict: whether to return an object rather than a tuple.
            cache_position: [S] places of the new slots.
            logits_to_keep: how many of the last slots have logits, or which; 0 is all.
            spans: [B, S] number of the span that each slot lies in, counted from 1 in each row, and
                0 outside; spans lie wholly in `input_ids`.
            kwargs: what other models know, and this one does not need.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, spans)
        B, S, _ = inputs_embeds.shape
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        past = 0 if cache is None else int(cache.get_seq_length())
        slots = cache_position
        if slots is None:
            slots = torch.arange(past, past + S, device=inputs_embeds.device)
        if attention_mask is not None and attention_mask.ndim == 2 and bool(attention_mask.all()):
            attention_mask = None
        if position_ids is None:
            position_ids = slots[None].expand(B, S)
            if attention_mask is not None and attention_mask.ndim == 2:
                counted = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
                position_ids = counted[:, past : past + S]
        if self.decoder.shape.get("positions", "sinusoidal") != "rope":
            most = self.config.max_position_embeddings
            if int(position_ids.max()) >= most:
                raise ValueError(f"the decoder has {most} positions: shorten the input")
        reach = Reach(slots, attention_mask, starts=past == 0)
        states = self.decoder(inputs_embeds, position_ids, reach, cache, slots)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if isinstance(logits_to_keep, int) and logits_to_keep == 0:
            kept = slice(None)
        logits = self.decoder.head(states[-1][:, kept]).float()
        loss: Any = None
        if labels is not None:
            targets = F.pad(labels[:, 1:], (0, 1), value=UNSCORED)
            loss = F.cross_entropy(
                logits.flatten(0, 1), targets[:, kept].flatten(), ignore_index=UNSCORED
            )
        told: dict[str, Any] = {"loss": loss, "logits": logits}
        told[_CACHE] = cache if use_cache else None
        told["hidden_states"] = states if output_hidden_states else None
        output = CausalLMOutputWithPast(**told)
        return output if return_dict is None or return_dict else output.to_tuple()

    def prepare_inputs_for_generation(
        self, input_ids: Any, *args: Any, spans: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Spans lie in the prompt: what is generated is read as plain tokens."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if spans is not None and inputs.get("input_ids") is not None:
            spans = F.pad(spans, (0, input_ids.shape[1] - spans.shape[1]))
            spans = spans[:, -inputs["input_ids"].shape[1] :]
            inputs["spans"] = spans if spans.any() else None
        return inputs
