"""The planner's task, out of a run's configuration, and the candidates it chooses among."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from model.adapters.tuning import Tuning
from model.encoders.protocol import SpanLoad, Stack
from model.loss import usual_chunk_tokens
from model.semicausal import ModelConfig
from parallel.costs import Load, causal_stack
from parallel.launch import multiplies_bf16
from parallel.mesh import LayoutConfig
from parallel.zero.config import IN_FP8, Precision, ZeroConfig
from tools.plan.machines import MachineKind
from tools.plan.tuned import Reach
from tools.plan.weights import Share, Weights
from train.config import RunConfig
from train.errors import ConfigError

PRECISION_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}


Products = tuple[tuple[float, float], ...]
"""(inner, outer) widths of matrix products that the same rows go through."""

WHOLE_MOVES = 20
"""Elements of width moved in a block: two norms and two residuals, forward and backward."""
SPLIT_MOVES = 11
"""The same between the projections: layout of queries, keys and values; biases' gradients."""
HIDDEN_MOVES = 6
"""Elements of hidden width: GELU forward and backward, a bias's gradient."""
CONNECTOR_LAYERS = ("layers.0", "projection")
"""One of each kind of connector's, which stands for all."""
COMPILED_MOVES = 0.77
"""Share of these that compiled blocks move: measured on an H200, 12 ms of 53 less."""


def block_products(stack: Stack, *, tensor: int) -> Products:
    """Widths that a block's products have on a rank: [H, 3H], [H, H], [H, F] and [F, H].

    Where heads share keys the first is narrower, and a gate is another [H, F].
    """
    width, hidden = stack.width, stack.hidden / tensor
    attention = (width, stack.fused / tensor), (stack.inner / tensor, width)
    return *attention, *(1 + stack.gated) * ((width, hidden),), (hidden, width)


