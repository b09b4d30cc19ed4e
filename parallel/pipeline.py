"""Microbatches through the stages: megatron-core's 1F1B and interleaved schedules.

Each stage sends a tensor of fixed shape: the rows of a microbatch by the decoder's width. So stages
never exchange shapes, and only the first stage reads spans.

Source: PipeDream-Flush / 1F1B and interleaving: Narayanan et al. (2104.04473) §2.2.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from model.batch import Batch
from model.loss import Loss
from model.semicausal import SemiCausal
from parallel import cuda_free
from parallel.forward import Engine
from parallel.megatron import core
from parallel.named import Part, backwards_named, mark, named
from parallel.zero.engine import ZeroEngine


def forward_backward(engine: ZeroEngine, batches: Sequence[Batch], *, scale: float) -> list[Loss]:
    """Forward and backward of a step's microbatches; every rank must call it.

    Args:
        engine: holds this rank's part of the model.
        batches: microbatches of one shape, the same on all ranks that hold one copy of the model.
        scale: what the summed loss is multiplied by, one over the global count of scored tokens.

    Returns:
        The loss of each microbatch, unscaled and without gradient, on ranks of the last stage;
        nothing on the others.
    """
    # DeepSpeed averages over data ranks what is to be summed.
    scale *= engine.mesh.data_size
    num_pieces = len(_model(engine).pieces) if engine.mesh.pipeline_size > 1 else 1
    with engine.accumulating(len(batches) * num_pieces):
        if engine.mesh.pipeline_size > 1:
            return _run_schedule(engine, batches, scale=scale)
        losses: list[Loss] = []
        for number, batch in enumerate(batches):
            with named(Part.FORWARD, number, 0):
                loss = engine(batch)
            with named(Part.BACKWARD, number, 0):
                (loss.total * scale).backward()
            losses.append(_detached(loss))
        return losses


def forward(engine: Engine, batches: Sequence[Batch]) -> list[Loss]:
    """Losses without gradients; every rank must call it, inside `engine.evaluating()`.

    Args:
        engine: holds this rank's part of the model.
        batches: microbatches of one shape, the same on all ranks that hold one copy of the model.

    Returns:
        As `forward_backward` does.
    """
    if engine.mesh.pipeline_size == 1:
        return [engine(batch) for batch in batches]
    # The interleaved schedule goes round in groups of as many microbatches as there are stages.
    num_pieces, stages = len(_model(engine).pieces), engine.mesh.pipeline_size
    missing = -len(batches) % stages if num_pieces > 1 else 0
    padded = [*batches, *(batches[-1] for _ in range(missing))]
    return _run_schedule(engine, padded, scale=None)[: len(batches)]


def microbatch_fault(num_microbatches: int, *, pipeline: int, chunks: int) -> str | None:
    """Why a step of so many microbatches cannot run, None if it can."""
    if chunks > 1 and num_microbatches % pipeline:
        return (
            f"layout.chunks: the interleaved schedule needs a multiple of layout.pipeline "
            f"({pipeline}) microbatches a step and there are {num_microbatches}: change "
            "batch.micro_sequences or batch.sequences, or use chunks=1"
        )
    return None


def _run_schedule(engine: Engine, batches: Sequence[Batch], *, scale: float | None) -> list[Loss]:
    schedules: Any = core("pipeline_parallel.schedules")
    settings = _settings(engine)
    pieces = [_Piece(engine, index, settings) for index in range(len(_model(engine).pieces))]
    num_sequences, num_slots = batches[0].tokens.shape
    shapes = {tuple(batch.tokens.shape) for batch in batches}
    assert len(shapes) == 1, f"microbatches of several shapes: {shapes}"

    def step(iterator: Iterator[tuple[int, Batch]], piece: _Piece) -> Any:
        number, batch = next(iterator)
        with named(Part.FORWARD, number, piece.index):
            output = piece(batch)
        if not isinstance(output, Loss):
            mark(output, number, piece.index)
            return output, None
        # The schedule divides by the number of microbatches, in place.
        scaled = output.total * (len(batches) * (scale or 1.0))
        mark(scaled, number, piece.index)
        return scaled, lambda total: (total, _detached(output))

    run = (
        schedules.forward_backward_pipelining_with_interleaving
        if len(pieces) > 1
        else schedules.forward_backward_pipelining_without_interleaving
    )
    with cuda_free.on_cpu(), backwards_named(schedules):
        return run(
            forward_step_func=step,
            data_iterator=[enumerate(batches) for _ in pieces],
            model=pieces,
            num_microbatches=len(batches),
            seq_length=num_sequences * num_slots,
            micro_batch_size=1,
            forward_only=scale is None,
        )


class _Piece(nn.Module):
    """A piece of the model as megatron's schedules want it; holds no parameters itself."""

    def __init__(self, engine: Engine, index: int, settings: Any):
        super().__init__()
        self.config = settings
        self.model_type = core("enums").ModelType.encoder_or_decoder
        # Not registered: the engine owns the module.
        self._engine = (engine,)
        self.index = index
        self._received: Tensor | None = None

    def set_input_tensor(self, received: list[Tensor | None]) -> None:
        """Takes what the stage before has sent, [R, 1, H]."""
        self._received = received[0]

    def forward(self, batch: Batch) -> Loss | Tensor:
        """The loss, or what the next stage gets."""
        rows = None if self._received is None else self._received.squeeze(1)
        output = self._engine[0](batch, rows, piece=self.index)
        return output.unsqueeze(1) if isinstance(output, Tensor) else output


def _settings(engine: Engine) -> Any:
    module, mesh = _model(engine), engine.mesh
    num_pieces = len(module.pieces)
    decoder = module.config.decoder
    dtype = next(module.parameters()).dtype
    interleaved = num_pieces > 1
    config_class: Any = core("transformer.transformer_config").TransformerConfig
    # It warns, at every step, of a value that is its own default.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return config_class(
            num_layers=decoder.num_layers,
            hidden_size=decoder.width,
            num_attention_heads=decoder.heads,
            tensor_model_parallel_size=mesh.tensor_size,
            pipeline_model_parallel_size=mesh.pipeline_size,
            virtual_pipeline_model_parallel_size=num_pieces if interleaved else None,
            microbatch_group_size_per_vp_stage=mesh.pipeline_size if interleaved else None,
            sequence_parallel=module.sequence_parallel,
            pipeline_dtype=dtype,
            params_dtype=dtype,
            use_cpu_initialization=True,
            perform_initialization=False,
            gradient_accumulation_fusion=False,
            masked_softmax_fusion=False,
            bias_dropout_fusion=False,
            bias_activation_fusion=False,
            apply_rope_fusion=False,
            # A stage waits for its neighbours only where it has nothing else to do.
            overlap_p2p_comm=interleaved,
            batch_p2p_comm=not interleaved,
        )


def _model(engine: Engine) -> SemiCausal:
    assert isinstance(engine.module, SemiCausal)
    return engine.module


def _detached(loss: Loss) -> Loss:
    return Loss(loss.total.detach(), loss.terms)
