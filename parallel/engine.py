"""The one assembly of an engine: this rank's part of a model in a layout, under ZeRO with AdamW.

Training, the planner's measurements, the benches and the tests all build alike::

    mesh = build_mesh(layout, world)
    model = build_part(config, layout, mesh, seed=1)
    engine = build_engine(model, mesh, adamw=AdamW(...), zero=ZeroConfig(...), precision="bf16")

Between the last two lines stands what a run does to its first weights: loading, adapters.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.backend import activate
from model.fp8 import multiply_in_fp8
from model.layers import Layers, initialize
from model.semicausal import ModelConfig, SemiCausal
from parallel.compiled import blocks_of, compilation_of, compile_if
from parallel.mesh import LayoutConfig, Mesh, held_pieces
from parallel.tensor import TensorLayers
from parallel.zero import deepspeed_access, idle, pages
from parallel.zero.config import IN_FP8, AdamW, Precision, RunPrecision, ZeroConfig
from parallel.zero.engine import ZeroEngine
from parallel.zero.gradients import tied_over_stages
from parallel.zero.masters import placed


def build_part(
    config: ModelConfig, layout: LayoutConfig, mesh: Mesh, *, seed: int | None
) -> SemiCausal:
    """The part of the model that this rank holds: its pieces of the decoder, its share of layers.

    Args:
        config: the whole model.
        layout: as configured; a pipeline's has its split (see `with_split`).
        mesh: this rank's place.
        seed: of the first values; None leaves them out.

    Blocks are compiled on this rank's device if the configuration says so.
    """
    layers = encoder_layers = Layers()
    if mesh.tensor_group is not None:
        layers = TensorLayers(mesh.tensor_group, sequence_parallel=layout.sequence_parallel)
        # The rows of spans are too few and too uneven to be shared.
        encoder_layers = TensorLayers(mesh.tensor_group, sequence_parallel=False)
    split = tuple(layout.split or [config.decoder.num_layers])
    activate(config.attention)
    model = SemiCausal(
        config,
        layers,
        encoder_layers=encoder_layers,
        pieces=held_pieces(split, layout, pipeline_rank=mesh.pipeline_rank),
        recompute=layout.recompute,
    )
    if seed is not None:
        initialize(model, seed=seed)
    compile_if(config.compile, model, device=mesh.world.device)
    return model


def build_engine(
    model: nn.Module, mesh: Mesh, *, adamw: AdamW, zero: ZeroConfig, precision: RunPrecision
) -> ZeroEngine:
    """Spreads a model and its AdamW over the ranks.

    Needs an initialised process group and RANK, LOCAL_RANK and WORLD_SIZE in the environment;
    every rank must call it, those of a data group with the same model. The first data rank's
    weights are sent to the others. In bf16 the model is cast in place, and masters start from the
    rounded weights. Gradients are accumulated and reduced in the masters' type.

    Args:
        model: what this rank holds of the model, on any device; buffers keep their type.
        mesh: this rank's place; the model is moved to its device.
        adamw: how its trainable parameters are updated.
        zero: how training state is spread.
        precision: type of parameters and activations; fp8 keeps them in bf16, and needs all layers
            of the decoder whole on every rank, without adapters.

    Raises:
        OSError: the directory for offloading cannot be written, or its disk has no room.
    """
    stored: Precision = "fp32" if precision == "fp32" else "bf16"
    if stored == "bf16":
        # Before it goes to the device: there, in fp32, it might not fit. Buffers keep their type.
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        idle.train_nothing(model)
    model.to(mesh.world.device)
    base_optimizer = torch.optim.AdamW(
        # Stages 1 and 2 cut groups, not parameters: alone in its group, a tied weight is cut at the
        # same places on both of its stages, and the parts of its gradient can be summed.
        parameter_groups(
            model, weight_decay=adamw.weight_decay, apart=tied_over_stages(model, mesh)
        ),
        lr=adamw.learning_rate,
        betas=adamw.betas,
        eps=adamw.epsilon,
        fused=True,
    )
    for group in base_optimizer.param_groups:
        group["lr"] *= group["rate_ratio"]
    on_cpu = mesh.world.device.type == "cpu"
    spares_memory = on_cpu and (adamw.precision == "bf16" or zero.offload_directory is not None)
    if spares_memory:
        pages.keep_no_freed_memory()
    stage = zero.stage
    if stage == 0 and stored == "bf16":
        # Without ZeRO DeepSpeed refuses bf16 parameters with fp32 gradients. Its BF16_Optimizer,
        # which stage 1 becomes in bf16, computes the same numbers in no more memory.
        stage = 1
    deepspeed = deepspeed_access.imported()
    compilation = compilation_of(model)
    if stage == 3 and compilation is not None and compilation.failure is None:
        # Parameters are gathered a block at a time: hooks inside of it would break its graph.
        deepspeed_access.gather_whole(blocks_of(model))
    topology = deepspeed_access.tell_groups(mesh)
    directory = None if zero.offload_directory is None else Path(zero.offload_directory)
    assert directory is None or on_cpu, "refused when the run starts"
    with placed(base_optimizer, directory):
        deepspeed_engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=base_optimizer,
            mpu=topology,
            config=_deepspeed_options(
                zero,
                stage=stage,
                precision=stored,
                num_elements=sum(p.numel() for p in model.parameters()),
                states=adamw.precision,
            ),
            dist_init_required=False,
        )
    if spares_memory:
        pages.keep_no_freed_memory()
    scales = None
    if precision in IN_FP8:
        assert (mesh.tensor_size, mesh.pipeline_size) == (1, 1), "refused with the configuration"
        assert stage < 3, "refused with the configuration"
        decoder = deepspeed_engine.module.decoder
        head = decoder.head if precision == "fp8_with_head" else None
        scales = multiply_in_fp8(list(decoder.blocks.values()), head=head)
    return ZeroEngine(
        deepspeed_engine,
        mesh=mesh,
        base_optimizer=base_optimizer,
        sharding=deepspeed_access.sharding_of(deepspeed_engine.optimizer, stage=stage),
        clip_norm=adamw.clip_norm,
        scales=scales,
        spares_memory=spares_memory,
        travels_in=zero.reduce_precision,
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: matrices do; norms, biases and embeddings do not."""
    embedding = name.endswith(
        ("embedding.weight", "positions.weight", "relative_bias.weight", "head.weight")
    )
    return parameter.dim() >= 2 and not embedding


