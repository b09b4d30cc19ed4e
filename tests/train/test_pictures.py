"""Runs on corpora with pictures: they learn, go on elsewhere, and name what cannot be read."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests import pictures
from tests.tiny_pictures import PICTURES
from tests.train.runs import TINY_RUN, kill_at, run, start
from tools.corpus import media
from tools.evaluate import main as evaluate
from tools.ledger import main as ledger
from train.build import build_plan
from train.claim import refuse_other_run
from train.config import RunConfig
from train.config_files import from_stored, load
from train.data.ledger import read_ledger
from train.data.spans import picture
from train.errors import ConfigError, DataError, RunDirectoryError
from train.storage.place import Place
from train.watch.metrics import Metrics

STEPS = 8


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Documents with pictures and without, of two sources: one has hardly any picture."""
    root = tmp_path_factory.mktemp("mixed")
    sources = {
        "drawn": {
            "corpus": str(
                pictures.build(root / "a", pictures.interleaved(90, most_items=2, words=6))
            ),
            "weight": 1.0,
        },
        "told": {
            "corpus": str(pictures.build(root / "b", pictures.colours(4, plain=90))),
            "weight": 1.0,
        },
    }
    written = yaml.safe_dump(sources, default_flow_style=True, width=10_000).strip()
    return [
        *PICTURES, f"data.sources={written}", "data.corpus=null", "data.shuffle_window=40",
        "spans.image={kind: image, augment: {area: [0.4, 1.0], flip: 0.5}}",
        f"steps={STEPS}", "batch.micro_sequences=1", "validation.every_steps=100",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(mixed: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metrics]:
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return directory, run("null", directory, *mixed, ranks=2)


def losses(metrics: Metrics) -> dict[int, float]:
    return {record.step: record.loss for record in metrics.train}


def test_it_goes_on_as_if_nothing_had_been(
    mixed: list[str], whole: tuple[Path, Metrics], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On as many ranks to the bit, on fewer to 1e-5, and each step was read once."""
    wanted, same, other = losses(whole[1]), tmp_path / "same", tmp_path / "other"
    for directory, ranks in ((same, 2), (other, 1)):
        kill_at(start("null", directory, *mixed, ranks=2), directory, step=3)
        found = losses(run("null", directory, *mixed, ranks=ranks))
        assert sorted(found) == list(range(1, STEPS + 1))
        if ranks == 2:
            assert found == wanted
        else:
            assert found == pytest.approx(wanted, rel=1e-5)
        assert ledger(["check", str(directory)]) == 0
        assert "every global batch was read once, in order" in capsys.readouterr().out


def read_of(directory: Path, ranks: int) -> list[list[np.ndarray]]:
    """What each rank has read in each step, in order."""
    starts = read_ledger(directory / "ledger")
    return [
        [record.identities for record in starts[1][rank][1] if record.identities is not None]
        for rank in range(ranks)
    ]


def test_who_computes_what_changes_no_number(
    mixed: list[str], whole: tuple[Path, Metrics], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Sequences dealt by what their pictures cost, and as they are mixed."""
    as_mixed = run("null", tmp_path / "run", *mixed, "data.balance=false", ranks=2)
    assert losses(as_mixed) == pytest.approx(losses(whole[1]), rel=1e-6)
    norms, others = ([r.gradient_norm for r in m.train] for m in (as_mixed, whole[1]))
    assert norms == pytest.approx(others, rel=1e-5)
    assert ledger(["check", str(tmp_path / "run")]) == 0
    assert "every global batch was read once, in order" in capsys.readouterr().out
    dealt, mixed_up = read_of(whole[0], 2), read_of(tmp_path / "run", 2)
    moved = 0
    for step in range(STEPS):
        each = [np.concatenate([rank[step] for rank in read])[:, 1:] for read in (dealt, mixed_up)]
        assert sorted(each[0].tolist()) == sorted(each[1].tolist())
        moved += not np.array_equal(dealt[0][step], mixed_up[0][step])
    assert moved > STEPS / 2


def test_the_order_stays_what_it_was(mixed: list[str], whole: tuple[Path, Metrics]) -> None:
    """Of runs of versions without it, too."""
    config = load(RunConfig, [str(TINY_RUN), *mixed])
    stored = config.model_dump(mode="json")
    as_before = stored | {"data": {k: v for k, v in stored["data"].items() if k != "balance"}}
    refuse_other_run(config, from_stored(RunConfig, stored, place="here"), Place.of(whole[0]))
    owner = from_stored(RunConfig, as_before, place="here")
    with pytest.raises(RunDirectoryError, match=r"undo\n  data\.balance: False there, True here$"):
        refuse_other_run(config, owner, Place.of(whole[0]))
    data = config.data.model_copy(update={"balance": False})
    refuse_other_run(config.model_copy(update={"data": data}), owner, Place.of(whole[0]))


def test_documents_apart(mixed: list[str], whole: tuple[Path, Metrics], tmp_path: Path) -> None:
    apart = run(
        "null",
        tmp_path / "run",
        *mixed,
        "data.attend=within",
        "steps=2",
        "batch.try_first=true",
        ranks=2,
    )
    assert all(losses(apart)[step] != losses(whole[1])[step] for step in (1, 2))
    out = str(tmp_path / "out.json")
    assert evaluate([str(whole[0]), "--sequences", "4", "--out", out]) == 0


def test_behind_a_resampler_pictures_take_as_many_slots(
    mixed: list[str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """A run of it is the same on two ranks, and told before it begins."""
    options = (
        *mixed, "steps=2", "zero.stage=3", "batch.try_first=true",
        "model.encoders.image.connector={kind: resampler, queries: 7, num_layers: 1}",
    )  # fmt: skip
    one, two = (
        losses(run("null", tmp_path / str(ranks), *options, ranks=ranks)) for ranks in (1, 2)
    )
    assert one == pytest.approx(two, rel=1e-5)
    ended = start("null", tmp_path / "dry", *options, "--dry-run").wait()
    assert re.search(r"slots of one image +│? *7\b", ended.output), ended.output


def test_it_learns_what_pictures_show(tmp_path: Path) -> None:
    """One of three colours is told beside each: without the picture nobody can know which."""
    rows = [
        {"image": row["image"], "text": row["text"].split()[-1]} for row in pictures.colours(240)
    ]
    corpus = pictures.build(tmp_path / "seen", rows)
    turned = rows[1:] + rows[:1]
    shuffled = [{**row, "text": other["text"]} for row, other in zip(rows, turned, strict=True)]
    blind = pictures.build(tmp_path / "blind", shuffled)
    options = (
        *PICTURES, "spans.text.ratio=0.0", "steps=60", "validation.every_steps=60",
        "checkpoint.every_steps=60",
    )  # fmt: skip
    seen, unseen = (
        run(each, tmp_path / f"run-{each.name}", *options).validation[-1].loss
        for each in (corpus, blind)
    )
    assert seen < 0.75 * unseen


def broken(
    monkeypatch: pytest.MonkeyPatch, root: Path, measured: Callable[[bytes], tuple[int, int]]
) -> Path:
    """A corpus in which one picture is cut off, as no build of ours makes it."""
    rows = pictures.colours(60)
    rows[7]["image"] = rows[7]["image"][:60]
    with monkeypatch.context() as patched:
        patched.setattr(media.picture, "measured", measured)
        return pictures.build(root, rows, flags=("--validation", "0.05"))


def test_a_picture_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corpus = broken(monkeypatch, tmp_path / "corpus", picture.read_size)
    options = (*PICTURES, "steps=4", "batch.micro_sequences=1")
    ended = start(corpus, tmp_path / "run", *options, ranks=2).wait()
    assert ended.code == 2, ended.output[-3000:]
    told = re.search(
        r"image 1 of document \d+ of \S*/corpus/train \((\S+:8)\) cannot be read \(.*\): build the "
        r"corpus again without it, or name the document in data\.unscored_ids",
        ended.output,
    )
    assert told is not None, ended.output[-3000:]
    left_out = f"data.unscored_ids=[{told[1]}]"
    run(corpus, tmp_path / "run", *options, left_out, ranks=2)


def test_a_picture_that_is_not_what_was_recorded_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = pictures.colours(60)
    with monkeypatch.context() as patched:
        patched.setattr(media.picture, "measured", lambda data: (9, 9))
        corpus = pictures.build(tmp_path / "corpus", rows)
    ended = start(corpus, tmp_path / "run", *PICTURES, "steps=4", ranks=2).wait()
    assert ended.code == 2, ended.output[-3000:]
    assert re.search(
        r"image 1 of document \d+ of .* has \d+x\d+ pixels and had 9x9 when the corpus was built: "
        "build the corpus again",
        ended.output,
    )


def configured(*overrides: str) -> RunConfig:
    return load(RunConfig, [str(TINY_RUN), "run_directory=x", "data.corpus=x", *overrides])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["spans.image=null"], ["spans.image: "]),
        (["data.pack=stream"], ["spans.image.kind: image needs documents that stay whole"]),
        (
            ["data.span_capacity.image={tokens: 15, spans: 4}", "data.pack=stream"],
            [
                "data.span_capacity.image.tokens: 15 slots are fewer than one image may take (16",
                "spans.image.kind: image needs documents that stay whole",
            ],
        ),
        (
            ["model.encoders.image.encoder.max_patches=64"],
            ["spans.image: one image may take 64 slots, and a sequence has 64, one of them"],
        ),
        (
            ["spans.image={kind: random}"],
            ["spans.image.kind: spans of tokens, but the encoder is of kind image"],
        ),
        (
            ["spans.image={kind: image, prefix: {max_tokens: 8}}"],
            [
                "spans.image.prefix: the encoder reads no text: set model.encoders.image.encoder.t",
                "spans.image.prefix: text behind items is read with them, and spans.text would be",
            ],
        ),
        (
            ["model.encoders.image.encoder.text={}"],
            ["model.encoders.image.encoder.text: no text is read behind pictures: set spans.image"],
        ),
        (
            [
                "model.encoders.image.encoder.text={max_tokens: 8}",
                "spans.image={kind: image, prefix: {max_tokens: 9}}",
            ],
            ["spans.image.prefix.max_tokens: 9 exceeds model.encoders.image.encoder.text.max_to"],
        ),
        (
            ["model.encoders.text.connector={kind: resampler}"],
            ["model.encoders.text.connector.kind: resampler gives 64 vectors whatever is read, "],
        ),
        (
            ["model.encoders.image.connector={kind: resampler}"],
            ["spans.image: one image may take 64 slots, and a sequence has 64, one of them"],
        ),
        (
            [
                "model.encoders.image.connector={kind: resampler, queries: 20}",
                "data.span_capacity.image={tokens: 15, spans: 4}",
            ],
            ["may take (20 vectors of model.encoders.image.connector): raise it, or have it make"],
        ),
        (
            [
                "model.encoders.image.connector={kind: resampler, queries: 9, heads: 4}",
                "layout={tensor: 8}",
            ],
            ["model.encoders.image.connector.heads 4"],
        ),
        (
            ["spans.text={kind: image}"],
            [
                "spans.text.kind: image, but the encoder is of kind text",
                "spans.text.kind: image, which is what documents call the modality: name it so",
            ],
        ),
    ],
)
def test_faults_of_the_configuration(overrides: list[str], says: list[str]) -> None:
    configured(*PICTURES)
    with pytest.raises(ConfigError) as told:
        configured(*PICTURES, *overrides)
    for each in says:
        assert each in str(told.value)


def test_a_kind_of_spans_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigError, match=r"spans\.image: is missing; .* e\.g\. kind=image"):
        configured(*(each for each in PICTURES if not each.startswith("spans.image")))


def test_an_encoder_wants_data_and_data_an_encoder(tmp_path: Path) -> None:
    plain = pictures.build(tmp_path / "plain", pictures.colours(0, plain=60))
    drawn = pictures.build(tmp_path / "drawn", pictures.colours(60))
    with pytest.raises(DataError, match=r"model\.encoders\.image: .*/plain has nothing that it re"):
        build_plan(configured(*PICTURES, f"data.corpus={plain}"))
    with pytest.raises(DataError, match=r"drawn/train has \d+ spans of image, and the model has"):
        build_plan(configured("data.pack=fit", f"data.corpus={drawn}"))
