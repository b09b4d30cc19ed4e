"""A trained model, whole in one process or spread over ranks, for tools."""

from pathlib import Path

import torch

from model.adapters.merging import merged
from model.adapters.tuning import Names, put_on
from model.semicausal import SemiCausal
from parallel.agreement import on_all_ranks
from parallel.engine import build_part
from parallel.forward import FrozenEngine
from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh, layout_faults, rank_fault
from parallel.split import with_split
from train.checkpoint.format import State
from train.checkpoint.restore import load_module, load_weights, read_state
from train.checkpoint.weights import read_values
from train.config import RunConfig
from train.config_files import from_stored
from train.errors import CheckpointError, ConfigError, UserError
from train.storage.place import Place
from train.storage.record import Record


class Drawn(Record):
    """What of a checkpoint's weights is from chance alone, as `tools.assemble` writes it.

    Attributes:
        seed: of the streams.
        parts: such as `encoders.text`.
    """

    seed: int
    parts: list[str]

    def __str__(self) -> str:
        return f"{', '.join(self.parts)} are as drawn from seed {self.seed}"


class _Assembled(State):
    drawn: Drawn | None = None


def drawn_of(path: Place | Path) -> Drawn | None:
    """What nothing has trained in a checkpoint, None if there is no such thing.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return read_state(path, _Assembled).drawn


def load_config(path: Place | Path) -> RunConfig:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: it is missing or damaged.
        ConfigError: it is of another version.
    """
    return from_stored(RunConfig, read_state(path).config, place=str(path))


def alone_fault(path: Place | Path, config: RunConfig) -> CheckpointError:
    """That a checkpoint of an encoder that trained alone is no whole model."""
    return CheckpointError(
        f"{path} is an encoder that was trained alone, and no whole model: name it in "
        f"model.encoders.{config.trains_alone}.encoder.init_from of a run"
    )


def load_model(path: Place | Path, *, device: torch.device) -> SemiCausal:
    """The model of a checkpoint in fp32, adapters merged if they can be, in eval mode.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    config = load_config(path)
    if config.objective is not None:
        raise alone_fault(path, config)
    # What computed attention in training may not be there here, or not in fp32.
    model = SemiCausal(config.built_model.model_copy(update={"attention": "auto"}))
    if config.lora is not None and config.bottleneck is None:
        weights = merged(read_values(path), config.lora)
        for name, parameter in model.named_parameters():
            parameter.data.copy_(weights[name])
    else:
        put_on(model, config.tuning, Names.of(model.config))
        load_module(path, model)
    return model.to(device).eval()


def load_engine(path: Place | Path, *, layout: LayoutConfig, world: World) -> FrozenEngine:
    """The model of a checkpoint in fp32, in a layout of its own; every rank must call it.

    Args:
        path: a run or one of its checkpoints, written in any layout.
        layout: how ranks share the model; those that are left share the work.
        world: this process among all.

    Raises:
        ConfigError: the layout does not suit the model or the ranks.
        UserError: some rank cannot read its part; on all ranks.
    """
    config = on_all_ranks(lambda: load_config(path), UserError)
    if config.objective is not None:
        raise alone_fault(path, config)
    faults = [*layout_faults(layout, config.built_model)]
    if (fault := rank_fault(layout, ranks=world.size)) is not None:
        faults.append(fault)
    if faults:
        raise ConfigError("\n".join(faults))
    mesh = build_mesh(layout, world)
    if layout.model_ranks == 1:
        model = on_all_ranks(lambda: load_model(path, device=world.device), UserError)
        return FrozenEngine(module=model, mesh=mesh)
    tokens = config.data.sequence_tokens
    built = config.built_model.model_copy(update={"attention": "auto", "compile": "none"})
    split = with_split(layout, built, sequence_tokens=tokens, span_share=config.span_share)
    part = build_part(built, split, mesh, seed=None)
    put_on(part, config.tuning, Names.of(built))
    on_all_ranks(lambda: load_weights(path, part), UserError)
    return FrozenEngine(module=part.to(world.device).eval(), mesh=mesh)
