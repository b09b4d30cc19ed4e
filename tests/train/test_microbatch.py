"""What `auto` takes, what is tried, and what a run says of a microbatch that does not fit."""

import resource
from pathlib import Path

import numpy as np
import pytest

from model.encoders.image import ImageSpans
from parallel.allocator import FORMER_SETTINGS, SETTINGS, let_segments_expand
from tests.corpora import write_corpus
from tests.train.runs import TINY_RUN, run, start
from train.__main__ import resolve
from train.build import build_collator
from train.config import RunConfig
from train.config_files import load
from train.data.tokens import SpecialTokens
from train.errors import ConfigError
from train.microbatch import Growth, fullest_batch, possible_sizes, settled
from train.run_directory import RunDirectory
from train.watch.metrics import read_metrics


def _config(*overrides: str) -> RunConfig:
    given = ["data.corpus=x", "run_directory=x", "batch.micro_sequences=auto"]
    return load(RunConfig, [str(TINY_RUN), *given, *overrides])


def test_segments_expand_unless_the_user_said_something() -> None:
    environment: dict[str, str] = {}
    let_segments_expand(environment)
    assert environment == {SETTINGS: "expandable_segments:True"}
    for name in (SETTINGS, FORMER_SETTINGS):
        theirs = {name: "max_split_size_mb:128"}
        let_segments_expand(theirs)
        assert theirs == {name: "max_split_size_mb:128"}


def test_torch_is_imported_after_segments_were_asked_for() -> None:
    """Torch may read its settings when it is imported."""
    lines = (Path(__file__).parents[2] / "train/__main__.py").read_text().splitlines()
    asked = next(i for i, line in enumerate(lines) if line.lstrip().startswith("let_segments"))
    before = [line for line in lines[:asked] if line.startswith(("import", "from"))]
    assert before == [
        "import os",
        "from parallel.allocator import let_segments_expand",
        "from train.preemption import quiet_until_asked",
        "from train.watch.heartbeat import Heartbeat",
    ]
    for module in ("parallel/allocator.py", "train/preemption.py", "train/watch/heartbeat.py"):
        assert "torch" not in [
            line.split()[1].split(".")[0]
            for line in (Path(__file__).parents[2] / module).read_text().splitlines()
            if line.startswith(("import", "from"))
        ]


def test_sizes_divide_what_a_rank_has() -> None:
    assert possible_sizes(_config("batch.sequences=12"), ranks=2) == [1, 2, 3, 6]
    # Six microbatches or two: multiples of the stages.
    stages = ("layout={pipeline: 2, chunks: 2}", "model.decoder.num_layers=4")
    assert possible_sizes(_config("batch.sequences=12", *stages), ranks=4) == [1, 3]


@pytest.mark.parametrize(
    ("overrides", "ranks", "expected"),
    [
        (["batch.sequences=256"], 1, 64),  # of 64 slots: 4,096
        (["batch.sequences=256"], 64, 4),
        (["batch.sequences=8"], 1, 8),
        # Four microbatches at least for each stage.
        (["batch.sequences=256", "layout.pipeline=2"], 2, 32),
        (["batch.sequences=2", "layout.pipeline=2"], 2, 1),
    ],
)
def test_auto_on_a_cpu(overrides: list[str], ranks: int, expected: int) -> None:
    config = _config(*overrides)
    assert settled(config, ranks=ranks).micro_sequences == expected
    assert config.identity() == settled(config, ranks=ranks).identity()


def test_a_given_size_stands() -> None:
    config = _config("batch.micro_sequences=2")
    assert settled(config, ranks=1) is config


def test_auto_with_a_batch_that_ranks_cannot_share() -> None:
    with pytest.raises(ConfigError, match=r"8 does not divide into 3 data rank\(s\); the nearest"):
        resolve(_config(), ranks=3)


def test_neither_a_number_nor_auto() -> None:
    for value in ("most", "true", "[]", "null"):
        with pytest.raises(ConfigError) as error:
            _config(f"batch.micro_sequences={value}")
        told = "batch.micro_sequences: input should be a valid integer or auto"
        assert str(error.value).startswith(told)
        assert "\n" not in str(error.value)


def test_auto_that_no_size_satisfies() -> None:
    layout = "layout={tensor: 4, pipeline: 2, chunks: 2, sequence_parallel: true}"
    odd = ("data.sequence_tokens=62", "batch.sequences=2", "model.decoder.num_layers=4")
    with pytest.raises(ConfigError, match=r"auto finds no size"):
        settled(_config(layout, *odd, "model.encoders.text.encoder.heads=4"), ranks=8)


