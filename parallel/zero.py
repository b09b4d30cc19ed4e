"""The DeepSpeed engine behind a small interface; no other module calls DeepSpeed.

A training step reads::

    engine = zero.initialize(model, param_groups=..., optim=..., precision="bf16", ...)
    for microbatch in microbatches:            # exactly `accumulation` of them
        engine.backward(engine(microbatch))    # the losses of all ranks sum to the global mean
    grad_norm = engine.step()                  # raises, having changed nothing, if not finite
"""

import enum
import importlib
import math
import os
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from model.config import Config

Precision = Literal["fp32", "bf16"]


class ZeroConfig(Config):
    """How training state is spread over the ranks. Source: ZeRO, https://arxiv.org/abs/1910.02054."""

    stage: Literal[0, 1, 2, 3] = 1
    """What each rank holds only a share of: nothing (0), optimiser state (1), gradients too (2),
    parameters too (3)."""
    bucket_elements: Annotated[int, Field(gt=0)] = 50_000_000
    """Elements sent in one collective call; larger is faster and takes more memory."""
    persist_parameters_below: Annotated[int, Field(ge=0)] = 10_000
    """Stage 3 keeps parameters of at most this many elements whole on every rank."""
    live_elements: Annotated[int, Field(ge=0)] = 1_000_000_000
    """Stage 3 keeps about this many elements of gathered parameters at a time, so that one used
    again soon is not gathered twice; smaller saves memory."""


class AdamWOptions(NamedTuple):
    """Options of AdamW that all parameter groups share."""

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float


class Sharding(enum.Enum):
    """Where the full-precision weights and the moments live."""

    REPLICATED = enum.auto()
    """In the parameters themselves, whole on every rank."""
    FLAT_GROUPS = enum.auto()
    """In one flat tensor a parameter group, of which each rank holds a contiguous part."""
    PER_PARAMETER = enum.auto()
    """Each parameter is cut in as many equal parts as there are ranks."""


def why_unsupported(stage: int, precision: Precision) -> str | None:
    """Why this machine cannot train at this stage and precision, or None if it can.

    Every stage runs in both precisions on CPU and CUDA; what may be missing is the hardware.
    """
    if precision == "fp32" or not torch.cuda.is_available():
        return None
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    device_name = torch.cuda.get_device_name()
    return f"{device_name} has no bfloat16 arithmetic, at ZeRO-{stage} or any other stage: use fp32"