def block_moves(width: float, hidden: float, *, tensor: int, rows_split: int) -> float:
    """Elements a row that a block moves, forward and backward, besides products and attention."""
    split = SPLIT_MOVES * width + HIDDEN_MOVES * hidden
    return WHOLE_MOVES * width / rows_split + split / tensor


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How gradients and weights travel over data ranks.

    The defaults are DeepSpeed's own.

    Attributes:
        reduce_in: type of gradients under way; None: that in which they are summed.
        scatters: whether each gradient is summed on its owner alone, where DeepSpeed's stages 1
            and 2 sum all of it on every rank.
        overlaps: whether gradients travel while the backward goes on, and weights while the forward
            does.
        by_layer: whether each layer is gathered and reduced by itself, in every microbatch, as FSDP
            does it.
    """

    reduce_in: Precision | None = None
    scatters: bool = False
    overlaps: bool = False
    by_layer: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A run, as far as it does not depend on how it is spread.

    Attributes:
        model: the whole model, without encoders that never get a span.
        precision: of parameters and activations.
        states: of master weights, moments and gradient sums.
        sequences: sequences of a global batch.
        sequence_tokens: S.
        document_tokens: where documents are kept apart, see `parallel.costs.causal_stack`.
        spans: spans in one sequence on average, by modality.
        zero: buckets and the like; its stage is the planner's to choose.
        steps: optimiser steps of the run.
        compiled: whether blocks are.
        tuning: what of the model trains.
        saves_nearby: whether it saves to its nodes' own disks, too.
    """

    model: ModelConfig
    precision: Precision
    states: Precision = "fp32"
    sequences: int
    sequence_tokens: int
    document_tokens: float | None = None
    spans: Mapping[str, SpanLoad]
    zero: ZeroConfig
    steps: int
    compiled: bool = False
    tuning: Tuning = field(default_factory=Tuning)
    saves_nearby: bool = False

    @cached_property
    def reach(self) -> Reach | None:
        """Where gradients go; None where models train what they are built to train."""
        return Reach(self.model, self.tuning) if self.tuning.is_set else None

    @property
    def adapter_dropout(self) -> bool:
        """Whether adapters drop a part of what they read."""
        return self.tuning.lora is not None and self.tuning.lora.dropout > 0

    @property
    def trains_decoder(self) -> bool:
        """Whether most weights of the decoder's blocks do."""
        return self.reach is None or self.reach.trains("decoder.blocks.0.attention.qkv.weight")

    def connector_parts(self, modality: str) -> int:
        """Products of a connector's layer: forward, and what gradients are made of."""
        if self.reach is None:
            return 3
        prefix = f"connectors.{modality}."
        passes = any(map(self.reach.touches, (prefix, f"encoders.{modality}.")))
        trains = any(self.reach.trains(f"{prefix}{name}.weight") for name in CONNECTOR_LAYERS)
        return 1 + passes + trains

    def trains(self, name: str) -> bool:
        """Whether a parameter outside of encoders does."""
        return self.reach is None or self.reach.trains(name)

    @property
    def element_bytes(self) -> int:
        """Of a parameter or an activation."""
        return PRECISION_BYTES[self.precision]

    @property
    def state_bytes(self) -> int:
        """Of a master weight, a moment or a summed gradient."""
        return PRECISION_BYTES[self.states]

    def loss_chunk(self, *, num_rows: float, on_gpu: bool) -> int:
        """Scored slots whose logits exist at once, where the head has so many rows on a rank."""
        return self.model.decoder.loss_chunk_tokens or usual_chunk_tokens(
            on_gpu=on_gpu, num_rows=int(num_rows), element_bytes=self.element_bytes
        )

    def loss_is_fused(self, *, on_gpu: bool) -> bool:
        """Whether one pass makes loss and gradient of logits, in their own type."""
        return on_gpu and self.model.decoder.loss_kernel != "torch"

    @cached_property
    def decoder_elements(self) -> int:
        """All parameters of the decoder."""
        alone = Weights(self.model.model_copy(update={"encoders": {}}))
        return alone.share(LayoutConfig(split=[self.model.decoder.num_layers]), 0).elements

    def decoder_layer(self, sequences: int) -> Stack:
        """One decoder layer of a microbatch."""
        return causal_stack(
            self.model.decoder,
            sequences=sequences,
            sequence_tokens=self.sequence_tokens,
            document_tokens=self.document_tokens,
        )

    def layer_products(self, *, tensor: int) -> Products:
        """Widths that a decoder layer's products have on a rank."""
        return block_products(self.decoder_layer(1), tensor=tensor)

    @property
    def moved_bytes(self) -> float:
        """Of an element that a block moves as it stands."""
        return self.element_bytes * (COMPILED_MOVES if self.compiled else 1.0)

    def layer_moves(self, layout: LayoutConfig) -> float:
        """Bytes that a decoder layer moves for each row besides products and attention."""
        decoder = self.model.decoder
        rows_split = layout.tensor if layout.sequence_parallel else 1
        return self.moved_bytes * block_moves(
            decoder.width, decoder.feed_forward, tensor=layout.tensor, rows_split=rows_split
        )

    def again(self, layout: LayoutConfig) -> float:
        """Share of a layer's forward that is computed again in its backward."""
        return float(layout.recompute == "full")

    def wire(self, candidate: "Candidate") -> Wire:
        """How data ranks talk."""
        if candidate.wire is not None:
            return candidate.wire
        if candidate.stage <= 1 and self.precision == "bf16":
            # `parallel.zero.accumulation` reduces in DeepSpeed's place.
            return Wire(scatters=True, reduce_in=None if self.states == "bf16" else
                        self.zero.reduce_precision)  # fmt: skip
        return Wire(overlaps=candidate.stage == 2 and self.zero.overlap)

    def load(self, sequences: int) -> Load:
        """A microbatch of so many sequences."""
        return self._load(sequences)

    @cached_property
    def _load(self) -> Callable[[int], Load]:
        return functools.cache(self._counted)

    def _counted(self, sequences: int) -> Load:
        spans = {
            modality: replace(part, vectors=part.vectors * sequences, spans=part.spans * sequences)
            for modality, part in self.spans.items()
        }
        return Load(sequences=sequences, sequence_tokens=self.sequence_tokens, spans=spans)

    @cached_property
    def _weights(self) -> Weights:
        return Weights(self.model, self.tuning)

    def share(self, candidate: "Candidate", pipeline_rank: int) -> Share:
        """What the ranks of a stage hold."""
        return self._weights.share(candidate.layout, pipeline_rank)


