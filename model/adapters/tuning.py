"""Which parameters of a model train, and which of its layers get adapters.

All is decided by the names of the whole model, so that each rank of a layout, whatever it holds,
decides alike, and an adapter starts with the same values in all of them.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from model.adapters.factors import Narrow
from model.adapters.kinds import BottleneckConfig, LoraConfig
from model.adapters.layer import ADAPTER, Adapted, is_adapter, plain_name
from model.adapters.patterns import chosen, faults
from model.layers import is_split, logical_name, placement
from model.semicausal import ModelConfig, SemiCausal

SPLIT_OUTPUTS = ("qkv", "query", "key_value", "up", "gate")
"""Last names of layers whose outputs tensor parallelism splits: no bottleneck can read them."""

BOTTLENECK_STD = 1e-3
"""Of the first weights of a bottleneck's narrow layer.

Source: Houlsby et al. (1902.00751) §3.6: deviations up to 1e-2 do as well."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """The plain names of a whole model, in its own order.

    Attributes:
        linear: of its linear layers, each with the features that it reads and computes.
        parameters: of its parameters, each with its shape.
    """

    linear: dict[str, tuple[int, int]]
    parameters: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, config: ModelConfig) -> "Names":
        """Those of a model, which is not built for it."""
        return _names(config.model_dump_json())

    @property
    def whole_outputs(self) -> list[str]:
        """Linear layers whose outputs each rank has whole."""
        return [name for name in self.linear if name.rsplit(".", 1)[-1] not in SPLIT_OUTPUTS]


@functools.lru_cache(maxsize=8)
def _names(config: str) -> Names:
    with torch.device("meta"):
        model = SemiCausal(ModelConfig.model_validate_json(config))
    return Names(
        linear={
            name: (module.in_features, module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        },
        parameters={name: tuple(p.shape) for name, p in model.named_parameters()},
    )


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What of a model is trained.

    Attributes:
        trainable: patterns over names of parameters; None: all, or none beside adapters.
        lora: low-rank adapters, if any.
        bottleneck: narrow nets behind sublayers, if any.
    """

    trainable: Sequence[str] | None = None
    lora: LoraConfig | None = None
    bottleneck: BottleneckConfig | None = None

    @property
    def has_adapters(self) -> bool:
        """Whether there are adapters of any kind."""
        return self.lora is not None or self.bottleneck is not None

    @property
    def is_set(self) -> bool:
        """Whether it says anything: otherwise models train what they are built to train."""
        return self.has_adapters or self.trainable is not None

    def low_rank(self, names: Names) -> set[str]:
        """Linear layers that get low-rank adapters."""
        return set() if self.lora is None else chosen(self.lora.targets, list(names.linear))

    def narrowed(self, names: Names) -> set[str]:
        """Linear layers that get a bottleneck."""
        if self.bottleneck is None:
            return set()
        return chosen(self.bottleneck.targets, names.whole_outputs)

    def trained(self, names: Names) -> set[str]:
        """Parameters of the model itself that train."""
        if self.trainable is None:
            return set() if self.has_adapters else set(names.parameters)
        return chosen(self.trainable, list(names.parameters))

    def adapter_shapes(self, names: Names) -> dict[str, tuple[int, ...]]:
        """Shapes of all adapters' tensors, by their names in a model."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in sorted(self.low_rank(names)):
            assert self.lora is not None
            in_features, out_features = names.linear[name]
            shapes[f"{name}.lora_A.{ADAPTER}.weight"] = (self.lora.rank, in_features)
            shapes[f"{name}.lora_B.{ADAPTER}.weight"] = (out_features, self.lora.rank)
        for name in sorted(self.narrowed(names)):
            assert self.bottleneck is not None
            width, features = self.bottleneck.width, names.linear[name][1]
            for part, out, read in (("down", width, features), ("up", features, width)):
                shapes[f"{name}.bottleneck.{ADAPTER}.{part}.weight"] = (out, read)
                shapes[f"{name}.bottleneck.{ADAPTER}.{part}.bias"] = (out,)
        return shapes

    def saved_shapes(self, names: Names) -> dict[str, tuple[int, ...]]:
        """Shapes of all that a file of the adapters holds: whole layers trained beside them too."""
        return self.adapter_shapes(names) | {
            name: names.parameters[name] for name in sorted(self.trained(names))
        }

    def faults(self, names: Names, *, supplied: Sequence[str]) -> Iterator[str]:
        """What is wrong with it in a run, each with its key.

        Args:
            names: of the whole model.
            supplied: beginnings of the names whose first values come from a checkpoint.
        """
        linear, whole = list(names.linear), names.whole_outputs
        if self.lora is not None:
            yield from faults("lora.targets", self.lora.targets, linear, what="linear layer")
        if self.bottleneck is not None:
            what = "linear layer that ends a sublayer"
            yield from faults("bottleneck.targets", self.bottleneck.targets, whole, what=what)
        if self.trainable is None:
            return
        parameters = list(names.parameters)
        yield from faults("trainable", self.trainable, parameters, what="parameter")
        trained = self.trained(names)
        random = [
            name for name in parameters
            if name not in trained and not any(name.startswith(begin) for begin in supplied)
        ]  # fmt: skip
        if trained and random:
            yield (
                f"trainable: {len(random)} parameters such as {random[0]} would stay random: name "
                "a checkpoint in init_from, or let them train"
            )
        if self.has_adapters:
            yield from self._unsaveable(names, trained)

    def _unsaveable(self, names: Names, trained: set[str]) -> Iterator[str]:
        """Layers of which peft's file format holds all or nothing, or the adapter alone."""
        adapted = self.low_rank(names) | self.narrowed(names)
        layers = {name.rsplit(".", 1)[0] for name in trained}
        for layer in sorted(layers & adapted):
            yield (
                f"trainable: {layer} has an adapter, beside which it stays as it is: take it away "
                f"from trainable with !{layer}, or from the adapter's targets"
            )
        for layer in sorted(layers - adapted):
            fixed = {n for n in names.parameters if n.rsplit(".", 1)[0] == layer} - trained
            if fixed:
                yield (
                    f"trainable: beside adapters a layer trains whole or not at all, and of "
                    f"{layer} {', '.join(sorted(fixed))} would not: name {layer}"
                )


