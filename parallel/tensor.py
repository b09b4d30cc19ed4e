"""Layers split over a tensor group, on megatron-core's.

Columns and heads, rows, and the vocabulary are split; norms, small tables and connectors are
whole, and so are their gradients. With sequence parallelism the rows between blocks are split too:
what is whole there (norms, the biases of row-parallel layers) then has the gradient of its own
rows, which `parallel.zero.gradients` sums over the group.

Source: Megatron-LM (1909.08053) §3; sequence parallelism: Korthikanti et al. (2205.05198) §4.2.
"""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.adapters.factors import Factors
from model.layers import NORM_EPSILON, Initializer, Layers, NormLayer, VocabularyShard
from model.region import Region
from parallel.megatron import core

VOCABULARY_MULTIPLE = 128
"""Each rank's rows of the vocabulary are a multiple of this; matrix products like it."""


def padded_vocabulary(num_tokens: int, *, tensor: int) -> int:
    """Rows of a vocabulary that is split, padding included."""
    multiple = VOCABULARY_MULTIPLE * tensor
    return math.ceil(num_tokens / multiple) * multiple


class TensorLayers(Layers):
    """Layers that are split over a tensor group.

    Args:
        group: the ranks that share each layer.
        sequence_parallel: whether they also share the rows between blocks.
    """

    def __init__(self, group: dist.ProcessGroup, *, sequence_parallel: bool):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sequence_parallel = sequence_parallel
        self._mappings = core("tensor_parallel.mappings")
        self._layers = _layer_classes()
        self._config = core("model_parallel_config").ModelParallelConfig(
            tensor_model_parallel_size=self.size,
            sequence_parallel=sequence_parallel,
            use_cpu_initialization=True,  # on the default device, so that meta works
            perform_initialization=False,
            gradient_accumulation_fusion=False,
            params_dtype=torch.get_default_dtype(),
        )

    def column(
        self, in_features: int, out_features: int, *, init: Initializer, bias: bool = True
    ) -> nn.Module:
        """A linear layer with outputs split over the ranks; reads whole rows."""
        layer = self._layers.column(
            in_features,
            out_features,
            config=self._config,
            init_method=None,
            bias=bias,
            tp_group=self.group,
        )
        part = self._part(out_features)
        layer.weight.placement = Region.of_box((out_features, in_features), part, (0, in_features))
        if bias:
            layer.bias.placement = Region.of_box((out_features,), part)
        layer.init = init
        join, dropout = self._mappings.copy_to_tensor_model_parallel_region, super().dropout
        if self.sequence_parallel:
            join, dropout = self._mappings.gather_from_sequence_parallel_region, self._split_dropout
        layer.adapter_factors = Factors(
            in_features=in_features,
            out_features=out_features,
            outputs=part,
            splits_rows=self.sequence_parallel,
            join=partial(join, group=self.group),
            dropout=dropout,
        )
        return layer

    def row(
        self, in_features: int, out_features: int, *, init: Initializer, bias: bool = True
    ) -> nn.Module:
        """A linear layer with inputs split over the ranks; its outputs are summed."""
        layer = self._layers.row(
            in_features,
            out_features,
            config=self._config,
            init_method=None,
            bias=bias,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=self.group,
        )
        layer.weight.placement = Region.of_box(
            (out_features, in_features), (0, out_features), self._part(in_features)
        )
        if bias:
            layer.bias.sequence_parallel = self.sequence_parallel
        layer.init = init
        join = self._mappings.reduce_from_tensor_model_parallel_region
        if self.sequence_parallel:
            join = self._mappings.reduce_scatter_to_sequence_parallel_region
        layer.adapter_factors = Factors(
            in_features=in_features,
            out_features=out_features,
            inputs=self._part(in_features),
            splits_rows=self.sequence_parallel,
            join=partial(join, group=self.group),
            dropout=self._split_dropout,
        )
        return layer

    def vocabulary(self, num_tokens: int, width: int, *, init: Initializer) -> nn.Module:
        """A lookup table with rows split over the ranks, padded; its outputs are summed."""
        rows = padded_vocabulary(num_tokens, tensor=self.size)
        layer = self._layers.vocabulary(
            rows, width, config=self._config, init_method=None, tp_group=self.group
        )
        shard = self.shard(num_tokens)
        layer.weight.placement = Region.of_box(
            (num_tokens, width), (shard.first, shard.first + shard.size), (0, width)
        )
        layer.init = init
        return layer

    def norm(
        self, width: int, *, kind: NormLayer = "layer_norm", epsilon: float = NORM_EPSILON
    ) -> nn.Module:
        """A norm of whole width, over whatever rows this rank has."""
        norm: Any = super().norm(width, kind=kind, epsilon=epsilon)
        for parameter in norm.parameters():
            parameter.sequence_parallel = self.sequence_parallel
        return norm

    def scale(self, width: int, *, start: float) -> nn.Module:
        """Factors of whole width, over whatever rows this rank has."""
        scale: Any = super().scale(width, start=start)
        scale.weight.sequence_parallel = self.sequence_parallel
        return scale

    def dropout(self, share: float) -> nn.Module:
        """Dropout: one mask where all ranks hold the same rows, one a rank where they do not."""
        if self.sequence_parallel:
            return self._split_dropout(share)
        return super().dropout(share)

    def shard(self, num_tokens: int) -> VocabularyShard:
        """This rank's part of a vocabulary."""
        rows = padded_vocabulary(num_tokens, tensor=self.size) // self.size
        first = min(num_tokens, rows * self.rank)
        return VocabularyShard(
            first=first,
            size=min(num_tokens - first, rows),
            maximum=partial(self._reduced, op=dist.ReduceOp.MAX),
            sum=partial(self._reduced, op=dist.ReduceOp.SUM),
        )

    def _reduced(self, values: Tensor, *, op: Any) -> Tensor:
        """Over the ranks, in place."""
        dist.all_reduce(values, op=op, group=self.group)
        return values

    def share(self, values: Tensor) -> Tensor:
        """This rank's part of the last dim; the gradient is summed over the ranks."""
        whole = self._mappings.copy_to_tensor_model_parallel_region(values, group=self.group)
        return whole.chunk(self.size, dim=-1)[self.rank]

    def enter(self, rows: Tensor) -> Tensor:
        """Gives the blocks their rows: all, or this rank's part with sequence parallelism."""
        if not self.sequence_parallel:
            return rows
        return self._mappings.scatter_to_sequence_parallel_region(rows, group=self.group)

    def leave(self, rows: Tensor) -> Tensor:
        """Gathers whole rows for the head; the backward sums the ranks' partial gradients."""
        if self.sequence_parallel:
            return self._mappings.gather_from_sequence_parallel_region(rows, group=self.group)
        return self._mappings.copy_to_tensor_model_parallel_region(rows, group=self.group)

    def _split_dropout(self, share: float) -> nn.Module:
        return SplitDropout(share, self.rank) if share else nn.Identity()

    def _part(self, size: int) -> tuple[int, int]:
        assert size % self.size == 0, "checked with the configuration"
        share = size // self.size
        return share * self.rank, share * (self.rank + 1)


