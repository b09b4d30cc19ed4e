"""The planner's command: its table, the overlay it writes, its errors."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import warm
from tests.corpora import write_corpus
from tools.command import write_json
from tools.plan import __main__ as plan
from tools.plan import check as plan_check
from tools.plan import measure as plan_measure
from tools.plan import rates as plan_rates
from tools.plan.documents import document_tokens
from tools.plan.machines import Machine, nominal
from tools.plan.task import task_of
from tools.ranks import run_ranks
from train.config import RunConfig
from train.config_files import load
from train.data.corpus import Corpus

REPOSITORY = Path(__file__).parents[3]
EXPERIMENT = str(REPOSITORY / "configs/experiment/metalm_1p3b.yaml")
SMALL = str(REPOSITORY / "configs/experiment/first_light.yaml")


@pytest.fixture(autouse=True)
def _no_calibration_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_table_says_what_and_why_and_is_arithmetic_alone() -> None:
    # No process group, nothing of DeepSpeed or megatron, and few calls: more would be felt.
    script = f"""
import sys
from tests.soon import soon
from tools.plan import __main__ as plan
with soon(calls=8_000_000):
    assert plan.main([{EXPERIMENT!r}, "--gpus", "64", "--gpu", "h100", "--top", "3"]) == 0
import torch.distributed
assert not torch.distributed.is_initialized()
assert not [name for name in sys.modules if name.split(".")[0] in ("deepspeed", "megatron")]
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    for word in ("tokens/s", "MFU", "days", "nominal, not measured", "6 N + 12 L d T"):
        assert word in shown
    assert "tensor 16: straddles nodes of 8 ranks" in shown
    for kind in ("parameters", "gradients", "optimizer", "activations", "encoder", "workspace"):
        assert kind in shown
    for part in ("compute", "tensor", "bubble", "pipeline", "data", "update"):
        assert part in shown


def test_overlay_is_a_config_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.yaml"
    arguments = [EXPERIMENT, "--gpus", "32", "--gpu", "a100", "--write", str(out)]
    assert plan.main(arguments) == 0
    assert f"python -m train {EXPERIMENT} {out}" in capsys.readouterr().out
    config = load(RunConfig, [EXPERIMENT, str(out)])
    assert config.batch.sequences == 1024
    copies = 32 // config.layout.model_ranks
    assert 1024 % (copies * config.micro_sequences) == 0


