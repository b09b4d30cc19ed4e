"""This rank's part of the model: its pieces of the decoder, its share of each layer."""

from model.layers import DenseLayers, Layers
from model.semicausal import ModelConfig, SemiCausal
from parallel.mesh import LayoutConfig, Mesh, held_pieces
from parallel.split import default_split
from parallel.tensor import TensorLayers


def split_of(
    config: ModelConfig, layout: LayoutConfig, *, sequence_tokens: int, span_share: float
) -> tuple[int, ...]:
    """Decoder layers of each piece: as configured, or what balances the stages.

    Raises:
        ValueError: there are fewer layers than pieces.
    """
    if layout.split is not None:
        return tuple(layout.split)
    return default_split(
        config,
        pipeline=layout.pipeline,
        chunks=layout.chunks,
        sequence_tokens=sequence_tokens,
        span_share=span_share,
        recompute=layout.recompute,
    )


def build_part(
    config: ModelConfig, layout: LayoutConfig, mesh: Mesh, *, split: tuple[int, ...]
) -> SemiCausal:
    """The part of the model that this rank holds, without first values.

    Args:
        config: the whole model.
        layout: as configured.
        mesh: this rank's place.
        split: decoder layers of each piece.
    """
    layers: Layers = DenseLayers()
    encoder_layers: Layers = layers
    if mesh.tensor_group is not None:
        layers = TensorLayers(mesh.tensor_group, sequence_parallel=layout.sequence_parallel)
        # The rows of spans are too few and too uneven to be shared.
        encoder_layers = TensorLayers(mesh.tensor_group, sequence_parallel=False)
    return SemiCausal(
        config,
        layers,
        encoder_layers=encoder_layers,
        pieces=held_pieces(split, layout, pipeline_rank=mesh.pipeline_rank),
        recompute=layout.recompute,
    )
