"""Semi-causal language model (MetaLM) for transformers: spans are read by a bidirectional encoder.

Every slot of the decoder holds a token, or a vector that the encoder made of the token there:
tokens of a span are read in both directions, each span alone, and the decoder reads all slots
causally.

Source: Language Models are General-Purpose Interfaces (2206.06336).

Letters in shapes: B sequences, S slots, K keys, H decoder width, E encoder width, A heads, G heads
of keys and values, D width of a head, N spans, L rows of the longest span, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .blocks_semicausal import Block, CausalAttention, Reach, norm_of, rotation, sinusoids
from .configuration_semicausal import SemicausalConfig
from .encoder_semicausal import Connector, TextEncoder, laid_out

UNSCORED = -100
USUAL_EMBEDDING_SCALE = 50.0
_CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"


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
            turns = rotation(positions, width, shape["rope_theta"], shape.get("rope_scaling"))
        elif kind == "learned":
            x = x + self.positions(positions)
        else:
            x = x + sinusoids(positions, shape["width"]).to(x.dtype)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], reach, turns, cache, slots))
        states[-1] = self.final_norm(states[-1])
        return tuple(states)


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
        num_items_in_batch: int | Tensor | None = None,
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
            num_items_in_batch: labels of all microbatches of a step, whose losses then add up to
                the mean over them, as transformers' Trainer expects.
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
                logits.flatten(0, 1),
                targets[:, kept].flatten(),
                ignore_index=UNSCORED,
                reduction="mean" if num_items_in_batch is None else "sum",
            )
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
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
