"""Training state by logical name, wherever ZeRO has put it.

`local_slices` gives views: read them to save, copy into them to restore, then call `publish`.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from model.layers import is_split, logical_name, placement
from model.region import Region
from parallel.zero.config import Sharding
from parallel.zero.engine import ZeroEngine
from parallel.zero.idle import IDLE_NAME
from parallel.zero.pages import MOMENTS

TensorKind = Literal["value", "exp_avg", "exp_avg_sq"]
"""The weights (of trainable parameters the masters, in `optim.precision`), and AdamW's moments."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StateSlice:
    """What this rank holds of one tensor.

    Attributes:
        name: logical name of the parameter, the same in every layout; of a tied one, the first.
        kind: what it is of the parameter; a frozen one has a value alone.
        region: which part of the parameter it is.
        tensor: [n] view of its elements.
        owned: whether this rank is the one to save it; others hold a copy.
    """

    name: str
    kind: TensorKind
    region: Region
    tensor: Tensor
    owned: bool = True


def local_slices(engine: ZeroEngine) -> list[StateSlice]:
    """Every part of training state that this rank holds, in the order of the module's parameters.

    The owned slices of all ranks tile every tensor exactly once. Optimiser state that does not
    exist yet is created as AdamW would.
    """
    slices: list[StateSlice] = []
    mesh = engine.mesh
    rank, num_ranks = mesh.data_rank, mesh.data_size
    masters = _master_tensors(engine)

    @functools.cache  # adapters are hundreds of small parts of few masters
    def flattened(master: Tensor, trains: bool) -> dict[TensorKind, Tensor]:
        whole: dict[TensorKind, Tensor] = {"value": master}
        if trains:
            state = _optimizer_state(engine, master)
            whole |= {kind: state[kind] for kind in MOMENTS}
        return {kind: tensor.detach().view(-1) for kind, tensor in whole.items()}

    for index, (name, parameter) in enumerate(engine.parameters):
        if name == IDLE_NAME:
            continue
        held = placement(parameter)
        # Whole copies are saved by the ranks in turn.
        owned = index % num_ranks == rank
        start, stop = 0, held.stop
        master, offset = parameter, 0
        match engine.sharding:
            case Sharding.FLAT_GROUPS | Sharding.FLAT_SUMS if parameter.requires_grad:
                mapping: Any = parameter._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]  # DeepSpeed adds it
                if mapping is None:  # the parameter lies wholly on other ranks
                    continue
                owned = True
                start = mapping.lp_fragment_address.start
                stop = start + mapping.lp_fragment_address.numel
                master = masters[mapping.param_group_index]
                offset = mapping.hp_fragment_address.start
            case Sharding.PER_PARAMETER:
                sharded: Any = parameter
                owned = True
                # The last part is padded, and on many ranks some hold nothing else.
                start = sharded.partition_numel() * rank
                stop = start + sharded.partition_numel()
                master = sharded.ds_tensor
                if parameter.requires_grad:
                    zero_optimizer = engine.zero_optimizer
                    identity = zero_optimizer.get_param_id(parameter)
                    group_index, offset, _ = zero_optimizer.grad_position[identity]
                    master = masters[group_index]
            case _:
                pass
        region = held.cut(start, stop)
        if region.num_elements <= 0:
            continue
        if not is_split(parameter):
            # Ranks of a tensor group hold copies; they save them in turn too.
            owned &= index // num_ranks % mesh.tensor_size == mesh.tensor_rank
        logical = logical_name(name, parameter)
        # The head's copy of the embedding is saved by the first stage.
        owned &= logical == name
        for kind, flat in flattened(master, parameter.requires_grad).items():
            view = flat.narrow(0, offset, region.num_elements)
            slices.append(
                StateSlice(name=logical, kind=kind, region=region, tensor=view, owned=owned)
            )
    return slices


def addresses(engine: ZeroEngine) -> list[int]:
    """Where lies what `local_slices` gives views of: while these stay alike, so do the views."""
    found: list[int] = []
    for master in _master_tensors(engine):
        state = _optimizer_state(engine, master)
        found += (tensor.data_ptr() for tensor in (master, *(state[kind] for kind in MOMENTS)))
    is_cut = engine.sharding is Sharding.PER_PARAMETER
    for _, parameter in engine.parameters:
        if not parameter.requires_grad:
            fixed: Any = parameter
            found.append((fixed.ds_tensor if is_cut else fixed).data_ptr())
    return found


def optimizer_steps(engine: ZeroEngine) -> int:
    """How many updates AdamW has made, which its bias correction depends on."""
    for master in _master_tensors(engine):
        state = engine.base_optimizer.state.get(master)
        if state:
            return int(state["step"])
    return 0


def set_optimizer_steps(engine: ZeroEngine, num_steps: int) -> None:
    """Makes AdamW believe that it has made `num_steps` updates."""
    for master in _master_tensors(engine):
        _optimizer_state(engine, master)["step"].fill_(num_steps)


@torch.no_grad()
def publish(engine: ZeroEngine) -> None:
    """Makes the next forward use weights that were copied into slices; every rank must call it."""
    if engine.scales is not None:
        engine.scales.version += 1
    zero_optimizer = engine.zero_optimizer
    match engine.sharding:
        case Sharding.REPLICATED:
            pass
        case Sharding.FLAT_GROUPS | Sharding.FLAT_SUMS:
            zero_optimizer.update_lp_params()
        case Sharding.PER_PARAMETER:
            # As a step ends: drop whatever is gathered, bring the masters into the parts, and renew
            # what stays whole.
            zero_optimizer._partition_all_parameters()
            for group_index in range(len(zero_optimizer.fp16_groups)):
                zero_optimizer._reassign_or_swap_out_partitioned_parameters(group_index)
            assert engine.persistent is not None
            engine.persistent.renew()


def _master_tensors(engine: ZeroEngine) -> list[Tensor]:
    """The tensors that AdamW updates, in the order of DeepSpeed's groups."""
    zero_optimizer = engine.zero_optimizer
    match engine.sharding:
        case Sharding.REPLICATED:
            return [p for group in engine.base_optimizer.param_groups for p in group["params"]]
        case Sharding.PER_PARAMETER:
            return zero_optimizer.fp32_partitioned_groups_flat
        case Sharding.FLAT_SUMS:
            return zero_optimizer.fp32_groups_flat_partition
        case Sharding.FLAT_GROUPS:
            return zero_optimizer.single_partition_of_fp32_groups


def _optimizer_state(engine: ZeroEngine, master: Tensor) -> dict[str, Tensor]:
    state: dict[str, Tensor] = engine.base_optimizer.state[master]
    if not state:
        # What torch's fused AdamW creates in its first step.
        state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
        for key in MOMENTS:
            state[key] = torch.zeros_like(master, memory_format=torch.preserve_format)
    return state
