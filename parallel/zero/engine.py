"""The DeepSpeed engine behind a small interface; outside of parallel/, nobody knows DeepSpeed.

A training step reads::

    losses = pipeline.forward_backward(engine, microbatches, scale=...)
    update = engine.step(sums)             # changes nothing if gradient or sums are not finite
    told = update.read()                   # waits for the device; raises if nothing was changed

DeepSpeed's own pipeline engine refuses ZeRO-2 and ZeRO-3. They work under megatron-core's pipeline
schedule if this module and its neighbours do four things:

1. Pass the process groups to DeepSpeed, and compare ZeRO-3's trace within the data group
   (`deepspeed_access`).
2. Tell DeepSpeed before each backward that it begins, and whether it is the last of the step.
3. Sum partial gradients (`gradients`): those of a tied embedding over the first and last pipeline
   stage, and those of sequence-parallel parameters over the tensor group.
4. Take the gradient norm over every element of the model once, its squares summed in fp64.

The host does not wait for the device in it: the norm, the clipping, and whether a step is made at
all stay there, where AdamW's fused kernel reads them. (On a GPU, DeepSpeed itself still waits at
stage 3, and at stage 2 with `zero.overlap`, in each backward.)
"""

import functools
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.fp8 import Scales
from model.layers import logical_name
from parallel.agreement import gathered
from parallel.later import Later
from parallel.mesh import Mesh
from parallel.zero import accumulation, gradients, pages
from parallel.zero.config import Precision, Sharding
from parallel.zero.persistent import Persistent


@dataclass(frozen=True, kw_only=True)
class Told:
    """What came of an update.

    Attributes:
        norm: of the whole gradient before clipping.
        norms: of its parts by their names, such as `decoder.blocks.3`, in the model's order.
        sums: over all ranks of what was passed to `ZeroEngine.step`.
    """

    norm: float
    norms: dict[str, float]
    sums: list[float]


@dataclass(frozen=True, kw_only=True)
class Update:
    """An update that was launched.

    Attributes:
        told: what decided about it, once the device has computed it: the squared norm of the
            gradient as those have it who speak for its elements, the same as the mean over copies,
            those of the parts of the model, and the sums over all ranks of what was passed to
            `ZeroEngine.step`.
        parts: names of the parts.
    """

    told: Later
    parts: Sequence[str]

    def read(self) -> Told:
        """What came of it, the same on every rank.

        Raises:
            FloatingPointError: the gradient is not finite, or the sums are not. The next step's
                takes its place; no parameter and no moment has changed.
            RuntimeError: ranks that should have the same gradient do not; nothing has changed.
        """
        spoken, mean, *rest = self.told.read()
        of_parts, sums = rest[: len(self.parts)], rest[len(self.parts) :]
        for what, values in (("loss", sums), ("gradient", (spoken, mean))):
            # Of one copy of a gradient alone it may be, which another rank speaks for.
            if not all(map(math.isfinite, values)):
                raise FloatingPointError(f"the {what} is not finite")
        if gradients.differ(spoken, mean):
            raise RuntimeError(
                "ranks that should hold the same gradient do not: its squared norm is "
                f"{spoken:.9g} on those that speak for it and {mean:.9g} on the average; this is "
                "a fault of the layout, nothing was stepped"
            )
        norms = dict(zip(self.parts, map(math.sqrt, of_parts), strict=True))
        return Told(norm=math.sqrt(spoken), norms=norms, sums=sums)


