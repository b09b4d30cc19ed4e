"""Imports DeepSpeed, silences its messages, and passes it the process groups."""

import importlib
import os
import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from parallel.megatron import refuse_other_version
from parallel.mesh import Mesh
from parallel.zero.config import Sharding

SUPPORTED = ("0.19.8", "0.20")
"""First version of DeepSpeed that was tested, and the first that was not."""


def imported() -> Any:
    """DeepSpeed, imported when first needed: it takes seconds, and reading a config is quick."""
    if not torch.cuda.is_available():
        # It must not guess, and it looks only once, at import.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Else it starts a process in each of stage 3's reductions, to count NUMA nodes.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    refuse_other_version("deepspeed", SUPPORTED)
    deepspeed = importlib.import_module("deepspeed")
    if not torch.cuda.is_available():
        # On CPU it would compile an all-reduce for inference, never used here: half a minute,
        # or a crash where there is no compiler. It builds only what this table calls compatible.
        vars(importlib.import_module("deepspeed.ops"))["__compatible_ops__"] = {}
    # Its Muon, imported in any case and never used here, has three functions compiled: loading
    # torch's compiler for them takes a second of each rank's start.
    compiler = importlib.import_module("deepspeed.runtime.compiler")
    vars(compiler)["compile"] = lambda: lambda function: function
    # BF16_Optimizer prints memory reports whatever the log level, a garbage collection each.
    optimizer = importlib.import_module("deepspeed.runtime.bf16_optimizer")
    vars(optimizer)["see_memory_usage"] = lambda *_, **__: None
    # Norms are ours, see `parallel.zero.engine`: theirs would wait for the device.
    vars(optimizer)["get_global_norm_of_tensors"] = lambda **_: 1.0
    third_stage = importlib.import_module("deepspeed.runtime.zero.stage3")
    vars(third_stage)["combine_grad_norm_groups"] = lambda _: 1.0
    # ZeRO-3 checks that all ranks run the same modules; those of another stage never do.
    coordinator = importlib.import_module("deepspeed.runtime.zero.partitioned_param_coordinator")
    vars(coordinator)["assert_ints_same_as_other_ranks"] = _assert_same_in_data_group
    # DeepSpeed calls collectives by names that torch 2.13 would rather have changed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    return deepspeed


def _assert_same_in_data_group(numbers: list[int]) -> None:
    group = importlib.import_module("deepspeed.utils.groups")._get_data_parallel_group()
    # Numbers count on over engines of one process, and stages differ in how many they have.
    mine = torch.tensor([number - min(numbers) for number in numbers])
    first = mine.clone()
    dist.broadcast(first, src=dist.get_global_rank(group, 0), group=group)
    if not torch.equal(mine, first):
        raise RuntimeError(
            f"rank {dist.get_rank()} runs other modules than the first rank of its data group: "
            f"{mine.tolist()} instead of {first.tolist()}"
        )


def gather_whole(modules: Iterable[nn.Module]) -> None:
    """Has ZeRO-3 gather all that is in a module before it, and nothing inside."""
    set_leaf = importlib.import_module("deepspeed.utils").set_z3_leaf_module
    for module in modules:
        set_leaf(module, True)
        if any(parameter.requires_grad for parameter in module.parameters()):
            module.register_forward_pre_hook(_ask_for_gradient)


def _ask_for_gradient(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # DeepSpeed takes the backward of such a module for done when its input has a gradient, or,
    # where it asks for none, as behind frozen layers, at once: its parameters would be gone.
    rows, *context = inputs
    if torch.is_grad_enabled() and not rows.requires_grad:
        rows = rows.detach().requires_grad_()
    return rows, *context


def sharding_of(optimizer: Any, *, stage: int) -> Sharding:
    """Where masters, moments and sums of gradients live in what DeepSpeed has put around AdamW."""
    if stage in (0, 3):
        return Sharding.REPLICATED if stage == 0 else Sharding.PER_PARAMETER
    adding = importlib.import_module("deepspeed.runtime.bf16_optimizer").BF16_Optimizer
    return Sharding.FLAT_SUMS if isinstance(optimizer, adding) else Sharding.FLAT_GROUPS


def tell_groups(mesh: Mesh) -> Any:
    """What DeepSpeed is initialised with, its `mpu`; None where all ranks are data parallel."""
    topology = None
    if mesh.model_group is not None:
        # The groups under the names that DeepSpeed asks for.
        topology = SimpleNamespace(
            get_model_parallel_rank=lambda: mesh.model_rank,
            get_model_parallel_world_size=lambda: mesh.model_size,
            get_model_parallel_group=lambda: mesh.model_group,
            get_tensor_model_parallel_rank=lambda: mesh.tensor_rank,
            get_tensor_model_parallel_world_size=lambda: mesh.tensor_size,
            get_pipeline_model_parallel_rank=lambda: mesh.pipeline_rank,
            get_pipeline_model_parallel_world_size=lambda: mesh.pipeline_size,
            get_data_parallel_rank=lambda: mesh.data_rank,
            get_data_parallel_world_size=lambda: mesh.data_size,
            get_data_parallel_group=lambda: mesh.data_group,
            get_data_parallel_group_ranks=lambda: dist.get_process_group_ranks(mesh.data_group),
        )
    # It keeps the last one it was given, for as long as the process lives.
    vars(importlib.import_module("deepspeed.utils.groups"))["mpu"] = topology
    return topology
