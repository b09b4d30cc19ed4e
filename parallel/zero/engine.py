"""The DeepSpeed engine behind a small interface; outside of parallel/, nobody knows DeepSpeed.

A training step reads::

    losses = pipeline.forward_backward(engine, microbatches, scale=...)
    grad_norm = engine.step()                  # raises, having changed nothing, if not finite

DeepSpeed's own pipeline engine refuses ZeRO-2 and ZeRO-3. They work under megatron-core's pipeline
schedule if this module and its neighbours do four things:

1. Pass the process groups to DeepSpeed, and compare ZeRO-3's trace within the data group
   (`deepspeed_access`).
2. Tell DeepSpeed before each backward that it begins, and whether it is the last of the step.
3. Sum partial gradients (`gradients`): those of a tied embedding over the first and last pipeline
   stage, and those of sequence-parallel parameters over the tensor group.
4. Take the gradient norm over every element of the model once, in fp64.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.mesh import Mesh
from parallel.zero import gradients, pages
from parallel.zero.config import Sharding


class ZeroEngine:
    """A model, its AdamW and their sharding; built by `parallel.engine.build_engine`.

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
        """Wraps a DeepSpeed engine; use `build_engine`."""
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
        held = gradients.collect(self)
        gradients.sum_shared(held, self.mesh)
        self._norm = gradients.global_norm(held, self.mesh)
        if self.sharding is Sharding.REPLICATED:
            self._step_replicated(held)
            return self._norm
        # DeepSpeed asks for the norm first and skips the update if it is not finite.
        self._deepspeed.step()
        if not self._deepspeed.was_step_applied():
            raise FloatingPointError("the gradient is not finite")
        return self._norm

    def _step_replicated(self, held: list[gradients.Gradient]) -> None:
        # DeepSpeed neither clips by this norm nor checks it without ZeRO.
        if not math.isfinite(self._norm):
            self._deepspeed.zero_grad()
            raise FloatingPointError("the gradient is not finite")
        if self._clip_norm is not None and self._norm > self._clip_norm:
            for gradient in held:
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
