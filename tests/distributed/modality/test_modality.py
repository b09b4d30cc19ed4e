"""A modality nobody knows: a file beside the encoders, one beside the spans, two lines."""

import numpy as np
import pytest

from model.semicausal import parameter_counts
from parallel.costs import usual_load
from parallel.mesh import LayoutConfig
from parallel.split import with_split
from tests.distributed.modality.encoder import PatchSpans
from tests.distributed.modality.training import SLOTS, batches, configured, in_one_process, on_ranks
from tools.ranks import RankPool
from train.errors import ConfigError

LAYOUTS = {
    "tp2": ["layout.tensor=2", "zero.stage=0"],
    "tp2-frozen": [
        "layout.tensor=2", "zero.stage=1", "model.encoders.patch.encoder.projection_trains=false",
    ],
    "zero3": ["zero.stage=3", "zero.live_elements=0"],
    "zero3-frozen": [
        "zero.stage=3", "model.encoders.patch.encoder.projection_trains=false",
    ],
    "pp2": ["layout.pipeline=2", "zero.stage=1"],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_trains_in_layouts_as_in_one_process(
    rank_pools: dict[int, RankPool], layout: str
) -> None:
    overrides = LAYOUTS[layout]
    model_alone = [each for each in overrides if each.startswith("model.")]
    wanted = np.array(in_one_process(model_alone))
    for found in rank_pools[2].run(on_ranks, overrides):
        np.testing.assert_allclose(np.array(found), wanted, rtol=1e-5)
    assert wanted[-1, 0] < wanted[0, 0]


def test_pictures_count() -> None:
    """Other bytes, another loss; and on the second half of the samples there are none."""
    config = configured([])
    first, second = batches(config, 0)
    spans, none = first.spans["patch"], second.spans["patch"]
    assert isinstance(spans, PatchSpans)
    assert isinstance(none, PatchSpans)
    assert (spans.num_spans, spans.num_vectors) == (2, 6)
    assert none.slots[:1].tolist() == [4 * SLOTS], "the bin"
    assert first.labels[0, :2].tolist() == [-100, -100], "patches are no targets"
    assert first.labels[0, 2] != -100, "what follows is read off the last one"


def test_what_is_asked_of_each_kind_is_answered() -> None:
    config = configured([])
    assert config.span_capacity("patch").tokens == 6
    assert config.span_share == 0.25 + 6 / 48
    assert parameter_counts(config.model)["encoder.patch"] > 24 * 12
    load = usual_load(config.model, sequences=1, sequence_tokens=SLOTS, span_share=0.25)
    assert set(load.spans) == {"text", "patch"}
    layout = LayoutConfig(pipeline=2)
    split = with_split(layout, config.model, sequence_tokens=SLOTS, span_share=0.25).split
    assert split is not None
    assert sum(split) == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("spans.patch.patches=7", "patch.encoder.max_patches: 6 are fewer than an item has"),
        ("layout.tensor=3", "model.encoders.patch.encoder.heads 2"),
        ("spans.patch={kind: random}", "spans.patch.kind: spans of tokens, but the encoder is of"),
        ("spans.text={kind: patches, patches: 4}", "spans.text.kind: patches, but the encoder is"),
        ("model.encoders.patch.encoder.widht=8", "did you mean model.encoders.patch.encoder.width"),
    ],
)
def test_faults_name_its_keys(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configured([override])
