"""The DeepSpeed engine behind a small interface; outside of parallel/, nobody knows DeepSpeed.

A training step reads::

    engine = zero.initialize(model, param_groups=..., optim=..., precision="bf16", ...)
    losses = pipeline.forward_backward(engine, microbatches, scale=...)
    grad_norm = engine.step()                  # raises, having changed nothing, if not finite

DeepSpeed refuses ZeRO-2 and ZeRO-3 in pipelines of its own, but its stages train under another's
schedule once four things are seen to, in this module and its neighbours:

1. It is told the groups, and compares ZeRO-3's trace within the data group (`deepspeed_access`).
2. Before each backward of the schedule it hears that a backward begins, and whether it is the
   step's last.
3. What the stages of a pipeline or the ranks of a tensor group each have a part of is summed
   (`gradients`).
4. The gradient norm is ours: over every element of the model once, in fp64.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.mesh import Mesh
from parallel.zero import deepspeed_access, pages
from parallel.zero import gradients as zero_gradients
from parallel.zero import masters as zero_masters
from parallel.zero.config import AdamWOptions, Precision, ZeroConfig
from parallel.zero.sharding import Sharding


class ZeroEngine:
    """A model, its AdamW and their sharding; built by `initialize`.

    Attributes:
        module: the model, or this stage's part; call the engine rather than this, so that hooks
            run.
        mesh: this rank's place and groups.
        sharding: where weights and moments live.
        base_optimizer: torch's AdamW, which DeepSpeed drives on flat shards.
        zero_optimizer: DeepSpeed's own optimiser around it (torch's again if `REPLICATED`).
    """

    def __init__(
        self,
        deepspeed_engine: Any,
        *,
        mesh: Mesh,
        base_optimizer: torch.optim.Optimizer,
        sharding: Sharding,
        clip_norm: float | None,
        spares_memory: bool,
    ) -> None:
        """Wraps a DeepSpeed engine; use `initialize`."""
        self.module: nn.Module = deepspeed_engine.module
        self.mesh = mesh
        self.sharding = sharding
        self.base_optimizer = base_optimizer
        self.zero_optimizer: Any = deepspeed_engine.optimizer
        self._deepspeed = deepspeed_engine
        self._clip_norm = clip_norm
        self._spares_memory = spares_memory
        self._backwards_left = 0
        self._norm = math.nan
        if sharding is not Sharding.REPLICATED:
            self._provide_norm()
            # Before DeepSpeed's own hooks on the output, which are put on after this one.
            self.module.register_forward_hook(self._announce_backward)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The forward of what this rank holds; its group's ranks must call it alike."""
        if self.sharding is Sharding.REPLICATED:
            # Without ZeRO, DeepSpeed has nothing to do in a forward and forbids other backwards.
            return self.module(*inputs, **options)
        return self._deepspeed(*inputs, **options)

    @contextmanager
    def accumulating(self, num_backwards: int) -> Generator[None]:
        """Within the context gradients add up, over exactly this many backwards; then reduced.

        The losses must be scaled so that their sum over microbatches and data ranks, divided by
        the number of data ranks, is the loss to minimise: DeepSpeed averages over data ranks.
        """
        assert self._backwards_left == 0, "the last step's microbatches are not all done"
        self._backwards_left = num_backwards
        if self.sharding is Sharding.PER_PARAMETER:
            # A piece that is not in the first backward adds to what is there, even in that step.
            buffer = self.zero_optimizer.grad_partitions_flat_buffer
            if self._spares_memory:
                pages.zero_without_pages(buffer)
            else:
                buffer.zero_()
        yield
        if self.sharding is Sharding.REPLICATED:
            self._backwards_left = 0
            self._deepspeed.set_gradient_accumulation_boundary(True)
            self._deepspeed.allreduce_gradients()
        assert self._backwards_left == 0, "fewer backwards than announced"

    def _announce_backward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor: Tensor = output if isinstance(output, Tensor) else output[0]
        if tensor.requires_grad:
            tensor.register_hook(self._begin_backward)

    def _begin_backward(self, gradient: Tensor) -> None:
        assert self._backwards_left > 0, "more backwards than announced"
        self._backwards_left -= 1
        # Backwards that follow each other without a forward would be taken for one.
        self.zero_optimizer.clear_backward_seen_flag()
        self._deepspeed.set_gradient_accumulation_boundary(self._backwards_left == 0)

    def step(self) -> float:
        """Clips the gradients and updates the parameters; every rank must call it.

        Returns:
            L2 norm of the whole gradient before clipping, the same on every rank.

        Raises:
            FloatingPointError: the gradient is not finite. It is raised on every rank; the
                gradient is dropped, no parameter and no moment has changed.
            RuntimeError: ranks that should have the same gradient do not.
        """
        gradients = zero_gradients.collect(self)
        zero_gradients.sum_shared(gradients, self.mesh)
        self._norm = zero_gradients.global_norm(gradients, self.mesh)
        if self.sharding is Sharding.REPLICATED:
            self._step_replicated(gradients)
            return self._norm
        # DeepSpeed asks for the norm first and skips the update if it is not finite.
        self._deepspeed.step()
        if not self._deepspeed.was_step_applied():
            raise FloatingPointError("the gradient is not finite")
        return self._norm

    def _step_replicated(self, gradients: list[zero_gradients.Gradient]) -> None:
        # DeepSpeed neither clips by this norm nor checks it without ZeRO.
        if not math.isfinite(self._norm):
            self._deepspeed.zero_grad()
            raise FloatingPointError("the gradient is not finite")
        if self._clip_norm is not None and self._norm > self._clip_norm:
            for gradient in gradients:
                gradient.value.mul_(self._clip_norm / (self._norm + 1e-6))
        self._deepspeed.step()

    def _provide_norm(self) -> None:
        """Makes DeepSpeed clip by, and report, the norm that `gradients` has computed."""
        optimizer = self.zero_optimizer

        def tensor(value: float) -> Tensor:
            return torch.tensor(value, dtype=torch.float32, device=self.mesh.world.device)

        def norm() -> Tensor:
            # DeepSpeed's sign for a norm that is not finite.
            return tensor(self._norm if math.isfinite(self._norm) else -1.0)

        match self.sharding:
            case Sharding.PER_PARAMETER:
                optimizer._get_norm_groups = lambda: [norm()]
            case Sharding.FLAT_GROUPS if hasattr(optimizer, "get_grads_for_norm"):
                original = optimizer.get_grads_for_norm

                def grads_for_norm(for_clipping: bool = False) -> Any:
                    # What it adds up over the model group must come from one rank of it.
                    part = tensor(self._norm if self.mesh.model_rank == 0 else 0.0)
                    return original(for_clipping=True) if for_clipping else ([part], {})

                optimizer.get_grads_for_norm = grads_for_norm
            case _:
                optimizer.scaled_global_norm = norm

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the learning rate of the next step, for all parameter groups."""
        for group in self.base_optimizer.param_groups:
            group["lr"] = learning_rate

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """Within the context, forwards run in evaluation mode and without gradients."""
        assert self._backwards_left == 0, "evaluate between steps"
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train(was_training)

    def close(self) -> None:
        """Frees DeepSpeed's hooks and waits for all ranks; every rank must call it.

        Destroy the process group only after this: processes that end in another order abort
        at exit now and then.
        """
        self._deepspeed.destroy()
        dist.barrier()


def initialize(
    model: nn.Module,
    *,
    param_groups: Sequence[Mapping[str, Any]],
    optim: AdamWOptions,
    precision: Precision,
    config: ZeroConfig,
    clip_norm: float | None,
    mesh: Mesh,
) -> ZeroEngine:
    """Spreads a model and its AdamW over the ranks.

    Needs an initialised process group and RANK, LOCAL_RANK and WORLD_SIZE in the environment;
    every rank must call it, those of a data group with the same model. The first data rank's
    weights are sent to the others. In bf16 the model is cast in place, and masters start from the
    rounded weights. Gradients are accumulated and reduced in the masters' type.

    Args:
        model: what this rank holds of the model, on any device; buffers keep their type.
        param_groups: groups of `params` with their `weight_decay`: every trainable parameter
            exactly once, and no frozen one. Other keys are ignored.
        optim: options of AdamW.
        precision: type of parameters and activations.
        config: how training state is spread.
        clip_norm: gradients of a larger global norm are scaled down to it; None for never.
        mesh: this rank's place; the model is moved to its device.

    Raises:
        OSError: the directory for offloading cannot be written, or its disk has no room.
    """
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    grouped = [id(p) for group in param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert set(grouped) == trainable, "param_groups must hold exactly the trainable parameters"
    if precision == "bf16":
        # Before it goes to the device: there, in fp32, it might not fit. Buffers keep their type.
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    model.to(mesh.world.device)
    base_optimizer = torch.optim.AdamW(
        optimizer_groups(model, param_groups, mesh),
        lr=optim.learning_rate,
        betas=optim.betas,
        eps=optim.epsilon,
        fused=True,
    )
    on_cpu = mesh.world.device.type == "cpu"
    spares_memory = on_cpu and (optim.precision == "bf16" or config.offload_directory is not None)
    if spares_memory:
        pages.keep_no_freed_memory()
    stage = config.stage
    if stage == 0 and precision == "bf16":
        # Without ZeRO DeepSpeed refuses bf16 parameters with fp32 gradients. Its BF16_Optimizer,
        # which stage 1 becomes in bf16, computes the same numbers in no more memory.
        stage = 1
    num_elements = sum(p.numel() for p in model.parameters())
    deepspeed = deepspeed_access.imported()
    topology = deepspeed_access.tell_groups(mesh)
    directory = None if config.offload_directory is None else Path(config.offload_directory)
    assert directory is None or on_cpu, "refused when the run starts"
    with zero_masters.placed(base_optimizer, directory):
        deepspeed_engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=base_optimizer,
            mpu=topology,
            config=_deepspeed_options(
                config,
                stage=stage,
                precision=precision,
                # Without ZeRO the engine clips, from the same norm.
                clip_norm=clip_norm if stage > 0 else None,
                num_elements=num_elements,
                states=optim.precision,
            ),
            dist_init_required=False,
        )
    if spares_memory:
        pages.keep_no_freed_memory()
    sharding = {0: Sharding.REPLICATED, 3: Sharding.PER_PARAMETER}.get(stage, Sharding.FLAT_GROUPS)
    return ZeroEngine(
        deepspeed_engine,
        mesh=mesh,
        base_optimizer=base_optimizer,
        sharding=sharding,
        clip_norm=clip_norm,
        spares_memory=spares_memory,
    )


def optimizer_groups(
    model: nn.Module, param_groups: Sequence[Mapping[str, Any]], mesh: Mesh
) -> list[dict[str, Any]]:
    """The groups for AdamW; a tied weight of two stages gets one of its own.

    Stages 1 and 2 cut groups, not parameters: alone in its group, the weight is cut at the same
    places on both stages, and the parts of its gradient can be summed.
    """
    tied = zero_gradients.tied_over_stages(model, mesh)
    groups: list[dict[str, Any]] = []
    for group in param_groups:
        rest = [parameter for parameter in group["params"] if parameter is not tied]
        alone = [parameter for parameter in group["params"] if parameter is tied]
        groups += [
            {"params": members, "weight_decay": group["weight_decay"]}
            for members in (rest, alone)
            if members
        ]
    return groups


def _deepspeed_options(
    config: ZeroConfig,
    *,
    stage: int,
    precision: Precision,
    clip_norm: float | None,
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
        "gradient_clipping": clip_norm or 0.0,
        "bf16": {
            "enabled": precision == "bf16",
            "bf16_master_weights_and_grads": states == "bf16",
            "bf16_optimizer_states": states == "bf16",
        },
        "data_types": {"grad_accum_dtype": states},
        "communication_data_type": states,
        "steps_per_print": None,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket_elements,
            "allgather_bucket_size": bucket_elements,
            "stage3_prefetch_bucket_size": bucket_elements,
            "sub_group_size": bucket_elements,
            "stage3_param_persistence_threshold": config.persist_parameters_below,
            "stage3_max_live_parameters": config.live_elements,
            "stage3_max_reuse_distance": config.live_elements,
        },
    }