def task_of(config: RunConfig, *, kind: MachineKind, document_tokens: float | None = None) -> Task:
    """What the planner needs of a run.

    Args:
        config: the run; its own layout, ZeRO stage and microbatch are not looked at.
        kind: settles `precision: auto`.
        document_tokens: of its documents, see `Task`; for a run that keeps them apart.

    Raises:
        ConfigError: the run is of a kind that cannot be planned, or its documents are not apart.
    """
    if document_tokens is not None and config.data.attend != "within":
        raise ConfigError(
            "--document-tokens: tokens see across the documents of a sequence in this run: leave "
            "it out, or plan with data.attend=within"
        )
    if config.zero.offload_directory is not None and kind != "cpu":
        raise ConfigError(
            "zero.offload_directory: only training on CPUs is planned with it; leave it out"
        )
    if config.precision in IN_FP8:
        raise ConfigError(
            "precision: there are no rates of fp8 to plan with: plan with precision=bf16, which "
            "is slower and takes two bytes less for each weight that is multiplied in fp8"
        )
    precision: Precision = "bf16" if kind != "cpu" or multiplies_bf16() else "fp32"
    if config.precision != "auto":
        precision = config.precision
    model = config.built_model
    return Task(
        model=model,
        precision=precision,
        states=config.optim.precision,
        sequences=config.batch.sequences,
        sequence_tokens=config.data.sequence_tokens,
        document_tokens=document_tokens,
        spans={modality: config.span_load(modality) for modality in model.encoders},
        zero=config.zero,
        steps=config.steps,
        compiled=kind != "cpu" and config.model.compile != "none",
        tuning=config.tuning,
        saves_nearby=config.checkpoint.local is not None,
    )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to spread a task.

    Attributes:
        layout: with its split.
        data: copies of the model.
        stage: of ZeRO.
        micro_sequences: sequences in a microbatch.
        num_microbatches: microbatches of a model copy in a step.
        wire: how data ranks talk; None: as the run says.
    """

    layout: LayoutConfig
    data: int
    stage: int
    micro_sequences: int
    num_microbatches: int
    wire: Wire | None = None

    @property
    def split(self) -> tuple[int, ...]:
        """Decoder layers of each piece."""
        assert self.layout.split is not None, "candidates carry their split"
        return tuple(self.layout.split)

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.layout.model_ranks * self.data

    @property
    def overlay(self) -> dict[str, Any]:
        """What `python -m train CONFIG OVERLAY` needs to run it."""
        layout = self.layout.model_dump()
        if self.layout.pipeline == 1:
            layout["split"] = None  # one that the configuration names would not fit
        return {
            "layout": layout,
            "zero": {"stage": self.stage},
            "batch": {"micro_sequences": self.micro_sequences},
        }

    def in_flight(self, pipeline_rank: int) -> tuple[tuple[int, ...], ...]:
        """Microbatches that each piece of a stage holds activations of, at its fuller moments.

        1F1B: stage s of p has begun p - s microbatches before its first backward.
        """
        layout = self.layout
        if layout.chunks == 1:
            return ((min(self.num_microbatches, layout.pipeline - pipeline_rank),),)
        return _interleaved(
            layout.pipeline, layout.chunks, self.num_microbatches, rank=pipeline_rank
        )


@functools.lru_cache(maxsize=4096)
def _interleaved(
    stages: int, chunks: int, num_microbatches: int, *, rank: int
) -> tuple[tuple[int, ...], ...]:
    """What pieces hold after each forward of the interleaved schedule, until it repeats itself.

    Pieces take turns, for as many microbatches each as there are stages; backwards in the other
    order, beginning after 2 (p - s - 1) + (c - 1) p forwards and one.
    """
    total = num_microbatches * chunks
    warm_up = min(total, 2 * (stages - rank - 1) + (chunks - 1) * stages)
    held = [0] * chunks
    seen: set[tuple[int, ...]] = set()
    for step in range(min(total, warm_up + 2 * stages * chunks)):
        held[step // stages % chunks] += 1
        seen.add(tuple(held))
        if step >= warm_up:
            held[chunks - 1 - (step - warm_up) // stages % chunks] -= 1
    return tuple(sorted(seen))