def tune(model: SemiCausal, tuning: Tuning, *, seed: int) -> None:
    """Put adapters on a model, or on a rank's part of it, in place, and fix what does not train.

    Args:
        model: on any device; its weights have their values.
        tuning: without faults.
        seed: of the adapters' first values.
    """
    if not tuning.is_set:
        return
    names = Names.of(model.config)
    put_on(model, tuning, names)
    trained = tuning.trained(names)
    for name, parameter in model.named_parameters():
        plain = plain_name(logical_name(name, parameter))
        parameter.requires_grad_(is_adapter(name) or plain in trained)
    _fill(model, tuning, names, seed=seed)


def put_on(
    model: SemiCausal, tuning: Tuning, names: Names, *, name: str = ADAPTER, is_active: bool = True
) -> None:
    """Put adapters without values on the layers of a model that are to have them.

    Args:
        model: with adapters of other names or without.
        tuning: says which.
        names: of the whole model.
        name: of the adapter.
        is_active: whether it is computed for all rows.
    """
    low_rank, narrowed = tuning.low_rank(names), tuning.narrowed(names)
    for plain, layer in list(_linear_layers(model)):
        if plain not in low_rank | narrowed:
            continue
        adapted = layer if isinstance(layer, Adapted) else _wrapped(model, plain, layer)
        device, dtype = adapted.weight.device, adapted.weight.dtype
        if tuning.lora is not None and plain in low_rank:
            adapted.add_lora(tuning.lora, name)
        if tuning.bottleneck is not None and plain in narrowed:
            adapted.add_bottleneck(tuning.bottleneck, name)
        for kind in (adapted.lora_A, adapted.lora_B, adapted.bottleneck):
            if name in kind:
                kind[name].to(device=device, dtype=dtype)
        if is_active:
            adapted.active.append(name)


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers by plain name, with adapters or without; those that adapters are made of are not."""
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            yield plain_name(name), module
        elif ".base_layer" not in name and not isinstance(module, Narrow):
            yield name, module


def _wrapped(model: nn.Module, name: str, layer: nn.Module) -> Adapted:
    parent, _, last = name.rpartition(".")
    adapted = Adapted(layer)
    setattr(model.get_submodule(parent), last, adapted)
    return adapted


@torch.no_grad()
def _fill(model: nn.Module, tuning: Tuning, names: Names, *, seed: int) -> None:
    """First values: A by chance, B zero.

    The stream runs through the layers of the whole model, as peft's does when it puts adapters on
    one by one, so that both begin alike. A rank draws what it does not hold too.
    """
    layers = {plain_name(n): m for n, m in model.named_modules() if isinstance(m, Adapted)}
    generator = Generator().manual_seed(seed)
    if tuning.lora is not None:
        low_rank, rank = tuning.low_rank(names), tuning.lora.rank
        for name, (in_features, out_features) in names.linear.items():
            if name not in low_rank:
                continue
            # What torch fills new layers with, which peft then fills anew.
            torch.empty(rank * (in_features + out_features)).uniform_(generator=generator)
            whole = torch.empty(rank, in_features)
            nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
            if name in layers:
                _set(_weight(layers[name].lora_A[ADAPTER]), whole)
                nn.init.zeros_(_weight(layers[name].lora_B[ADAPTER]))
    if tuning.bottleneck is not None:
        narrowed, width = tuning.narrowed(names), tuning.bottleneck.width
        for name, (_, out_features) in names.linear.items():
            if name not in narrowed:
                continue
            whole = torch.empty(width, out_features)
            nn.init.trunc_normal_(whole, std=BOTTLENECK_STD, generator=generator)
            if name in layers:
                net = layers[name].bottleneck[ADAPTER]
                for parameter in net.parameters():
                    nn.init.zeros_(parameter)
                _set(_weight(net.get_submodule("down")), whole)


def _set(weight: Tensor, whole: Tensor) -> None:
    """Give a weight its part of the whole."""
    weight.copy_(placement(weight).take(whole) if is_split(weight) else whole)


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, Narrow)
    return layer.weight
