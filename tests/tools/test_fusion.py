"""Both arms of `make fusion` are judged by the same tokens."""

import pytest
import torch

from model.layers import initialize
from model.semicausal import SemiCausal
from tests import pictures
from tests.corpora import VOCABULARY
from tools.fusion import ARMS, EXPERIMENT, PREFIX_TOKENS, batches_of, differences, losses
from train.build import open_sources
from train.config import RunConfig
from train.config_files import load
from train.data.spans.prefix import PrefixConfig

ALL = PrefixConfig(max_tokens=PREFIX_TOKENS, share=1.0)


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    rows = [*pictures.interleaved(60), *pictures.albums(12)]
    root = tmp_path_factory.mktemp("fusion")
    corpus = pictures.build(root / "corpus", rows, flags=("--validation", "0.3"))
    own = (f"data.corpus={corpus}", f"model.decoder.vocabulary={VOCABULARY}", "steps=1")
    smaller = ("optim.warmup_steps=1", "model.encoders.image.encoder.size=[8, 16]")
    return {name: load(RunConfig, [EXPERIMENT, *arm, *own, *smaller]) for name, arm in ARMS.items()}


def model_of(config: RunConfig) -> SemiCausal:
    model = SemiCausal(config.built_model).eval()
    initialize(model, seed=1)
    return model


def test_losses_are_of_the_same_tokens(configs: dict[str, RunConfig]) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for arm, config in configs.items():
        with_text = list(batches_of(open_sources(config), config, ALL))
        alone = list(batches_of(open_sources(config), config, None))
        assert len(with_text) == len(alone) > 0
        assert sum(b.num_scored for b in with_text) < sum(b.num_scored for b in alone)
        seen[arm] = [batch.labels for batch in (*with_text, *alone)]
        found = losses(model_of(config), open_sources(config), config)
        assert found.keys() == {"caption_loss", "loss_behind_beginning"}
        assert all(4 < loss < 8 for loss in found.values()), found
    for one, other in zip(*seen.values(), strict=True):
        assert one.equal(other)


def test_differences_are_in_pairs() -> None:
    rows = [
        {"arm": arm, "seed": seed, "loss": seed + shift * (arm == "fused")}
        for seed, shift in ((1, 0.5), (2, 0.1), (3, 0.3))
        for arm in ("fused", "alone")
    ]
    (found,) = differences(rows).values()
    assert found["mean"] == pytest.approx(0.3)
    assert found["standard_error"] == pytest.approx(0.2 / 3**0.5)
