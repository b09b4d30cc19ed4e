"""Runs on corpora with sounds: they learn what is heard, and refuse what does not fit."""

import re
from pathlib import Path

import pytest

from tests import pictures, sounds
from tests.train.runs import TINY_RUN, kill_at, run, start
from tools.corpus import media
from tools.ledger import main as ledger
from train.build import build_plan
from train.config import RunConfig
from train.config_files import load
from train.errors import ConfigError, DataError
from train.watch.metrics import Metrics

ENCODER = "kind: audio, width: 16, num_layers: 2, heads: 2, feed_forward: 32, max_seconds: 0.2"
WAVEFORM = (
    "front: {kind: waveform, channels: [16, 16, 16], kernels: [40, 8, 4], strides: [20, 8, 4], "
    "position_kernel: 4, position_groups: 2}"
)
SOUNDS = (
    f"model.encoders.audio={{encoder: {{{ENCODER}, front: {{kind: log_mel, mels: 20}}}}}}",
    "spans.audio={kind: audio}",
    "data.pack=fit",
    "spans.text.ratio=0.0",
)
WAVES = (f"model.encoders.audio={{encoder: {{{ENCODER}, {WAVEFORM}}}}}", *SOUNDS[1:])


def losses(metrics: Metrics) -> dict[int, float]:
    return {record.step: record.loss for record in metrics.train}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tones")
    return pictures.build(root / "heard", sounds.tones(240))


@pytest.mark.long
def test_it_learns_what_is_heard(corpus: Path, tmp_path: Path) -> None:
    """One of three tones is told behind each: without the sound nobody can know which."""
    rows = sounds.tones(240)
    turned = rows[1:] + rows[:1]
    shuffled = [{**row, "text": other["text"]} for row, other in zip(rows, turned, strict=True)]
    deaf = pictures.build(tmp_path / "deaf", shuffled)
    options = (
        *SOUNDS, "steps=60", "validation.every_steps=60", "checkpoint.every_steps=60",
    )  # fmt: skip
    heard, unheard = (
        run(each, tmp_path / f"run-{each.name}", *options).validation[-1].loss
        for each in (corpus, deaf)
    )
    assert heard < 0.6 * unheard


def test_it_goes_on_as_if_nothing_had_been(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On two ranks, of which one may have no sound: the same losses behind a kill, to the bit."""
    mixed = pictures.build(
        tmp_path / "mixed", sounds.interleaved(90, most_items=2, with_pictures=False)
    )
    options = (*SOUNDS, "steps=6", "batch.micro_sequences=1", "validation.every_steps=100")
    wanted = losses(run(mixed, tmp_path / "whole", *options, ranks=2))
    directory = tmp_path / "killed"
    kill_at(start(mixed, directory, *options, ranks=2), directory, step=3)
    assert losses(run(mixed, directory, *options, ranks=2)) == wanted
    assert ledger(["check", str(directory)]) == 0
    assert "every global batch was read once, in order" in capsys.readouterr().out


def test_a_sound_that_is_not_what_was_recorded_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(media.sound, "measured", lambda data: (900, 8000))
        corpus = pictures.build(tmp_path / "corpus", sounds.tones(60))
    ended = start(corpus, tmp_path / "run", *SOUNDS, "steps=4").wait()
    assert ended.code == 2, ended.output[-3000:]
    assert re.search(
        r"audio 1 of document \d+ of .* has \d+ samples at \d+ Hz and had 900 at 8000 Hz when the "
        "corpus was built: build the corpus again without it, or name the document in",
        ended.output,
    )


def configured(*overrides: str) -> RunConfig:
    return load(RunConfig, [str(TINY_RUN), "run_directory=x", "data.corpus=x", *overrides])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.pack=stream"], "spans.audio.kind: audio needs documents that stay whole"),
        (
            ["data.span_capacity.audio={tokens: 9, spans: 4}"],
            "data.span_capacity.audio.tokens: 9 slots are fewer than one audio may take (10",
        ),
        (
            ["model.encoders.audio.encoder.max_seconds=30.0"],
            "spans.audio: one audio may take 1,500 slots, and a sequence has 64, one of them",
        ),
        (
            ["spans.audio={kind: image}"],
            "spans.audio.kind: image, but the encoder is of kind audio",
        ),
        (
            ["model.encoders.audio.encoder.front={kind: waveform, mels: 80}"],
            "model.encoders.audio.encoder.front.mels: no such key",
        ),
    ],
)
def test_faults_of_the_configuration(overrides: list[str], says: str) -> None:
    configured(*SOUNDS)
    configured(*WAVES)
    with pytest.raises(ConfigError) as told:
        configured(*SOUNDS, *overrides)
    assert says in str(told.value)


def test_sounds_want_an_encoder(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(
        DataError, match=r"heard/train has \d+ spans of audio, and the model has no"
    ):
        build_plan(configured("data.pack=fit", f"data.corpus={corpus}"))


def test_a_sound_that_is_too_long_is_named_before_anything_trains(corpus: Path) -> None:
    plan = build_plan(
        configured(*SOUNDS, f"data.corpus={corpus}", "model.encoders.audio.encoder.max_seconds=0.1")
    )
    with pytest.raises(DataError, match=r"document \d+ of .* has a sound of 0\.\d+ seconds, and"):
        plan.sources.all[0].sequences.sequence(0)
