"""Blocks compiled by torch.compile where they stand: names, parameters and hooks stay as they are.

A block of whole layers is one graph; equal blocks share it. Those of the decoder have one shape,
those of encoders as many as there are spans: their graph leaves it open. Layers that are split
over ranks talk to the others in the middle of their work, which no graph holds: there the steps
between them are compiled, each to one pass over its rows, and take the layers' biases along.

Without gradients nothing is compiled: evaluation would compile all once more for little work, and
generation has another shape at every token.
"""

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from model.block import Block, Steps
from model.config import Compile
from parallel.errors import UserError

SETTLED_STEPS: Final = 3
"""After this many steps of a start, whatever is compiled is one graph too many."""

MOST_GRAPHS: Final = 64
"""Of one function. Kinds of blocks and which of their inputs train make up to ten."""

REMEDY: Final = "set model.compile=none"


class CompileError(UserError):
    """Blocks that the user wants compiled cannot be; the message says why."""


@dataclass(eq=False)
class Compilation:
    """What compiling the blocks of this process has come to.

    Attributes:
        is_optional: whether blocks may run as they stand where compiling them fails.
        num_graphs: compiled so far.
        seconds: which that took.
        failure: why blocks run uncompiled from now on, None as long as they do not.
    """

    is_optional: bool = True
    num_graphs: int = 0
    seconds: float = 0.0
    failure: str | None = None
    _settled: int = field(default=0, init=False)
    _told: set[str] = field(default_factory=set[str], init=False)

    def news(self, step: int) -> Iterator[str]:
        """What there is to say after a step, each thing once.

        Args:
            step: how many steps this start has made.
        """
        if step == 0 and self.failure is None and not self.num_graphs:  # none by a trial before it
            yield "the blocks are compiled in the first step, which may take a minute"
        if self.num_graphs and self._is_new("compiled"):
            yield f"blocks compiled: {self.num_graphs} graph(s) in {self.seconds:.1f} s"
        if step <= SETTLED_STEPS:
            self._settled = self.num_graphs
        again = self.num_graphs - self._settled
        if again and self._is_new("again"):
            yield (
                f"blocks were compiled again after {SETTLED_STEPS} steps ({again} graph(s)): each "
                f"holds up its step; if that goes on, {REMEDY}"
            )
        if self.failure is not None and self._is_new("failure"):
            yield f"model.compile: the blocks run uncompiled from here on ({self.failure})"

    def _is_new(self, what: str) -> bool:
        is_new = what not in self._told
        self._told.add(what)
        return is_new


class _Compiled:
    """A function that is compiled when it is first called for a gradient."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        dynamic: bool,
        backend: str | Callable[..., Any],
        state: Compilation,
    ):
        self._function = function
        self._state = state
        self._compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)

    def __call__(self, *inputs: Any) -> Any:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._dynamo.utils import counters

        state = self._state
        if state.failure is not None or not torch.is_grad_enabled():
            return self._function(*inputs)
        before, started = counters["stats"]["unique_graphs"], time.perf_counter()
        try:
            outputs = self._compiled(*inputs)
        except FailOnRecompileLimitHit:
            state.failure = f"{MOST_GRAPHS} graphs of one function, and another shape"
            return self._function(*inputs)
        except TorchDynamoException as error:
            state.failure = _in_one_line(error)
            if state.is_optional:
                return self._function(*inputs)
            raise CompileError(
                f"model.compile: the blocks cannot be compiled ({state.failure}): {REMEDY}"
            ) from error
        if made := counters["stats"]["unique_graphs"] - before:
            state.num_graphs += made
            state.seconds += time.perf_counter() - started
        return outputs


def _in_one_line(error: Exception) -> str:
    inner = getattr(error, "inner_exception", None) or error
    lines = (line.strip() for line in str(inner).splitlines())
    return f"{type(inner).__name__}: {next(filter(None, lines), 'no reason is given')}"


def why_no_compiler(device: torch.device) -> str | None:
    """What this host lacks to compile for a device; None if nothing."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        names = [os.environ.get("CC"), "gcc", "clang"]
    else:
        names = [os.environ.get("CXX"), "g++", "clang++"]
    if not any(name is not None and shutil.which(name) for name in names):
        return f"there is no compiler, such as {names[1]}, in PATH"
    return None


