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
from .encoder_semicausal import Connector, Resampler, TextEncoder, laid_out
from .image_semicausal import ImageEncoder

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
            encoder = part["encoder"]
            self.encoders[modality] = (
                ImageEncoder(encoder)
                if encoder["kind"] == "image"
                else TextEncoder(encoder, decoder["vocabulary"])
            )
            connector = part["connector"]
            self.connectors[modality] = (
                Resampler(connector, encoder, decoder["width"])
                if connector["kind"] == "resampler"
                else Connector(connector, encoder["width"], decoder["width"])
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

    def embed(
        self,
        input_ids: Tensor,
        spans: Tensor | None = None,
        pixel_values: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        pixel_slots: Tensor | None = None,
    ) -> Tensor:
        """Decoder inputs [B, S, H]: token embeddings, and vectors over the slots of spans.

        Args:
            input_ids: as for `forward`, and the others too.
            spans: of text.
            pixel_values: patches of pictures.
            spatial_shapes: their grids.
            pixel_slots: where their vectors go.

        Raises:
            ValueError: the model has no encoder of these, a span is longer than it reads, or
                pictures have more or fewer slots than vectors.
        """
        x = self.decoder.embedding(input_ids)
        if spans is not None and spans.any():
            x = self._with_text(x, input_ids, spans)
        if pixel_values is not None and pixel_slots is not None and pixel_slots.any():
            if spatial_shapes is None:
                raise ValueError("spatial_shapes: rows and columns of each picture are missing")
            x = self._with_pictures(x, pixel_values, spatial_shapes, pixel_slots)
        return x

    def _reader(self, kind: type[nn.Module], name: str) -> tuple[Any, Any]:
        """The encoder of a kind, and the connector behind it."""
        for modality, encoder in self.encoders.items():
            if isinstance(encoder, kind):
                return encoder, self.connectors[modality]
        raise ValueError(f"{name}: the model has no encoder that could read them")

    def _with_pictures(self, x: Tensor, patches: Tensor, grids: Tensor, numbers: Tensor) -> Tensor:
        encoder, connector = self._reader(ImageEncoder, "pixel_values")
        counts = encoder.counts(grids)
        vectors = encoder(patches, grids)
        if isinstance(connector, Resampler):
            vectors = connector(vectors, counts)
            counts = torch.full_like(counts, connector.num_queries)
        else:
            vectors = connector(vectors)
        slots = (numbers > 0).view(-1).nonzero()[:, 0]
        of_picture = numbers.reshape(-1)[slots] - 1
        if int(numbers.max()) > len(counts):
            raise ValueError(
                f"pixel_slots: names picture {int(numbers.max())}, and pixel_values has "
                f"{len(counts)}"
            )
        # A picture's slots follow each other, in each row anew.
        rows = slots // numbers.shape[1]
        names = rows * (len(counts) + 1) + of_picture
        _, there = names.unique_consecutive(return_counts=True)
        inside = torch.arange(len(slots), device=x.device)
        inside = inside - (there.cumsum(0) - there).repeat_interleave(there)
        firsts = of_picture[inside == 0]
        if not there.equal(counts[firsts]):
            raise ValueError(
                f"pixel_slots: pictures have {there.tolist()} slots, and their vectors are "
                f"{counts[firsts].tolist()}: keep whole what the processor gave"
            )
        of_vectors = (counts.cumsum(0) - counts)[of_picture] + inside
        vectors = vectors[of_vectors].to(x.dtype)
        return x.reshape(-1, x.shape[-1]).index_copy(0, slots, vectors).view(x.shape)

    def _with_text(self, x: Tensor, input_ids: Tensor, spans: Tensor) -> Tensor:
        encoder, connector = self._reader(TextEncoder, "spans")
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
        vectors = connector(encoder(tokens, is_real)[is_vector])
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
        pixel_values: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        pixel_slots: Tensor | None = None,
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
            pixel_values: [N, P, 3 * side * side] patches of all pictures, as the processor gives
                them.
            spatial_shapes: [N, 2] rows and columns of patches of each.
            pixel_slots: [B, S] number of the picture whose vector each slot takes, counted from 1
                over all rows, and 0 elsewhere; pictures lie wholly in `input_ids`.
            num_items_in_batch: labels of all microbatches of a step, whose losses then add up to
                the mean over them, as transformers' Trainer expects.
            kwargs: what other models know, and this one does not need.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, spans, pixel_values, spatial_shapes, pixel_slots)
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
        self,
        input_ids: Any,
        *args: Any,
        inputs_embeds: Any = None,
        spans: Tensor | None = None,
        pixel_slots: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Spans lie in the prompt: what is generated is read as plain tokens.

        Raises:
            ValueError: the prompt comes in parts.
        """
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, **kwargs
        )
        for name, places in (("spans", spans), ("pixel_slots", pixel_slots)):
            if places is None or inputs.get("input_ids") is None:
                continue
            if places.shape[1] > input_ids.shape[1]:
                raise ValueError(
                    f"{name}: the prompt comes in parts, which would cut spans: leave out "
                    "prefill_chunk_size"
                )
            places = F.pad(places, (0, input_ids.shape[1] - places.shape[1]))
            places = places[:, -inputs["input_ids"].shape[1] :]
            inputs[name] = places if places.any() else None
        return inputs

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]  # as others do
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Rows are repeated, as beams are; pictures, which rows name by number, are not."""
        names = ("pixel_values", "spatial_shapes")
        pictures = {name: model_kwargs.pop(name) for name in names if name in model_kwargs}
        input_ids, expanded = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, expanded | pictures