def test_overlay_of_a_pipeline_names_its_split(tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    machine = nominal("cpu", cores=4, memory_bytes=4 * 17 * 2**30)
    calibration = tmp_path / "machine.json"
    write_json(calibration, machine.model_dump(mode="json"))
    # What one rank cannot hold, even alone in its update.
    arguments = [EXPERIMENT, "--gpus", "4", "--gpu", "cpu", "precision=fp32"]
    assert plan.main([*arguments, "--calibration", str(calibration), "--write", str(out)]) == 0
    config = load(RunConfig, [EXPERIMENT, str(out)])
    if config.layout.pipeline > 1:
        assert config.layout.split is not None
        assert sum(config.layout.split) == 24


def test_nothing_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    calibration = tmp_path / "machine.json"
    write_json(calibration, nominal("cpu", cores=1, memory_bytes=2**30).model_dump(mode="json"))
    arguments = [EXPERIMENT, "--gpus", "1", "--gpu", "cpu", "precision=fp32"]
    code = plan.main([*arguments, "--calibration", str(calibration)])
    assert code == plan.NOTHING_FITS
    shown = capsys.readouterr().out
    assert "No layout fits" in shown
    assert "GiB of 1.0" in shown


def test_errors_name_their_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert plan.main([EXPERIMENT, "--gpus", "8", "--gpu", "h100", "layuot.tensor=2"]) == 2
    assert "did you mean layout" in capsys.readouterr().err
    missing = str(tmp_path / "none.json")
    arguments = [EXPERIMENT, "--gpus", "8", "--gpu", "h100", "--calibration", missing]
    assert plan.main(arguments) == 2
    assert "cannot be read" in capsys.readouterr().err
    other = tmp_path / "cpu.json"
    write_json(other, nominal("cpu").model_dump(mode="json"))
    assert plan.main([*arguments[:-1], str(other)]) == 2
    assert "is of cpu, not h100" in capsys.readouterr().err


def test_adapters_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    lora = str(REPOSITORY / "configs/experiment/lora.yaml")
    assert plan.main([lora, "--gpus", "1", "--gpu", "h100"]) == 0
    assert "GiB" in capsys.readouterr().out


def test_fp8_is_not_planned(capsys: pytest.CaptureFixture[str]) -> None:
    in_fp8 = ["precision=fp8_with_head", "zero.stage=1"]
    assert plan.main([SMALL, "--gpus", "1", "--gpu", "h100", *in_fp8]) == 2
    assert "plan with precision=bf16" in capsys.readouterr().err


def test_the_kept_calibration_is_used_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "home" / ".cache" / "semicausal" / "machine-cpu.json"
    machine = nominal("cpu", cores=2).model_copy(update={"measured": True, "device": "this one"})
    write_json(path, machine.model_dump(mode="json"))
    assert plan.main([SMALL, "--gpus", "2", "--gpu", "cpu", "precision=fp32"]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert "measured (" in shown
    assert "this one" in shown


def test_a_run_becomes_a_task() -> None:
    config = load(RunConfig, [EXPERIMENT])
    task = task_of(config, kind="h100")
    assert task.precision == "bf16"
    spans = task.spans["text"]
    assert spans.vectors == 512
    assert spans.longest == 128
    assert task.load(4).scored == pytest.approx(4 * (2048 - 512 + 512 / 96))
    fixed = load(RunConfig, [EXPERIMENT, "spans.text={kind: fixed, ranges: [[4, 12], [20, 24]]}"])
    assert task_of(fixed, kind="h100").spans["text"].vectors == 12
    stored = load(
        RunConfig,
        [
            EXPERIMENT,
            "spans.text={kind: stored}",
            "data.pack=fit",
            "data.span_capacity={text: {tokens: 100, spans: 4}}",
        ],
    )
    assert task_of(stored, kind="h100").spans["text"].longest == 25


def test_documents_apart_are_counted_by_their_length(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [EXPERIMENT, "--gpus", "8", "--gpu", "h100", "--document-tokens", "600"]
    assert plan.main(asked) == 2
    assert "--document-tokens: tokens see across the documents" in capsys.readouterr().err
    assert plan.main([*asked, "data.attend=within", "data.pack=fit"]) == 0
    config = load(RunConfig, [EXPERIMENT, "data.attend=within", "data.pack=fit"])
    known, unknown = (
        task_of(config, kind="h100", document_tokens=tokens).decoder_layer(1).pairs
        for tokens in (600, None)
    )
    assert (known, unknown) == (2048 * 601 / 2, 2048 * 2049 / 2)


def test_lengths_of_documents_are_read_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    store = Corpus(str(corpus)).train
    keys = [f"model.decoder.vocabulary={store.manifest.vocabulary}", f"data.corpus={corpus}"]
    keys += ["data.pack=fit", "data.sequence_tokens=48", "spans.text.ratio=0"]
    config = load(RunConfig, [EXPERIMENT, *keys, "data.attend=within"])
    slots = [  # of each document's parts, one by one
        min(48, length + 1 - start)
        for shard in range(len(store.shard_sizes))
        for length in store.lengths(shard)[:, 0].tolist()
        for start in range(0, length + 1, 48)
    ]
    wanted = sum(n**2 for n in slots) / sum(slots)
    assert document_tokens(config) == pytest.approx(wanted)
    asked = [EXPERIMENT, *keys, "data.attend=within", "--gpus", "8", "--gpu", "h100"]
    assert plan.main(asked) == 0
    assert f"a token's has {wanted:,.0f} tokens (of its corpora)" in capsys.readouterr().out
    assert plan.main([*asked, "--document-tokens", "40"]) == 0
    assert "a token's has 40 tokens (asked)" in capsys.readouterr().out
    assert plan.main([*asked, f"data.corpus={tmp_path / 'nowhere'}"]) == 0
    assert "a token's has 48 tokens (not known)" in capsys.readouterr().out
    assert document_tokens(load(RunConfig, [EXPERIMENT, *keys])) is None
    (corpus / "train" / "index.json").write_text("{}")
    assert plan.main(asked) == 2


def test_a_place_that_cannot_be_written_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "plan.yaml"):
        for command in (
            [EXPERIMENT, "--gpus", "1", "--gpu", "h200", "--write", str(place)],
            ["calibrate", "--calibration", str(place)],
            ["check", "--out", str(place)],
        ):
            assert plan.main(command) == 2
            shown = capsys.readouterr()
            assert f"{place}: cannot be written" in shown.err
            assert not shown.out  # nothing was searched or measured


def test_a_layout_to_check_must_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["check", "--only", "tensor 3"]) == 2
    assert "--only tensor 3: there are alone ZeRO-0, alone bf16" in capsys.readouterr().err


def test_rates_are_timed() -> None:
    sizes = plan_rates.Sizes(
        rows=64, products=((16, 16), (32, 32)), widths=(64, 128), head=(16, 64), seconds=0.01
    )
    rates = plan_rates.compute_rates("fp32", sizes)
    assert [size for size, _ in rates.products] == pytest.approx(
        [64 ** (1 / 3) * 16 ** (2 / 3), 64 ** (1 / 3) * 32 ** (2 / 3)]
    )
    assert min(rates.attention, rates.span_attention, rates.update) > 1e6
    assert min(rates.elementwise, rates.logits) > 1e6


def test_seconds_are_a_median(monkeypatch: pytest.MonkeyPatch) -> None:
    now, naps = 0.0, iter([0.05, 0.0, 0.05, 0.0, 0.0, 0.0])

    def work() -> None:
        nonlocal now
        now += next(naps, 0.0)

    monkeypatch.setattr(plan_rates, "time", SimpleNamespace(perf_counter=lambda: now))
    assert plan_rates.seconds_of(work, at_least=0.0) == 0.0


def test_check_writes_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_measure, "run_ranks", partial(run_ranks, context=warm.context()))
    out = tmp_path / "plan.json"
    calibration = tmp_path / "machine.json"
    write_json(calibration, nominal("cpu", cores=2).model_dump(mode="json"))
    names = ["--only", "alone ZeRO-0", "data 2 ZeRO-1"]
    code = plan.main(
        ["check", "--tiny", "--out", str(out), "--calibration", str(calibration), *names]
    )
    assert code == 0
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["layouts"]] == ["alone ZeRO-0", "data 2 ZeRO-1"]
    for row in found["layouts"]:
        assert row["measured_seconds"] > 0
        assert row["predicted"]["seconds"]["total"] > 0
        for memory in row["memory"]:
            assert memory["measured_bytes"] > 0
            assert abs(memory["error"]) < 0.2
    assert found["summary"]["time_tolerance"] == 0.20


def test_check_looks_at_splits_beside_the_chosen_one() -> None:
    machine: Machine = nominal("cpu", cores=2)
    chosen = plan_check.chosen_split(plan_check.FULL, machine)
    assert sum(chosen) == 12
    assert chosen[0] < chosen[1]  # the encoder weighs more than the head
    names = plan_check.layouts(plan_check.FULL, machine)
    assert len(names) >= 5
    task, _ = next(iter(names.values()))
    assert sum(plan_check.parameter_counts(task.model).values()) >= 100_000_000
