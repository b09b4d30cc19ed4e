"""Cells that train a part of the model: what they save, against one process and against peft."""

import copy
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from model import torchvision_free
from model.adapters.kinds import LoraConfig
from model.adapters.layer import is_adapter
from model.adapters.merging import merged
from model.adapters.several import put_adapter, rows_use
from model.adapters.tuning import Names, Tuning, put_on
from model.batch import Batch
from model.semicausal import SemiCausal
from parallel.agreement import on_all_ranks
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from parallel.zero.state import local_slices
from tests.distributed.semicausal_runs import (
    Cell,
    History,
    build,
    engine_of,
    microbatches,
    run_steps,
)
from tests.distributed.tunings import TUNINGS
from train import adapter
from train.checkpoint.directory import Retention
from train.checkpoint.saver import Saver
from train.checkpoint.weights import values_of
from train.errors import UserError

LEAST_EFFECT = 1e-3
"""Of an adapter on logits: ten times as much as they may differ by."""


def saved_on_ranks(cell: Cell, directory: str) -> History:
    """Train, save a checkpoint and an adapter, hold it against the ranks' memory."""
    engine = engine_of(cell)
    history = run_steps(engine, cell, range(cell.steps))
    tuning, out = TUNINGS[cell.tuned], Path(directory) / "adapter"
    with Saver(Path(directory) / "run", retention=Retention(keep=1)) as saver:
        saver.save(engine, {"config": {}}, step=cell.steps)
        latest = saver.finish()
        # What is fixed was not copied: a save holds training up for what trains alone.
        trained = {part.name for part in local_slices(engine) if part.kind != "value"}
        mine = [part for part in local_slices(engine) if part.owned and part.name in trained]
        assert saver._room is not None
        assert saver._room.numel() == sum(part.tensor.nbytes for part in mine)
    if tuning.has_adapters:
        is_first = torch.distributed.get_rank() == 0

        def write() -> None:
            if is_first:
                adapter.write(latest, out, config=tuning.lora, bottleneck=tuning.bottleneck)

        on_all_ranks(write, UserError)
        adapter.compare(engine, out)
    engine.close()
    return history


def saved_difference(cell: Cell, directory: Path, weights: Mapping[str, Tensor]) -> float:
    """Largest ||a - b|| / ||b|| over the tensors that were trained and saved.

    Args:
        cell: what was run.
        directory: where it was saved.
        weights: of one process, by name.
    """
    tuning = TUNINGS[cell.tuned]
    if tuning.has_adapters:
        found = adapter.read(directory / "adapter").values
    else:
        found = dict(values_of(directory / "run", trainable=True))
    names = Names.of(base_of(cell).config)
    wanted = set(tuning.saved_shapes(names) if tuning.has_adapters else tuning.trained(names))
    assert set(found) == wanted, set(found) ^ wanted
    # The gradient of a key bias is nil but for rounding, which Adam blows up to its full step.
    return max(
        float((_settled(name, found[name]) - b).norm() / b.norm())
        for name in found
        for b in [_settled(name, weights[name])]
    )


def _settled(name: str, weight: Tensor) -> Tensor:
    if name.endswith("key_value.bias"):
        return weight.double().view(2, 2, -1)[:, 1]
    if not name.endswith("qkv.bias"):
        return weight.double()
    heads = 4 if name.startswith("decoder") else 2
    return weight.double().view(heads, 3, -1)[:, [0, 2]]


def base_of(cell: Cell) -> SemiCausal:
    """The whole model before anything is put on it."""
    plain = Cell(
        norm=cell.norm,
        tied=cell.tied,
        decoder=cell.decoder,
        items=cell.items,
        connector=cell.connector,
    )
    return build(plain, build_mesh(LayoutConfig(), World.here(torch.device("cpu"))))


@torch.no_grad()
def logits_of(model: Any, batch: Batch) -> Tensor:
    """Logits of all slots."""
    states = model.decoder(model.inputs(batch.tokens, batch.spans))
    return model.decoder.head.logits(states)


@torch.no_grad()
def peft_difference(cell: Cell, directory: Path) -> float:
    """Largest difference of logits between plain peft with the saved adapter and this program.

    Before merging, after merging on both sides, and with another adapter beside it.
    """
    torchvision_free.install()
    from peft import PeftModel

    out = directory / "adapter"
    given = adapter.read(out)
    assert given.config is not None
    batch = microbatches(cell, 0)[0]
    base = base_of(cell).eval()
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(out)).eval()
    inner: Any = theirs.base_model.model
    ours = with_values(base, given.config, given.values).eval()
    pairs = [(logits_of(inner, batch), logits_of(ours, batch))]
    effect = (pairs[0][0] - logits_of(base, batch)).abs().max()
    assert effect > LEAST_EFFECT, f"the adapter moves logits by {effect:.1e} alone"
    theirs.load_adapter(str(out), adapter_name="twin")
    for name, parameter in inner.named_parameters():
        if ".twin." in name:
            parameter.mul_(-1.0 if ".lora_A." in name else 0.5)
    theirs.set_adapter("twin")
    twin = {
        name: value * (-1.0 if ".lora_A." in name else 0.5) for name, value in given.values.items()
    }
    if all(map(is_adapter, given.values)):
        # Both at once here, one after the other there.
        both = copy.deepcopy(base)
        put_adapter(both, "one", given.config, given.values)
        put_adapter(both, "two", given.config, twin)
        by_name = {"one": pairs[0][0], "two": logits_of(inner, batch), None: logits_of(base, batch)}
        used = [name for name, _ in zip(cycle(by_name), batch.tokens, strict=False)]
        expected = torch.stack([by_name[name][row] for row, name in enumerate(used)])
        with rows_use(both, used, slots=batch.tokens.shape[1]):
            pairs.append((expected, logits_of(both, batch)))
    theirs.set_adapter("default")
    plain = cast(Any, theirs).merge_and_unload()
    pairs.append((logits_of(plain, batch), pairs[0][1]))
    values = merged(dict(ours.named_parameters()), given.config)
    whole = copy.deepcopy(base)
    for name, parameter in whole.named_parameters():
        parameter.copy_(values[name])
    pairs.append((pairs[0][0], logits_of(whole, batch)))
    return max(float((theirs - ours).abs().max()) for theirs, ours in pairs)


@torch.no_grad()
def with_values(base: SemiCausal, config: LoraConfig, values: Mapping[str, Tensor]) -> SemiCausal:
    """A copy of a base with our own layers and the values of a file."""
    model = copy.deepcopy(base)
    put_on(model, Tuning(lora=config), Names.of(model.config))
    left = dict(values)
    for name, parameter in model.named_parameters():
        value = left.pop(name, None)
        if value is not None:
            parameter.copy_(value)
    assert not left, left.keys()
    return model