class ZeroEngine:
    """A model, its AdamW and their sharding; built by `initialize`.

    Attributes:
        module: the model; call the engine rather than this, so that hooks run.
        accumulation: microbatches in a step.
        sharding: where weights and moments live.
        base_optimizer: torch's AdamW, which DeepSpeed drives on flat shards.
        zero_optimizer: DeepSpeed's own optimiser around it (torch's again if `REPLICATED`).
    """

    def __init__(
        self,
        deepspeed_engine: Any,
        *,
        base_optimizer: torch.optim.Optimizer,
        sharding: Sharding,
        accumulation: int,
        clip_norm: float | None,
    ) -> None:
        """Wraps a DeepSpeed engine; use `initialize`."""
        self.module: nn.Module = deepspeed_engine.module
        self.accumulation = accumulation
        self.sharding = sharding
        self.base_optimizer = base_optimizer
        self.zero_optimizer: Any = deepspeed_engine.optimizer
        self._deepspeed = deepspeed_engine
        self._clip_norm = clip_norm
        self._num_ranks = dist.get_world_size()
        self._num_backwards = 0

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The model's forward; all ranks must call it alike."""
        return self._deepspeed(*inputs, **options)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one microbatch; the last of a step also reduces them.

        Args:
            loss: [] scaled so that the sum over all ranks and microbatches of the step is the
                loss to minimise (a sum over scored tokens divided by their global count).
        """
        assert self._num_backwards < self.accumulation, "call step() after the last microbatch"
        self._num_backwards += 1
        is_last = self._num_backwards == self.accumulation
        self._deepspeed.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed divides by the microbatches and averages over the ranks.
        self._deepspeed.backward(loss * (self.accumulation * self._num_ranks))

    def step(self) -> float:
        """Clips the gradients and updates the parameters; every rank must call it.

        Returns:
            L2 norm of the whole gradient before clipping, the same on every rank.

        Raises:
            FloatingPointError: the gradient is not finite. It is raised on every rank; the
                gradient is dropped, no parameter and no moment has changed.
        """
        assert self._num_backwards == self.accumulation, "step() comes after the last microbatch"
        self._num_backwards = 0
        if self.sharding is Sharding.REPLICATED:
            return self._step_replicated()
        # DeepSpeed takes the norm first and skips the update, on all ranks, if it is not finite.
        self._deepspeed.step()
        if not self._deepspeed.was_step_applied():
            raise FloatingPointError("the gradient is not finite")
        return float(self._deepspeed.get_global_grad_norm())

    def _step_replicated(self) -> float:
        # DeepSpeed knows no norm and no finite check without ZeRO, so both are done here; the
        # gradients have been reduced in the last backward.
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        # In fp64: torch's fp32 norm on CPU is off by 3e-5 at two million elements.
        norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in gradients]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        if not math.isfinite(norm):
            self._deepspeed.zero_grad()
            raise FloatingPointError("the gradient is not finite")
        if self._clip_norm is not None and norm > self._clip_norm:
            for gradient in gradients:
                gradient.mul_(self._clip_norm / (norm + 1e-6))
        self._deepspeed.step()
        return norm

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the learning rate of the next step, for all parameter groups."""
        for group in self.base_optimizer.param_groups:
            group["lr"] = learning_rate

    def gathered(self, params: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Makes parameters whole on every rank, to be read within the context.

        Every rank must enter with the same parameters. Below stage 3 they are whole anyway.
        """
        if self.sharding is not Sharding.PER_PARAMETER:
            return nullcontext()
        return _deepspeed().zero.GatheredParameters(list(params), modifier_rank=None)

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """Within the context, forwards run in evaluation mode and without gradients."""
        assert self._num_backwards == 0, "evaluate between steps"
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
    accumulation: int,
    clip_norm: float | None,
    device: torch.device,
) -> ZeroEngine:
    """Spreads a model and its AdamW over the ranks.

    Needs an initialised process group and RANK, LOCAL_RANK and WORLD_SIZE in the environment;
    every rank must call it with the same model. Rank 0's weights are sent to the others. In bf16
    the model is cast in place; full-precision master weights start from the rounded ones, and
    gradients are accumulated and reduced in fp32.

    Args:
        model: the model, on any device; buffers keep their type.
        param_groups: groups of `params` with their `weight_decay`: every trainable parameter
            exactly once, and no frozen one. Other keys are ignored.
        optim: options of AdamW.
        precision: type of parameters and activations.
        config: how training state is spread.
        accumulation: microbatches in a step.
        clip_norm: gradients of a larger global norm are scaled down to it; None for never.
        device: where the model lives.
    """
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    grouped = [id(p) for group in param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert set(grouped) == trainable, "param_groups must hold exactly the trainable parameters"
    model.to(device)
    base_optimizer = torch.optim.AdamW(
        [
            {"params": list(group["params"]), "weight_decay": group["weight_decay"]}
            for group in param_groups
            if group["params"]
        ],
        lr=optim.learning_rate,
        betas=optim.betas,
        eps=optim.epsilon,
        fused=True,
    )
    stage = config.stage
    if stage == 0 and precision == "bf16":
        # Without ZeRO DeepSpeed refuses bf16 parameters with fp32 gradients. Its BF16_Optimizer,
        # which stage 1 becomes in bf16, computes the same numbers in no more memory.
        stage = 1
    num_elements = sum(p.numel() for p in model.parameters())
    deepspeed_engine, *_ = _deepspeed().initialize(
        model=model,
        optimizer=base_optimizer,
        config=_deepspeed_options(
            config,
            stage=stage,
            precision=precision,
            accumulation=accumulation,
            # Without ZeRO the engine clips, from its own norm.
            clip_norm=clip_norm if stage > 0 else None,
            num_elements=num_elements,
        ),
        dist_init_required=False,
    )
    sharding = {0: Sharding.REPLICATED, 3: Sharding.PER_PARAMETER}.get(stage, Sharding.FLAT_GROUPS)
    return ZeroEngine(
        deepspeed_engine,
        base_optimizer=base_optimizer,
        sharding=sharding,
        accumulation=accumulation,
        clip_norm=clip_norm,
    )


def _deepspeed_options(
    config: ZeroConfig,
    *,
    stage: int,
    precision: Precision,
    accumulation: int,
    clip_norm: float | None,
    num_elements: int,
) -> dict[str, Any]:
    # Stage 3 allocates a whole bucket in advance, however small the model.
    bucket_elements = min(config.bucket_elements, num_elements)
    bucket_elements += bucket_elements % 2  # DeepSpeed asks for an even number
    return {
        # The loop owns batch sizes; DeepSpeed only wants the product to be consistent.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip_norm or 0.0,
        "bf16": {"enabled": precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": None,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket_elements,
            "allgather_bucket_size": bucket_elements,
            "stage3_prefetch_bucket_size": bucket_elements,
            "stage3_param_persistence_threshold": config.persist_parameters_below,
            "stage3_max_live_parameters": config.live_elements,
            "stage3_max_reuse_distance": config.live_elements,
        },
    }


def _deepspeed() -> Any:
    """DeepSpeed, imported when first needed: it takes seconds, and reading a config is quick."""
    if not torch.cuda.is_available():
        # It must not guess, and it looks only once, at import.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = importlib.import_module("deepspeed")
    if not torch.cuda.is_available():
        # On CPU it would compile an all-reduce for inference, never used here: half a minute,
        # or a crash where there is no compiler. It builds only what this table calls compatible.
        vars(importlib.import_module("deepspeed.ops"))["__compatible_ops__"] = {}
    # BF16_Optimizer prints memory reports whatever the log level, a garbage collection each.
    vars(importlib.import_module("deepspeed.runtime.bf16_optimizer"))["see_memory_usage"] = _silent
    # DeepSpeed calls collectives by names that torch 2.13 would rather have changed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    return deepspeed


def _silent(*_: object, **__: object) -> None:
    pass
