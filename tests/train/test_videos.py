"""Runs on corpora with videos: they learn what happens, and refuse what does not fit."""

import re
from pathlib import Path

import pytest

from tests import clips, pictures
from tests.train.runs import TINY_RUN, kill_at, run, start
from tools.corpus import media
from tools.ledger import main as ledger
from train.build import build_plan
from train.config import RunConfig
from train.config_files import load
from train.errors import ConfigError, DataError
from train.watch.metrics import Metrics

ENCODER = (
    "kind: video, width: 16, num_layers: 2, heads: 2, feed_forward: 32, patch_pixels: 8, "
    "frames: 4, size: [32, 8]"
)
VIDEOS = (
    f"model.encoders.video={{encoder: {{{ENCODER}}}}}",
    "spans.video={kind: video}",
    "data.pack=fit",
    "spans.text.ratio=0.0",
)
DIVIDED = (
    f"model.encoders.video={{encoder: {{{ENCODER}, tube_frames: 1, attention: divided, "
    "positions: learned, class_token: kept}}",
    *VIDEOS[1:],
)


def losses(metrics: Metrics) -> dict[int, float]:
    return {record.step: record.loss for record in metrics.train}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    return pictures.build(root / "seen", clips.colours(240))


@pytest.mark.long
@pytest.mark.parametrize("kind", [VIDEOS, DIVIDED], ids=["joint", "divided"])
def test_it_learns_what_happens(kind: tuple[str, ...], corpus: Path, tmp_path: Path) -> None:
    """Which of two colours came first is told behind each: no frame alone tells it."""
    still = pictures.build(tmp_path / "still", clips.colours(240, is_still=True))
    options = (*kind, "steps=150", "validation.every_steps=150", "checkpoint.every_steps=150")
    moving, unmoved = (
        run(each, tmp_path / f"run-{each.name}", *options).validation[-1].loss
        for each in (corpus, still)
    )
    assert moving < 0.6 * unmoved


@pytest.mark.parametrize("kind", [VIDEOS, DIVIDED], ids=["joint", "divided"])
def test_it_goes_on_as_if_nothing_had_been(
    kind: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On two ranks, of which one may have no video: the same losses behind a kill, to the bit."""
    mixed = pictures.build(
        tmp_path / "mixed", clips.interleaved(90, most_items=1, with_pictures=False)
    )
    options = (*kind, "steps=6", "batch.micro_sequences=1", "validation.every_steps=100")
    wanted = losses(run(mixed, tmp_path / "whole", *options, ranks=2))
    directory = tmp_path / "killed"
    kill_at(start(mixed, directory, *options, ranks=2), directory, step=3)
    assert losses(run(mixed, directory, *options, ranks=2)) == wanted
    assert ledger(["check", str(directory)]) == 0
    assert "every global batch was read once, in order" in capsys.readouterr().out


def test_a_video_that_is_not_what_was_recorded_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(media.clip, "measured", lambda data: (9, 32, 32, 360))
        corpus = pictures.build(tmp_path / "corpus", clips.turns(60))
    ended = start(corpus, tmp_path / "run", *VIDEOS, "steps=4").wait()
    assert ended.code == 2, ended.output[-3000:]
    assert re.search(
        r"video 1 of document \d+ of .* has \d frames of 32x32 in \d+ ms and had 9 frames of 32x32 "
        "in 360 ms when the corpus was built: build the corpus again without it, or name the doc",
        ended.output,
    )


def configured(*overrides: str) -> RunConfig:
    return load(RunConfig, [str(TINY_RUN), "run_directory=x", "data.corpus=x", *overrides])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.pack=stream"], "spans.video.kind: video needs documents that stay whole"),
        (
            ["data.span_capacity.video={tokens: 7, spans: 4}"],
            "data.span_capacity.video.tokens: 7 slots are fewer than one video may take (8",
        ),
        (
            ["model.encoders.video.encoder.size=[64, 64]"],
            "spans.video: one video may take 128 slots, and a sequence has 64, one of them",
        ),
        (
            ["spans.video={kind: audio}"],
            "spans.video.kind: audio, but the encoder is of kind video",
        ),
        (
            ["model.encoders.video.encoder.frames=3"],
            "frames: 3 are not a multiple of tube_frames, which is 2",
        ),
    ],
)
def test_faults_of_the_configuration(overrides: list[str], says: str) -> None:
    configured(*VIDEOS)
    configured(*DIVIDED)
    with pytest.raises(ConfigError) as told:
        configured(*VIDEOS, *overrides)
    assert says in str(told.value)


def test_videos_want_an_encoder(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"seen/train has \d+ spans of video, and the model has no"):
        build_plan(configured("data.pack=fit", f"data.corpus={corpus}"))
