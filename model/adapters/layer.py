"""A linear layer with adapters beside it, of any kind of layer and however it is split.

Names are peft's: `base_layer`, `lora_A.NAME` and `lora_B.NAME`, so that files and checkpoints of
both fit each other.
"""

from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from model.adapters.factors import Factors
from model.adapters.kinds import BottleneckConfig, LoraConfig

ADAPTER = "default"
"""Name of the adapter that a run trains, which is peft's own."""

MARKS = (".lora_A.", ".lora_B.", ".bottleneck.")


class Adapted(nn.Module):
    """A layer and its adapters: base(x) + factor * B(A(x)), and a bottleneck behind it.

    Attributes:
        base_layer: what it was; anything else that is asked of this module is asked of it.
        active: names of the adapters that are computed for all rows.
        choice: adds the parts of the adapters instead, see `model.adapters.several`.
    """

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self._join = Factors.of(base_layer).join
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_dropout, self.bottleneck = nn.ModuleDict(), nn.ModuleDict()
        self.factors: dict[str, float] = {}
        self.active: list[str] = []
        self.choice: Callable[[Adapted, Tensor, Tensor], Tensor] | None = None

    @property
    def join(self) -> Callable[[Tensor], Tensor]:
        """Between A and B, see `Factors`."""
        return self._join

    @property
    def skip_bias_add(self) -> bool | None:
        """Whether the step behind it adds the bias; only layers that are split know that."""
        return cast(Any, self.base_layer).skip_bias_add

    @property
    def bias(self) -> Any:
        """The base's."""
        return self.base_layer.bias

    @property
    def weight(self) -> Any:
        """The base's."""
        return self.base_layer.weight

    def add_lora(self, config: LoraConfig, name: str = ADAPTER) -> None:
        """Put a low-rank adapter on, whose values are left to whoever calls."""
        factors = Factors.of(self.base_layer)
        self.lora_A[name], self.lora_B[name] = factors.down(config.rank), factors.up(config.rank)
        self.lora_dropout[name] = factors.dropout(config.dropout)
        self.factors[name] = config.factor
        if config.up_rate_ratio != 1:
            cast(Any, self.lora_B[name].weight).rate_ratio = config.up_rate_ratio

    def add_bottleneck(self, config: BottleneckConfig, name: str = ADAPTER) -> None:
        """Put a bottleneck behind the layer, whose values are left to whoever calls."""
        factors = Factors.of(self.base_layer)
        self.bottleneck[name] = Bottleneck(factors, config.width)
        if self.skip_bias_add is not None:
            # It reads the layer's output, the bias included.
            vars(self.base_layer)["skip_bias_add"] = False

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] -> [.., out], or of each what the layer works on."""
        if self.choice is not None:
            return self.choice(self, x, self.base_layer(x))
        narrow: dict[str, Tensor] = {}
        for name in self.active:
            if name in self.lora_A:
                x, narrow[name] = self._read(x, name)
        out = self.base_layer(x)
        for name in self.active:
            out = self._added(out, narrow.get(name), name)
        return out

    def beside(self, x: Tensor, out: Tensor, name: str) -> Tensor:
        """The layer's output with one adapter's part added, written over it.

        Args:
            x: what the layer has read.
            out: what it has computed of it.
            name: of the adapter.
        """
        return self._added(out, self._read(x, name)[1] if name in self.lora_A else None, name)

    def _read(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """What the base is to read, and what the adapter's second layer is."""
        dropped = self.lora_dropout[name](x)
        handed_on, narrow = self.lora_A[name](dropped)
        return handed_on if dropped is x else x, self.join(narrow)

    def _added(self, out: Tensor, narrow: Tensor | None, name: str) -> Tensor:
        if narrow is not None:
            out = self.lora_B[name](narrow, out, self.factors[name])
        if name in self.bottleneck:
            out = self.bottleneck[name](out)
        return out


class Bottleneck(nn.Module):
    """y + up(GELU(down(y))), over whatever whole rows there are.

    Args:
        factors: of the layer before it.
        width: of the narrow layer.
    """

    def __init__(self, factors: Factors, width: int):
        super().__init__()
        self.down, self.up = factors.behind(width)

    def forward(self, y: Tensor) -> Tensor:
        """[.., out] -> [.., out]."""
        return y + self.up(F.gelu(self.down(y)))


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return any(mark in name for mark in MARKS)


def plain_name(name: str) -> str:
    """Name of a base's parameter or module before adapters were put on."""
    return name.replace(".base_layer.", ".").removesuffix(".base_layer")