class ZeroEngine:
    """A model, its AdamW and their sharding; built by `parallel.engine.build_engine`.

    Attributes:
        module: the model, or this stage's part; call the engine rather than this, so that hooks
            run.
        mesh: this rank's place and groups.
        sharding: where weights and moments live.
        base_optimizer: torch's AdamW, which DeepSpeed drives on flat shards.
        zero_optimizer: DeepSpeed's own optimiser around it (torch's again if `REPLICATED`).
        scales: of the products in fp8, None if there are none.
        persistent: what stage 3 keeps whole, None at other stages.
        part_of: names of the parts of the model that this rank's trained parameters belong to.
    """

    def __init__(
        self,
        deepspeed_engine: Any,
        *,
        mesh: Mesh,
        base_optimizer: torch.optim.Optimizer,
        sharding: Sharding,
        clip_norm: float | None,
        scales: Scales | None = None,
        spares_memory: bool,
        travels_in: Precision,
    ) -> None:
        """Wraps a DeepSpeed engine; use `build_engine`."""
        self.module: nn.Module = deepspeed_engine.module
        self.mesh = mesh
        self.sharding = sharding
        self.base_optimizer = base_optimizer
        self.scales = scales
        self.zero_optimizer: Any = deepspeed_engine.optimizer
        self._deepspeed = deepspeed_engine
        self._clip_norm = clip_norm
        self._spares_memory = spares_memory
        self._backwards_left = 0
        self.part_of = {
            parameter: gradients.part_of(logical_name(name, parameter))
            for name, parameter in self.parameters
            if parameter.requires_grad
        }
        of_ranks = gathered(tuple(dict.fromkeys(self.part_of.values())))
        self._parts = tuple(dict.fromkeys(chain.from_iterable(of_ranks)))
        self._weights = gradients.Weights(self._parts, mesh.world.device)
        self.persistent: Persistent | None = None
        if sharding is not Sharding.REPLICATED:
            self._decide_instead(travels_in)
            # Before DeepSpeed's own hooks on the output, which are put on after this one.
            self.module.register_forward_hook(self._announce_backward)

    @functools.cached_property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The module's, with their names; walking through its parts takes milliseconds."""
        return list(self.module.named_parameters())

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
            if self.mesh.data_size > 1:
                self._deepspeed.allreduce_gradients()
            else:
                self._make_missing_gradients()
        assert self._backwards_left == 0, "fewer backwards than announced"

    def _make_missing_gradients(self) -> None:
        """Nothing is a gradient too: AdamW's moments fade, and weights decay, at every stage."""
        for parameter in self.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

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
        if self.sharding is Sharding.FLAT_GROUPS and self.zero_optimizer.partition_gradients:
            # Stage 2 reduces after each backward. The first gradient would see to the buckets, and
            # a piece on which nothing trains has none.
            self.zero_optimizer.setup_buckets()

    @torch.no_grad()
    def step(self, sums: Tensor | None = None) -> Update:
        """Clips the gradients and updates the parameters; every rank must call it.

        The host does not wait for it. If gradient or sums are not finite, or copies of a gradient
        differ, the device changes nothing, on any rank; reading the result tells.

        Args:
            sums: [n] this rank's part of what is summed over all ranks besides, such as losses.
        """
        held = gradients.collect(self)
        gradients.sum_shared(held, self.mesh)
        told = gradients.squares(held, self._weights.of(held))
        if sums is not None:
            told = torch.cat([told, sums.double()])
        dist.all_reduce(told)
        spoken, mean = told[0], told[1]
        is_bad = ~told.isfinite().all() | gradients.differ(spoken, mean)
        optimizer: Any = self.base_optimizer
        # What torch's fused AdamW divides gradients by, and leaves everything as it is for.
        optimizer.found_inf = is_bad.float()
        if self._clip_norm is not None:
            optimizer.grad_scale = ((spoken.sqrt() + 1e-6) / self._clip_norm).clamp(min=1).float()
        self._deepspeed.step()
        if self.persistent is not None:
            self.persistent.renew()
        if self.scales is not None:
            seen = self.scales.gathered()
            dist.all_reduce(seen, op=dist.ReduceOp.MAX)
            self.scales.settle(seen, keep=is_bad)
        return Update(told=Later(told), parts=self._parts)

    def _decide_instead(self, travels_in: Precision) -> None:
        """Leaves DeepSpeed nothing to decide: norms that it asks for are 1, and nothing is clipped.

        Whatever it decided itself it would have to wait for the device for.
        """
        optimizer = self.zero_optimizer
        match self.sharding:
            case Sharding.PER_PARAMETER:
                optimizer._get_norm_groups = lambda: [1.0]
                optimizer.unscale_and_clip_grads = lambda *_: None
                # They are the parts of the flat buffer already.
                optimizer._unflatten_partitioned_parameters = lambda _: None
                self.persistent = Persistent(optimizer, self.module, self.mesh)
            case Sharding.FLAT_SUMS:
                optimizer.get_grads_for_norm = lambda *_, **__: ([], {})
                accumulation.spare_traffic(self._deepspeed, self.mesh, travels_in=travels_in)
            case _:
                optimizer.scaled_global_norm = lambda: 1.0
                # They are views of the flat buffer already.
                optimizer._update_model_bit16_weights = lambda _: None

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the learning rate of the next step, for all parameter groups."""
        for group in self.base_optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_ratio"]

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
