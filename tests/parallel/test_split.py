"""The default split is the best there is, by brute force."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.semicausal import ModelConfig
from parallel.costs import model_work, usual_load
from parallel.mesh import LayoutConfig
from parallel.split import balanced, with_split
from train.config import RunConfig
from train.config_files import load as load_config

EXPERIMENT = str(Path(__file__).parents[2] / "configs/experiment/metalm_1p3b.yaml")


@pytest.fixture(scope="module")
def metalm() -> ModelConfig:
    return load_config(RunConfig, [EXPERIMENT]).model


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for head in range(1, total - parts + 2):
        for rest in compositions(total - head, parts - 1):
            yield (head, *rest)


def slowest(
    split: tuple[int, ...], *, pipeline: int, layer: float, first: float, last: float
) -> float:
    pieces = [layer * layers for layers in split]
    pieces[0] += first
    pieces[-1] += last
    return max(sum(pieces[stage::pipeline]) for stage in range(pipeline))


@pytest.mark.parametrize("first", [0.0, 0.6, 1.4, 3.7])
@pytest.mark.parametrize("last", [0.0, 1.75, 2.4, 9.0])
@pytest.mark.parametrize(("pipeline", "chunks"), [(1, 1), (2, 1), (4, 1), (3, 1), (2, 2), (2, 3)])
def test_no_other_split_is_faster(first: float, last: float, pipeline: int, chunks: int) -> None:
    for num_layers in (pipeline * chunks, 9, 12):
        if num_layers < pipeline * chunks:
            continue
        found = balanced(
            num_layers, pipeline=pipeline, chunks=chunks, layer=1.0, first=first, last=last
        )
        assert sum(found) == num_layers
        assert min(found) >= 1

        def cost(split: tuple[int, ...]) -> float:
            return slowest(split, pipeline=pipeline, layer=1.0, first=first, last=last)

        best = min(cost(split) for split in compositions(num_layers, len(found)))
        assert cost(found) == pytest.approx(best)


def default_split(
    config: ModelConfig, *, pipeline: int, chunks: int = 1, span_share: float = 0.25
) -> tuple[int, ...]:
    layout = LayoutConfig(pipeline=pipeline, chunks=chunks)
    found = with_split(layout, config, sequence_tokens=2048, span_share=span_share).split
    assert found is not None
    return tuple(found)


def test_the_1p3b_over_four_stages(metalm: ModelConfig) -> None:
    split = default_split(metalm, pipeline=4, span_share=0.27)
    assert split == (5, 7, 7, 5)
    load = usual_load(metalm, sequences=1, sequence_tokens=2048, span_share=0.27)
    work = model_work(metalm, load)
    layer, first, last = work.layer.training, work.first, work.head.training
    ideal = (24 * layer + first + last) / 4

    def lost(split: tuple[int, ...]) -> float:
        return 1 - ideal / slowest(split, pipeline=4, layer=layer, first=first, last=last)

    assert lost(split) == pytest.approx(0.024, abs=0.005)
    assert lost((6, 6, 6, 6)) == pytest.approx(0.120, abs=0.005)


def test_interleaved_pieces_of_a_stage_are_even(metalm: ModelConfig) -> None:
    split = default_split(metalm, pipeline=2, chunks=3)
    assert sum(split) == 24
    middle = split[2:4]
    assert max(middle) - min(middle) <= 1
    assert split[0] < split[2]
    assert split[-1] < split[3]


def test_a_gpt_has_nothing_on_its_first_stage(metalm: ModelConfig) -> None:
    gpt = ModelConfig(decoder=metalm.decoder, encoders={})
    split = default_split(gpt, pipeline=4)
    assert split[0] >= max(split) - 1
    assert split[-1] < split[0]


def test_too_few_layers_say_what_to_change(metalm: ModelConfig) -> None:
    with pytest.raises(ValueError, match=r"24 layers cannot be split over 16 stages of 2 chunks"):
        default_split(metalm, pipeline=16, chunks=2)
    with pytest.raises(ValueError, match=r"24 layers .* 25 stages; .* layout.pipeline"):
        default_split(metalm, pipeline=25)