def test_what_is_tried_is_the_fullest() -> None:
    config = _config("data.span_capacity.text={tokens: 40, spans: 3}")
    batch = fullest_batch(config, build_collator(config, SpecialTokens()), 2)
    spans = batch.spans["text"]
    assert batch.tokens.shape == (2, 64)
    assert spans.num_vectors == 80
    assert len(np.unique(spans.slots[:80])) == 80
    # Only the first token of a span is predicted; two spans, of 33 and 7 tokens.
    assert batch.num_scored == 2 * (64 - 40 + 2)
    within = config.model_copy(update={"data": config.data.model_copy(update={"attend": "within"})})
    assert fullest_batch(within, build_collator(within, SpecialTokens()), 1).num_scored == 26


@pytest.mark.parametrize(
    ("shape", "vectors", "pictures"),
    [
        # Behind 16 tokens in spans of text, 62 slots up to the last but one.
        ("max_patches: 20", 46, 3),
        ("max_patches: 20, class_token: kept", 46, 3),
        ("size: [24, 40]", 45, 3),
        ("size: [24, 40], class_token: dropped", 45, 3),
    ],
)
def test_what_is_tried_has_pictures(shape: str, vectors: int, pictures: int) -> None:
    encoder = (
        f"{{kind: image, width: 16, num_layers: 1, heads: 2, feed_forward: 32, patch_pixels: 8, "
        f"{shape}}}"
    )
    config = _config(
        "data.span_capacity.text={tokens: 16, spans: 1}",
        f"model.encoders.image={{encoder: {encoder}}}",
        *("spans.image={kind: image}", "data.pack=fit"),
    )
    batch = fullest_batch(config, build_collator(config, SpecialTokens()), 2)
    spans = batch.spans["image"]
    assert isinstance(spans, ImageSpans)
    assert (spans.num_vectors, spans.num_spans) == (2 * vectors, 2 * pictures)
    slots = [*spans.slots[: spans.num_vectors], *batch.spans["text"].slots[:32]]
    assert len(set(map(int, slots))) == 2 * (vectors + 16)


def test_what_is_tried_behind_a_resampler_has_the_largest_pictures() -> None:
    config = _config(
        "model.encoders.image={encoder: {kind: image, width: 16, num_layers: 1, heads: 2, "
        "feed_forward: 32, patch_pixels: 8, max_patches: 20}, connector: {kind: resampler, "
        "queries: 7}}",
        *("spans.image={kind: image}", "spans.text.ratio=0.0", "data.pack=fit"),
    )
    spans = fullest_batch(config, build_collator(config, SpecialTokens()), 2).spans["image"]
    assert isinstance(spans, ImageSpans)
    # In 62 slots of each sequence.
    assert (spans.num_spans, spans.num_vectors) == (2 * 8, 2 * 8 * 20)
    assert len(set(map(int, spans.slots[: 2 * 8 * 7]))) == 2 * 8 * 7


def test_what_is_tried_without_encoders() -> None:
    config = _config("spans.text.ratio=0.0")
    assert fullest_batch(config, build_collator(config, SpecialTokens()), 2).num_scored == 128


def test_the_largest_that_fits() -> None:
    growth = Growth(fixed_bytes=10.0, sequence_bytes=5.0, usable_bytes=45.0)
    assert growth.largest([1, 2, 4, 8]) == 4
    assert growth.largest([8, 16]) is None


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_run_that_tries_first_trains_the_same(corpus: Path, tmp_path: Path) -> None:
    dropout = "model.encoders.text.encoder.dropout=0.1"
    without = run(corpus, tmp_path / "without", dropout, "batch.micro_sequences=8")
    auto = ("batch.micro_sequences=auto", "batch.try_first=true")
    attempt = start(corpus, tmp_path / "tried", dropout, *auto).wait()
    assert attempt.code == 0
    assert "trying a step of microbatches of 8 sequences, without its update" in attempt.output
    assert "batch.micro_sequences: auto takes 8" in attempt.output
    tried = read_metrics(RunDirectory(tmp_path / "tried").metrics)
    assert [record.loss for record in tried.train] == [record.loss for record in without.train]
    assert tried.validation[-1].loss == without.validation[-1].loss


def test_out_of_memory_is_told_before_the_first_step(corpus: Path, tmp_path: Path) -> None:
    size = 1 << 14
    attempt = start(
        *(corpus, tmp_path / "run", f"batch={{sequences: {size}, micro_sequences: {size}}}"),
        *("batch.try_first=true", "data.span_capacity.text={tokens: 40, spans: 3}"),
    )
    pid = attempt.ranks[0].pid
    assert pid is not None
    _limit_to(3 << 30, pid)
    finished = attempt.wait()
    assert finished.code == 2, finished.output
    assert (
        f"batch.micro_sequences: a microbatch of {size} does not fit: try batch.micro_sequences="
        f"{size // 2}; layout.recompute=selective takes less" in finished.output
    )
    assert "Traceback" not in finished.output
    assert not (tmp_path / "run").exists()


def _limit_to(num_bytes: int, pid: int) -> None:
    """As much address space more than a process has mapped by now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + num_bytes
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