class SplitDropout(nn.Module):
    """Dropout over rows that are split: each rank draws from a stream of its own.

    The streams are seeded from the default generator, which is the same on all ranks of the group
    and which recomputation rewinds.
    """

    def __init__(self, share: float, rank: int):
        super().__init__()
        self.share = share
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share of the elements and scale up the rest, in training."""
        if not self.training:
            return x
        seed = int(torch.randint(1 << 62, ())) + self.rank
        generator = torch.Generator(x.device).manual_seed(seed)
        kept = torch.empty_like(x).bernoulli_(1 - self.share, generator=generator)
        return x * kept.div_(1 - self.share)


def _layer_classes() -> SimpleNamespace:
    """Megatron's layers, returning one tensor as other layers do."""
    layers = core("tensor_parallel.layers")

    class Column(layers.ColumnParallelLinear):
        """Outputs split over the ranks."""

        def forward(self, x: Tensor) -> Tensor:
            is_fixed = self.bias is None or not self.bias.requires_grad
            if self.skip_bias_add or self.weight.requires_grad or is_fixed:
                return super().forward(x)[0]
            # Megatron gives no gradient to the bias of a weight that is fixed.
            self.skip_bias_add = True
            try:
                out, bias = super().forward(x)
            finally:
                self.skip_bias_add = False
            return out + bias

    class Row(layers.RowParallelLinear):
        """Inputs split over the ranks."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[0]

    return SimpleNamespace(column=Column, row=Row, vocabulary=layers.VocabParallelEmbedding)
