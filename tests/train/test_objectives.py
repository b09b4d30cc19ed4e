"""Encoders that train alone, and runs that begin with them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.layers import Layers
from model.objectives.alone import EncoderAlone
from tests import pictures, sounds
from tests.corpora import write_corpus
from tests.model.encoders import test_image
from tests.tiny_media import READING
from tests.tiny_pictures import PICTURES
from tests.train.runs import TINY_RUN, kill_at, run, start
from tools.evaluate import main as evaluate
from tools.ledger import main as ledger
from tools.units import main as make_units
from train.build import parameters_by_part
from train.checkpoint.restore import load_weights
from train.config import RunConfig
from train.config_files import load
from train.errors import CheckpointError, ConfigError
from train.loading import load_config, load_model
from train.watch.metrics import Metrics

STEPS = 36
MASKED = "{kind: masked_patches, encoder: image, width: 16, heads: 2, feed_forward: 32}"
ALONE = (
    *PICTURES, f"objective={MASKED}", f"steps={STEPS}", "checkpoint.every_steps=12",
    "validation.every_steps=36",
)  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.build(tmp_path_factory.mktemp("seen") / "corpus", pictures.colours(60, plain=6))


@pytest.fixture(scope="module")
def alone(seen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metrics]:
    directory = tmp_path_factory.mktemp("alone") / "run"
    return directory, run(seen, directory, *ALONE, ranks=2)


def losses(metrics: Metrics) -> dict[int, float]:
    return {record.step: record.loss for record in metrics.train}


def features(encoder: Any) -> torch.Tensor:
    spans = test_image.packed(encoder.config, test_image.pictures(encoder.config, [(32, 16)]))
    with torch.no_grad():
        return encoder.eval()(spans)


def test_it_learns_and_is_no_whole_model(alone: tuple[Path, Metrics]) -> None:
    directory, metrics = alone
    first, last = [record.loss for record in metrics.validation]
    assert last < 0.8 * first, "pictures of one colour tell what is hidden"
    assert metrics.baseline is None, "there are no tokens to predict"
    config = load_config(directory)
    assert config.objective is not None
    counts = parameters_by_part(config)
    built = EncoderAlone(
        "image", config.model.encoders["image"].encoder, config.objective, vocabulary=300
    )
    assert sum(counts.values()) == sum(parameter.numel() for parameter in built.parameters())
    with pytest.raises(CheckpointError, match=r"name it in model\.encoders\.image\.encoder\.init"):
        load_model(directory, device=torch.device("cpu"))
    assert evaluate([str(directory)]) != 0


def test_it_goes_on_as_if_nothing_had_been(
    seen: Path, alone: tuple[Path, Metrics], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On as many ranks to the bit, on fewer to 1e-5: masks are those of the samples."""
    for ranks in (2, 1):
        directory = tmp_path / str(ranks)
        kill_at(start(seen, directory, *ALONE, ranks=2), directory, step=14)
        found = losses(run(seen, directory, *ALONE, ranks=ranks))
        assert found == pytest.approx(losses(alone[1]), rel=0 if ranks == 2 else 1e-5)
        assert ledger(["check", str(directory)]) == 0
        assert "every global batch was read once, in order" in capsys.readouterr().out


def test_a_run_begins_with_it(seen: Path, alone: tuple[Path, Metrics], tmp_path: Path) -> None:
    """What is fixed of an encoder gives the features that it gave where it was trained."""
    begun = f"model.encoders.image.encoder.init_from={alone[0]}"
    others = "trainable=[decoder, connectors, encoders.text]"
    run(seen, tmp_path / "run", *PICTURES, begun, others, "steps=2")
    found = load_model(tmp_path / "run", device=torch.device("cpu")).encoders["image"]
    config = load_config(alone[0]).model.encoders["image"].encoder
    before = config.build(vocabulary=300, layers=Layers(), recompute="none")
    load_weights(alone[0], before, prefix="encoders.image.")
    assert torch.equal(features(found), features(before))
    refused = start(seen, tmp_path / "other", *PICTURES, f"init_from={alone[0]}").wait()
    assert "an encoder that was trained alone, and no whole model" in refused.output


def test_sounds_and_texts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Contrast, units that a command has made, and replaced tokens, each a short run."""
    corpus = pictures.build(tmp_path / "corpus", sounds.tones(60))
    file = tmp_path / "units.safetensors"
    hearing = (*READING["audio"], "data.attend=within", "steps=12")
    masks = "encoder: audio, starts: 0.2, mask_rows: 2, width: 16"
    units = f"objective={{kind: masked_units, units: 6, clusters: {file}, {masks}}}"
    arguments = [str(TINY_RUN), f"data.corpus={corpus}", "run_directory=none", *hearing, units]
    refused = start(corpus, tmp_path / "none", *hearing, units).wait()
    assert f"objective.clusters: {file} cannot be read" in refused.output
    assert make_units([str(file), *arguments, "--steps", "2"]) == 0
    assert f"{file}: 6 clusters of " in capsys.readouterr().out
    write_corpus(text := tmp_path / "text")
    replaced = "objective={kind: replaced_tokens, width: 8, heads: 2, feed_forward: 16}"
    for name, place, options in (
        ("units", corpus, (*hearing, units)),
        ("contrast", corpus, (*hearing, f"objective={{kind: contrast, entries: 8, {masks}}}")),
        ("replaced", text, (replaced, "spans.text.ratio=0.5", "steps=12")),
    ):
        metrics = run(place, tmp_path / name, *options)
        first, *_, last = [record.loss for record in metrics.validation]
        if name != "contrast":  # a tone is the same all along: there is nothing to tell apart
            assert last < first, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["objective.encoder=sound"], "objective.encoder: sound: name which of text, image"),
        (["objective.encoder=null"], "objective.encoder: missing: name which of text, image"),
        (["objective.encoder=text"], "objective.kind: masked_patches, and the encoder is of kind"),
        (["objective.heads=3"], "objective.heads: 3 heads do not divide width 16"),
        (["layout.tensor=2"], "layout.tensor: with an objective an encoder trains alone"),
        (["trainable=[encoders]"], "trainable: with an objective an encoder trains alone"),
        (["samples.prompts=[a]"], "samples.prompts: with an objective an encoder trains alone"),
    ],
)  # fmt: skip
def test_refused(options: list[str], message: str) -> None:
    arguments = [str(TINY_RUN), "data.corpus=none", "run_directory=none", *ALONE]
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, [*arguments, *options])
    assert message in str(caught.value)