def keep_in(directory: Path) -> None:
    """Has the compilers of this process keep what they compile, and look for it, in a directory.

    Several processes may share it, one after the other or at a time.

    Raises:
        OSError: it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass
    place = directory.absolute()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(place / "triton")


def compile_if(wanted: Compile, model: nn.Module, *, device: torch.device) -> None:
    """Has the blocks of a model compiled if that is wanted: `auto` wants it on CUDA."""
    is_optional = wanted == "auto"
    if wanted == "none" or (is_optional and device.type != "cuda"):
        return
    lacking = why_no_compiler(device)
    if is_optional and lacking is not None:
        vars(model)["compilation"] = Compilation(failure=lacking)
        return
    compile_blocks(model, is_optional=is_optional)


def compile_blocks(
    model: nn.Module,
    *,
    is_optional: bool = False,
    backend: str | Callable[..., Any] = "inductor",
) -> Compilation:
    """Has all blocks of a model compiled, each when it first computes with gradients.

    Args:
        model: with layers of any kind; adapters may still be put on.
        is_optional: whether blocks may run as they stand where compiling them fails.
        backend: what compiles a graph, as `torch.compile` takes it.

    Returns:
        What comes of it; `compilation_of` finds it again.
    """
    _settle_torch()
    state = Compilation(is_optional=is_optional)
    steps = {
        dynamic: _steps(partial(_Compiled, dynamic=dynamic, backend=backend, state=state))
        for dynamic in (False, True)
    }
    for block in blocks_of(model):
        whole, between = steps[block.attention.shapes_vary]
        up, down, out = block.feed_forward.up, block.feed_forward.down, block.attention.out
        inner = [layer for layer in (up, block.feed_forward.gate) if layer is not None]
        if getattr(up, "skip_bias_add", None) is None:
            block.steps = whole
            continue
        block.steps = between
        is_certain = isinstance(block.dropout, nn.Identity)
        for layer in (*inner, out, down) if is_certain else inner:
            vars(layer)["skip_bias_add"] = True
    vars(model)["compilation"] = state
    return state


def _settle_torch() -> None:
    """Options of torch's compiler that are the whole process's."""
    import torch._dynamo.config as tracing
    import torch._functorch.config as differentiating
    import torch.fx.experimental._config as shapes

    tracing.recompile_limit = max(tracing.recompile_limit, MOST_GRAPHS)
    # Else as many spans as heads, in the first batch, would be taken for a rule.
    shapes.use_duck_shape = False
    # A backward is compiled with its forward, where a failure can still be answered.
    if hasattr(differentiating, name := "force_non_lazy_backward_lowering"):  # torch's own matter
        setattr(differentiating, name, True)


def _steps(compiled: Callable[[Callable[..., Any]], Any]) -> tuple[Steps, Steps]:
    """Those of a block that is compiled whole, and of one that is compiled between its layers."""
    plain = Steps()
    between = Steps(
        activate=compiled(plain.activate),
        gate=compiled(plain.gate),
        join=compiled(plain.join),
        post_norm=compiled(plain.post_norm),
        pre_norm=compiled(plain.pre_norm),
    )
    return Steps(whole=compiled(plain.whole)), between


def blocks_of(model: nn.Module) -> Iterator[Block]:
    """All blocks, of the decoder and of encoders."""
    return (module for module in model.modules() if isinstance(module, Block))


def compilation_of(model: nn.Module) -> Compilation | None:
    """How the blocks of a model are compiled, None if they are not."""
    return vars(model).get("compilation")


def will_compile(model: nn.Module) -> bool:
    """Whether blocks that have to be compiled still are to be; alike on all ranks between steps."""
    state = compilation_of(model)
    return state is not None and not state.is_optional and not state.num_graphs


def in_words(model: nn.Module) -> str:
    """How the blocks of a model have been run."""
    state = compilation_of(model)
    if state is None or not state.num_graphs:
        why = "" if state is None or state.failure is None else f" ({state.failure})"
        return f"as they stand{why}"
    return f"{state.num_graphs} graph(s), compiled in {state.seconds:.1f} s"


def news(model: nn.Module, *, step: int) -> Iterator[str]:
    """What there is to say of compiling a model, see `Compilation.news`."""
    state = compilation_of(model)
    return iter(()) if state is None else state.news(step)