def parameter_groups(
    model: nn.Module, *, weight_decay: float, apart: nn.Parameter | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters with decay and without, in a fixed order; one may be a group alone.

    Those with a learning rate of their own have a `rate_ratio`, what the run's is multiplied by.
    """
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            ratio = getattr(parameter, "rate_ratio", 1.0)
            key = (not decays(name, parameter), parameter is apart, ratio)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": groups[key],
            "weight_decay": 0.0 if key[0] else weight_decay,
            "rate_ratio": key[2],
        }
        for key in sorted(groups)
    ]


def _deepspeed_options(
    config: ZeroConfig,
    *,
    stage: int,
    precision: Precision,
    num_elements: int,
    states: Precision,
) -> dict[str, Any]:
    # Stage 3 allocates a whole bucket in advance, however small the model.
    bucket_elements = min(config.bucket_elements, num_elements)
    bucket_elements += bucket_elements % 2  # DeepSpeed asks for an even number
    return {
        # The loop owns batch sizes; DeepSpeed only wants the product to be consistent.
        "train_micro_batch_size_per_gpu": 1,
        # Nor does it count microbatches: a pipeline's backwards come in their own order.
        "gradient_accumulation_steps": 1,
        # It neither clips nor looks for what is not finite: it would wait for the device.
        "gradient_clipping": 0.0,
        "bf16": {
            "enabled": precision == "bf16",
            "check_grad_overflow": False,
            "immediate_grad_update": config.immediate_gradients,
            "bf16_master_weights_and_grads": states == "bf16",
            "bf16_optimizer_states": states == "bf16",
        },
        "data_types": {"grad_accum_dtype": states},
        "communication_data_type": states,
        "steps_per_print": None,
        # It waits for the device before each forward and after each step; at stage 3 nothing else
        # keeps weights from being gathered, in a stream of its own, before they are updated.
        "timers": {"throughput": {"enabled": stage == 3}},
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": config.overlap or stage == 3,
            "reduce_bucket_size": bucket_elements,
            "allgather_bucket_size": bucket_elements,
            "stage3_prefetch_bucket_size": bucket_elements,
            "sub_group_size": bucket_elements,
            "stage3_param_persistence_threshold": config.persist_parameters_below,
            "stage3_max_live_parameters": config.live_elements,
            "stage3_max_reuse_distance": config.live_elements,
        },
    }
