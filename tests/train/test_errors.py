"""Every mistake a user can make at the command line: one clear message, status 2, nothing lost."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parallel.launch import World
from parallel.mesh import LayoutConfig, build_mesh
from tests.corpora import write_corpus
from tests.train.runs import TINY_RUN, run, start
from train import __main__ as command
from train.build import build_collator, build_model, open_sources
from train.config import RunConfig
from train.config_files import from_stored, load
from train.data.sample import Sample
from train.errors import CheckpointError, ConfigError, DataError, UserError
from train.exit_status import ExitStatus
from train.explain import RENAMED
from train.prepare import agreed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """Run the command in this process; it must refuse before it joins other ranks."""
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    monkeypatch.setattr(command, "join", lambda **_: pytest.fail("a process group was started"))
    assert command.main() == 2
    return capsys.readouterr().err


def tiny(corpus: Path | str, directory: Path, *overrides: str) -> list[str]:
    return [str(TINY_RUN), f"data.corpus={corpus}", f"run_directory={directory}", *overrides]


def config(corpus: Path | str, directory: Path, *overrides: str) -> RunConfig:
    return load(RunConfig, tiny(corpus, directory, *overrides))


MISTAKES = [
    (["optim.lrr=1"], "optim.lrr: no such key; did you mean optim.lr?"),
    (["lr=1"], "lr: no such key; did you mean optim.lr?"),
    (["spans.text.rati=0.1"], "spans.text.rati: no such key; did you mean spans.text.ratio?"),
    (
        ["model.encoders.text.encoder.hedas=2"],
        "model.encoders.text.encoder.hedas: no such key; did you mean "
        "model.encoders.text.encoder.heads?",
    ),
    (
        ["model.encoders.text.connector={kind: linear, num_layrs: 2}"],
        "no such key; did you mean model.encoders.NAME.connector.num_layers?",
    ),
    (["steps=many"], "steps: input should be a valid integer (got 'many')"),
    (["run_directory=s3://lab/runs/a"], "run_directory: s3://lab/runs/a is no directory of this"),
    (["run_directory=$NOT_SET/a"], "run_directory: $NOT_SET/a: the variable $NOT_SET is not set"),
    (["storage.cache=s3://lab/cache"], "storage.cache: s3://lab/cache is no directory of this"),
    (
        ["zero.stage=3", "checkpoint.asynchronous=false", "zero.offload_directory=~nobody-here/a"],
        "zero.offload_directory: ~nobody-here/a: there is no such home",
    ),
    (
        ["checkpoint.directory=s3://lab/saved"],
        "checkpoint.directory: s3://lab/saved is in a store: set run_mirror=s3://lab/saved instead",
    ),
    (["checkpoint.directory=' '"], "checkpoint.directory: cannot be the name of a file"),
    (["profile={steps: [2, 99]}"], "profile.steps: 99 is no step of the run, or left out"),
    (["profile={steps: [2]}", "left_out=[2]"], "profile.steps: 2 is no step of the run, or left"),
    ([f"init_from={256 * 'a'}"], "init_from: cannot be the name of a file"),
    (['data.corpus="a\\0"'], "data.corpus: cannot be the name of a file"),
    (["data.cache_gib=1"], "data.cache_gib: is called storage.cache_gib now"),
    (["model.attention=cudnn"], "model.attention: cudnn is not there for the CPU in"),
    (["model.attention=flash4"], "model.attention: flash4 is for GPUs, and this run is on the CPU"),
    (["model.attention=flesh"], "model.attention: input should be 'auto', 'flash', 'cudnn'"),
    (["zero.stage=4"], "zero.stage: input should be 0, 1, 2 or 3 (got 4)"),
    (
        ["zero.stage=3", "zero.offload_directory=files", "checkpoint.asynchronous=true"],
        "checkpoint.asynchronous: must be false with zero.offload_directory",
    ),
    (
        ["layout.pipeline=2", "precision=bf16", "optim.precision=bf16"],
        "optim.precision: is for runs with layout.tensor=1 and layout.pipeline=1",
    ),
    (
        ["precision=fp8"],
        "precision: fp8 leaves the decoder's first and last block in bf16, and of 2",
    ),
    (
        ["precision=fp8_with_head", "model.decoder.num_layers=4", "layout.tensor=2"],
        "precision: fp8_with_head works with layout.tensor=1 and layout.pipeline=1",
    ),
    (
        ["precision=fp8", "model.decoder.num_layers=4", "zero.stage=3"],
        "precision: fp8 works with zero.stage up to 2",
    ),
    (
        ["precision=fp8", "model.decoder.num_layers=4", "data.sequence_tokens=50"],
        "data.sequence_tokens: with precision=fp8 it must be a multiple of 16, not 50",
    ),
    (
        [
            "precision=fp8_with_head",
            "model.decoder.num_layers=4",
            "lora={rank: 2}",
            "init_from=runs/a",
        ],
        "precision: fp8_with_head multiplies whole weights, without adapters",
    ),
    (["layout.tensor=2"], "layout: tensor 2 x pipeline 1 needs a multiple of 2 ranks and there"),
    (
        ["layout.tensor=3"],
        "layout.tensor: model.decoder.heads 4, model.decoder.feed_forward 64, "
        "model.encoders.text.encoder.heads 2, model.encoders.text.encoder.feed_forward 32 do not "
        "divide by 3; use a degree that divides all of",
    ),
    (["layout.pipeline=3"], "layout.pipeline: 3 stages x 1 chunks are more than the decoder's 2"),
    (["layout.chunks=2"], "layout.chunks: more than one needs layout.pipeline"),
    (["layout.pipeline=2", "layout.split=[1,2]"], "layout.split: 1+2 is 3 layers and the"),
    (["layout.sequence_parallel=true"], "layout.sequence_parallel: needs layout.tensor of at"),
    (["layout.tensro=2"], "layout.tensro: no such key; did you mean layout.tensor?"),
    (["batch.sequences=7"], "batch.sequences: 7 does not divide into 1 data rank(s)"),
    (["data.sequence_tokens=65"], "data.sequence_tokens: 65 slots but the decoder has positions"),
    (["model.decoder.heads=5"], "model.decoder.heads: 5 heads do not divide width 32"),
    (["optim.warmup_steps=99"], "optim.warmup_steps: 99 steps of warm-up exceed"),
    (["lora={rank: 2}"], "lora: needs init_from"),
    (
        ["model.encoders.text.encoder.trainable_layers=1"],
        "1 of 2 layers would train and the rest stay random",
    ),
    (["spans.image={kind: random}"], "spans.image: there is no encoder model.encoders.image"),
    (["spans.text.kind=whole"], "spans.text.kind: there is no kind whole; say random or rules"),
    (["model.encoders.text.encoder.max_tokens=8"], "exceed model.encoders.text.encoder.max_tokens"),
    (["seed=-1"], "seed: input should be greater than or equal to 0"),
    (["optim.lr=.inf"], "optim.lr: input should be a finite number"),
    (["model.encoders.text.encoder.start_token=300"], "300 is outside the vocabulary of 300"),
    (["data.span_capacity={txt: {tokens: 9, spans: 1}}"], "data.span_capacity.txt: there is no"),
    (["spans={text: {kind: fixed, ranges: [[1, 70]]}}"], "[1, 70] ends beyond the sequence"),
    (["nowhere.yaml"], "nowhere.yaml: there is no such file"),
    ([str(TINY_RUN.with_name("tiny_rum.yaml"))], f"did you mean {TINY_RUN}?"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_mistake_in_the_configuration(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    corpus: Path,
    tmp_path: Path,
    overrides: list[str],
    message: str,
) -> None:
    assert message in refused(capsys, monkeypatch, *tiny(corpus, tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_all_mistakes_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = tiny("c", tmp_path / "run", "stepz=1", "optim.lrr=1", "zero.stage=9", "no.yaml")
    shown = refused(capsys, monkeypatch, *arguments)
    for part in ("stepz", "optim.lrr", "zero.stage", "no.yaml"):
        assert sum(line.startswith(part) for line in shown.splitlines()) == 1, shown


def test_file_that_is_no_yaml(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    where = f"{broken}: line 2, column 1"
    assert f"{where}: is not YAML" in refused(capsys, monkeypatch, str(broken))
    broken.write_text("steps: 1\nsteps: 2")
    assert f"{where}: steps stands there twice" in refused(capsys, monkeypatch, str(broken))
    broken.write_text("include: [5]")
    assert "include must be a list of files" in refused(capsys, monkeypatch, str(broken))
    broken.write_text("- 1")
    assert "must hold keys and values" in refused(capsys, monkeypatch, str(broken))


def test_directory_of_a_different_run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    corpus: Path,
    tmp_path: Path,
) -> None:
    directory = tmp_path / "run"
    run(corpus, directory, "steps=2")
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    shown = refused(capsys, monkeypatch, *tiny(corpus, directory, "steps=2", "optim.lr=0.5"))
    assert f"{directory} holds a different run" in shown
    assert "optim.lr: 0.01 there, 0.5 here" in shown
    assert before == {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_directory_with_other_files(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    corpus: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    shown = refused(capsys, monkeypatch, *tiny(corpus, tmp_path))
    assert f"{tmp_path} holds files but no run" in shown
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_corpus_that_does_not_fit(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no data directory"):
        open_sources(config(tmp_path / "none", tmp_path))
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="is empty"):
        open_sources(config(empty, tmp_path))
    (empty / "train" / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="is not an MDS directory"):
        open_sources(config(empty, tmp_path))
    with pytest.raises(DataError, match="vocabulary has 300 entries and the model's 301"):
        open_sources(config(corpus, tmp_path, "model.decoder.vocabulary=301"))
    short = write_corpus(tmp_path / "short", sequence_tokens=16, train=2, validation=2)
    with pytest.raises(DataError, match="too little text for one sequence of 64 tokens"):
        _ = open_sources(config(short, tmp_path)).all[0].sequences


def test_document_that_does_not_fit_is_refused(corpus: Path, tmp_path: Path) -> None:
    collate = build_collator(
        config(
            corpus,
            tmp_path,
            "spans={text: {kind: stored}}",
            "data.pack=fit",
            "data.span_capacity={text: {tokens: 10, spans: 2}}",
        ),
        open_sources(config(corpus, tmp_path)).special,
    )
    sample = Sample(id=5, tokens=np.zeros(65, dtype=np.int64), spans=np.array([[1, 12]]))
    with pytest.raises(
        DataError, match=r"sample 5 has 11 tokens in spans but there is room for 10.*span_capacity"
    ):
        collate([(0, sample)])


def build(config: RunConfig) -> None:
    build_model(config, build_mesh(LayoutConfig(), World.here(torch.device("cpu"))))


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    run(corpus, directory, "steps=2")
    return directory


def test_checkpoint_of_another_model(finished: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint of another model"):
        build(config(corpus, tmp_path, f"init_from={finished}", "model.decoder.feed_forward=48"))
    with pytest.raises(CheckpointError, match="heads: 4 there, 2 here"):
        build(config(corpus, tmp_path, f"init_from={finished}", "model.decoder.heads=2"))
    with pytest.raises(CheckpointError, match="is not there"):
        build(config(corpus, tmp_path, f"init_from={tmp_path / 'none'}"))
    encoder = "model.encoders.text.encoder"
    with pytest.raises(CheckpointError, match=r"encoder.width: 16 there, 24 here"):
        build(config(corpus, tmp_path, f"{encoder}.init_from={finished}", f"{encoder}.width=24"))


def test_corpus_of_another_tokenizer_on_resume(corpus: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert start(corpus, directory, "steps=3", "checkpoint.every_steps=1").wait().code == 0
    shutil.copytree(corpus, tmp_path / "other")
    for split in ("train", "validation"):
        path = tmp_path / "other" / split / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_sha256": "0" * 64}))
    forget_last_checkpoint(directory)
    ended = start(tmp_path / "other", directory, "steps=3", "checkpoint.every_steps=1").wait()
    assert ended.code == 2
    assert "was trained on a corpus of another tokenizer" in ended.output


def test_resume_on_other_data(corpus: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    steps = ("steps=3", "checkpoint.every_steps=1")
    run(corpus, directory, *steps)
    forget_last_checkpoint(directory)
    other = write_corpus(tmp_path / "other", seed=5)
    ended = start(other, directory, *steps).wait()
    assert ended.code == 2
    assert "was trained on other data" in ended.output


def test_sources_or_a_corpus(tmp_path: Path, corpus: Path) -> None:
    sources = "data.sources={a: {corpus: x}, b: {corpus: y}}"
    with pytest.raises(ConfigError, match=r"data.corpus=null .* data.sources.NAME=null .* a, b"):
        config(corpus, tmp_path, sources)
    mixed = config(corpus, tmp_path, sources, "data.corpus=null", "data.sources.a=null")
    assert list(mixed.data.mixed) == ["b"]
    with pytest.raises(ConfigError, match=r"data.corpus: is missing"):
        config(corpus, tmp_path, "data.corpus=null")
    with pytest.raises(ConfigError, match=r"holds a user name or password"):
        config(corpus, tmp_path, "storage.endpoint_url=https://user:secret@host.example")
    with pytest.raises(ConfigError, match=r"a rank may wait 600 s for data"):
        config(corpus, tmp_path, "storage.retry_budget_seconds=540")


def test_stored_configurations_of_earlier_versions_are_understood(
    corpus: Path, tmp_path: Path
) -> None:
    now = config(corpus, tmp_path, "storage.cache_gib=3.5", "storage.timeout_seconds=7")
    stored = now.model_dump(mode="json")
    for old, new in RENAMED.items():
        _holder(stored, old)[old.rpartition(".")[2]] = _holder(stored, new).pop(
            new.rpartition(".")[2]
        )
    before = copy.deepcopy(stored)
    assert from_stored(RunConfig, stored, place="here") == now
    assert stored == before, "what was given is left as it was"


def _holder(tree: dict[str, Any], path: str) -> dict[str, Any]:
    for key in path.split(".")[:-1]:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("how", [["--dry-run"], []])
def test_a_rank_without_data_leaves_no_other_waiting(
    corpus: Path, tmp_path: Path, how: list[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    ended = start(
        corpus, tmp_path / "run", *how, ranks=2, last_rank=[f"data.corpus={nowhere}"]
    ).wait()
    assert ended.code == 2
    told = [line for line in ended.output.splitlines() if str(nowhere) in line]
    assert len(told) == 2, "every rank says the first cause"
    assert all("(rank 1 of 2)" in line for line in told)
    assert "Traceback" not in ended.output
    assert not (tmp_path / "run").exists()


def test_a_rank_without_a_place_for_checkpoints_leaves_no_other_waiting(
    corpus: Path, tmp_path: Path
) -> None:
    ended = start(
        corpus,
        tmp_path / "run",
        f"checkpoint.directory={tmp_path}/saved",
        ranks=2,
        last_rank=["checkpoint.directory=$NOT_SET_ANYWHERE/saved"],
    ).wait()
    assert ended.code == 2
    told = [line for line in ended.output.splitlines() if "NOT_SET_ANYWHERE is not set" in line]
    assert len(told) == 2, "every rank says the first cause"
    assert all("(rank 1 of 2)" in line for line in told)
    assert "Traceback" not in ended.output
    assert not (tmp_path / "run").exists()


def test_mistake_found_late_does_not_lock_the_directory(corpus: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    ended = start(corpus, directory, "model.decoder.vocabulary=301").wait()
    assert ended.code == 2
    assert "vocabulary has 300 entries" in ended.output
    assert not directory.exists()


def test_adapters_on_layers_that_are_not_there(finished: Path, corpus: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"lora.targets: no linear layer is called nope"):
        build(config(corpus, tmp_path, f"init_from={finished}", "lora={targets: [nope]}"))


def forget_last_checkpoint(directory: Path) -> None:
    """As if the run had been killed before its end."""
    steps = sorted((directory / "checkpoints").glob("step_*"))
    shutil.rmtree(steps[-1])
    (directory / "checkpoints" / "latest").write_text(steps[-2].name + "\n")


@pytest.mark.parametrize("damage", ["missing", "flipped", "truncated"])
def test_bad_shard_ends_all_ranks_and_is_named(corpus: Path, tmp_path: Path, damage: str) -> None:
    bad = tmp_path / "corpus"
    shutil.copytree(corpus, bad)
    shard = sorted((bad / "train").glob("*.mds"))[1]
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    else:
        shard.write_bytes(content[:-7])
    # With counts of tokens beside it, the training split is first read by the steps.
    np.save(bad / "train" / "token_counts.npy", np.ones(300, dtype=np.int64))
    ended = start(bad, tmp_path / "run", "steps=50", "zero.stage=3", ranks=2).wait()
    reason = {"missing": "is missing", "flipped": "is damaged", "truncated": "bytes where"}[damage]
    told = [line for line in ended.output.splitlines() if reason in line]
    assert len(told) == 2, ended.output[-3000:]  # every rank says the first cause, and no other
    assert told[0] == told[1]
    assert str(shard) in told[0]
    assert ended.code == 2
    assert "Traceback" not in ended.output


def test_ctrl_c_while_ranks_meet(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    corpus: Path,
    tmp_path: Path,
) -> None:
    def join(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["train", *tiny(corpus, tmp_path / "run")])
    monkeypatch.setattr(command, "join", join)
    assert command.main() == ExitStatus.INTERRUPTED
    assert capsys.readouterr().err.startswith("interrupted; the same command goes on")


def test_print_needs_no_launcher_and_says_what_is_not_reached(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spans = "spans.text={kind: random, ratio: 0.75, min_tokens: 500, max_tokens: 500}"
    arguments = tiny("c", tmp_path, "layout.pipeline=2", "layout.tensor=2", spans)
    monkeypatch.setattr("sys.argv", ["train", "--print", *arguments])
    assert command.main() == 0
    told = capsys.readouterr()
    assert "note: spans.text.ratio: 0.75 of 64 slots is not reached by spans of 31 to" in told.err
    assert "pipeline: 2" in told.out


@pytest.mark.parametrize(
    "take", [lambda: torch.empty(2**50), lambda: np.empty(2**50)], ids=["torch", "numpy"]
)
def test_too_little_memory_says_what_to_lower(take: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r"lacks memory \(.*allocate.*batch.micro_sequences.*plan"):
        agreed(take)
    with pytest.raises(UserError, match="RuntimeError: another"):
        agreed(lambda: fail(RuntimeError("another")))


def fail(error: Exception) -> None:
    raise error
