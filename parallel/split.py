"""Splits the decoder's layers over pipeline stages, which differ in what else they do."""

from model.semicausal import ModelConfig
from parallel.costs import model_work, usual_load
from parallel.mesh import LayoutConfig


def with_split(
    layout: LayoutConfig, config: ModelConfig, *, sequence_tokens: int, span_share: float
) -> LayoutConfig:
    """The layout with the decoder layers of each piece: as configured, or what balances the stages.

    The first piece also runs the encoders and connectors, the last one the head; they are weighed
    by their operations in training.

    Args:
        layout: as configured.
        config: the model.
        sequence_tokens: S.
        span_share: share of the slots in spans.

    Raises:
        ValueError: there are fewer layers than pieces.
    """
    if layout.split is not None:
        return layout
    load = usual_load(config, sequences=1, sequence_tokens=sequence_tokens, span_share=span_share)
    work = model_work(config, load, recompute=layout.recompute)
    split = balanced(
        config.decoder.num_layers,
        pipeline=layout.pipeline,
        chunks=layout.chunks,
        layer=work.layer.training,
        first=work.first,
        last=work.head.training,
    )
    return layout.model_copy(update={"split": list(split)})


def balanced(
    num_layers: int, *, pipeline: int, chunks: int = 1, layer: float, first: float, last: float
) -> tuple[int, ...]:
    """Layers of each piece, in model order, that minimise the slowest stage.

    Piece p lies on stage p % pipeline.

    Args:
        num_layers: layers of the decoder.
        pipeline: stages.
        chunks: pieces of each stage.
        layer: cost of one layer, in any unit.
        first: what the first piece costs besides its layers, in the same unit.
        last: what the last piece costs besides its layers.

    Raises:
        ValueError: there are fewer layers than pieces.
    """
    pieces = pipeline * chunks
    if num_layers < pieces:
        what = f"{pipeline} stages" + (f" of {chunks} chunks" if chunks > 1 else "")
        raise ValueError(
            f"layout: {num_layers} layers cannot be split over {what}; each needs a layer: lower "
            "layout.pipeline or layout.chunks"
        )
    extra = [0.0] * pieces
    extra[0] += first
    extra[-1] += last
    of_stages = [sum(extra[stage::pipeline]) for stage in range(pipeline)]
    stage_layers = _fill(of_stages, least=chunks, num_layers=num_layers, layer=layer)
    split = [0] * pieces
    for stage, num_here in enumerate(stage_layers):
        # Within a stage, evenly too: a bubble is as long as the longest piece.
        split[stage::pipeline] = _fill(
            extra[stage::pipeline], least=1, num_layers=num_here, layer=layer
        )
    return tuple(split)


def _fill(extra: list[float], *, least: int, num_layers: int, layer: float) -> list[int]:
    """Layers for each place, at least `least`, that minimise the largest of extra + layers.

    Giving each layer to the place where it makes the smallest sum is exact, for layers are alike:
    whatever sum it must exceed, every other way exceeds too. Of equals the last one takes it: early
    stages hold the activations of more microbatches.
    """
    counts = [least] * len(extra)
    for _ in range(num_layers - least * len(extra)):
        sums = [(extra[i] + (counts[i] + 1) * layer, -i) for i in range(len(extra))]
        counts[-min(sums)[1]] += 1
    return counts
