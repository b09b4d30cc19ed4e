"""Each row of a batch with its own adapter computes what it computes alone, by plain peft."""

import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from model import torchvision_free
from model.adapters.kinds import LoraConfig
from model.adapters.several import adapters_of, put_adapter, rows_use
from model.adapters.tuning import Names, Tuning
from model.batch import Batch
from model.semicausal import SemiCausal
from tests.model.examples import collate, random_tokens, tiny_config, tiny_model

TARGETS = {"first": ["decoder", "encoders"], "second": ["qkv", "connectors"], "third": ["up"]}
SPANS = [[(2, 5), (7, 9)], [(1, 4)], [], [(3, 8), (9, 12)]]


def values_of(config: LoraConfig, model: SemiCausal, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = Tuning(lora=config).adapter_shapes(Names.of(model.config))
    return {name: torch.randn(shape, generator=generator) / 5 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def base() -> SemiCausal:
    return tiny_model(tiny_config()).eval()


@pytest.fixture(scope="module")
def model(base: SemiCausal) -> SemiCausal:
    model = copy.deepcopy(base)
    for seed, (name, targets) in enumerate(TARGETS.items()):
        config = LoraConfig(rank=2 + seed, alpha=8.0, targets=targets)
        put_adapter(model, name, config, values_of(config, base, seed))
    return model


def by_peft(base: SemiCausal, name: str | None) -> SemiCausal:
    if name is None:
        return base
    torchvision_free.install()
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    seed = list(TARGETS).index(name)
    config = LoraConfig(rank=2 + seed, alpha=8.0, targets=TARGETS[name])
    model = copy.deepcopy(base)
    layers = sorted(Tuning(lora=config).low_rank(Names.of(base.config)))
    settings = PeftConfig(r=2 + seed, lora_alpha=cast(Any, 8.0), target_modules=layers)
    inject_adapter_in_model(settings, model)
    given = values_of(config, base, seed)
    for key, parameter in model.named_parameters():
        if key in given:
            parameter.data.copy_(given.pop(key))
    assert not given
    return model.eval()


@torch.no_grad()
def states(model: SemiCausal, batch: Batch) -> Tensor:
    return model.decoder(model.inputs(batch.tokens, batch.spans))


def batches() -> tuple[Batch, list[Batch]]:
    """Four sequences at once, and each alone."""
    tokens = random_tokens(sequences=4, seed=3)
    whole = collate(tokens, SPANS)
    return whole, [collate(tokens[i : i + 1], [SPANS[i]]) for i in range(4)]


@pytest.mark.parametrize(
    "names",
    [
        ["first", "second", None, "first"],
        ["third", None, "second", "first"],
        ["second"] * 4,
        [None] * 4,
    ],
)
def test_each_row_has_its_own(
    base: SemiCausal, model: SemiCausal, names: Sequence[str | None]
) -> None:
    together, alone = batches()
    with rows_use(model, names, slots=together.tokens.shape[1]):
        found = states(model, together)
    for row, (name, batch) in enumerate(zip(names, alone, strict=True)):
        expected = states(by_peft(base, name), batch)[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
        if name is not None:
            assert (expected - states(base, batch)[0]).abs().max() > 1e-2, "it does something"


def test_outside_it_is_the_base(base: SemiCausal, model: SemiCausal) -> None:
    together, _ = batches()
    with rows_use(model, ["first", None, None, None], slots=together.tokens.shape[1]):
        pass
    assert torch.equal(states(model, together), states(base, together))
    assert adapters_of(model) == sorted(TARGETS)


@contextmanager
def refused(message: str) -> Generator[None]:
    with pytest.raises(ValueError, match=message):
        yield


def test_what_is_refused(base: SemiCausal, model: SemiCausal) -> None:
    config = LoraConfig(rank=2, targets=["up"])
    with (
        refused(r"no adapter called fourth; there are first, second, third"),
        rows_use(model, ["fourth"], slots=8),
    ):
        pass
    with refused("there is an adapter called first"):
        put_adapter(model, "first", config, values_of(config, base, 0))
    with refused("is no name of an adapter"):
        put_adapter(model, "a.b", config, values_of(config, base, 0))
    lacking = dict(list(values_of(config, base, 0).items())[1:])
    with refused("not the tensors of the adapter's layers"):
        put_adapter(model, "fourth", config, lacking)
