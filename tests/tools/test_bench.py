"""The bench counts right, compares like with like, and writes every key."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.batch import Batch
from tests.model.examples import text_spans
from tools.bench import choosing, encoding, flops, gpu, peers, task_rows
from tools.bench.__main__ import main
from tools.bench.exported import exported, peer_loss, span_numbers
from tools.bench.loading.corpora import write_sequences
from tools.bench.loading.readers import BATCH, SHARED_MEMORY, Reading, Streaming
from tools.bench.report import BARS, MEANINGS
from tools.bench.rounds import Contestant, Effort, alternate, ratio
from tools.bench.shapes import FULL, TINY, Shape
from tools.bench.training import build, num_parameters, our_loss
from tools.random_batches import random_samples
from train.data.collate import Collator
from train.data.spans.given import FixedSpansConfig
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import TextReader

KEYS = {
    "causal_vs_llama_same_precision",
    "causal_vs_gpt2_same_precision",
    "causal_vs_llama_default",
    "semi_causal_over_causal_fp32",
    "semi_causal_over_causal_bf16",
    "semi_causal_over_causal_flops",
    "lora_vs_full",
    "lora_vs_full_tiny",
    "lora_1p3b_peak_gib",
    "packed_vs_padded",
    "packed_vs_whole_sequence",
    "zero3_vs_ddp",
}


def batch_with_spans(shape: Shape, ranges: list[list[int]]) -> Batch:
    collate = Collator(
        sequence_tokens=shape.sequence_tokens,
        readers={
            "text": TextReader(
                kind=FixedSpansConfig(kind="fixed", ranges=ranges),
                capacity=SpanCapacity(tokens=16, spans=4, longest_tokens=8),
            )
        },
        padding=0,
    )
    samples = random_samples(
        vocabulary=shape.vocabulary,
        sequence_tokens=shape.sequence_tokens,
        count=shape.sequences,
    )
    return collate([(0, sample) for sample in samples])


@pytest.mark.parametrize("semi_causal", [False, True])
def test_flops_equal_what_torch_counts(semi_causal: bool) -> None:
    shape = TINY.peers
    if semi_causal:
        # Equally long spans: the grid of attention then holds no padding, which we do not count.
        config, batch = shape.semi_causal(max_tokens=9), batch_with_spans(shape, [[3, 7], [9, 13]])
    else:
        [batch], config = shape.batches(ratio=0, count=1), shape.causal()
    model = build(config)

    def loss() -> torch.Tensor:
        # A plain head: torch's counter knows none of the in-place products of the chunked one.
        states = model.decoder(model.inputs(batch.tokens, dict(batch.spans)))
        scored = batch.scored[: batch.num_scored]
        logits = model.decoder.head.logits(states.flatten(0, 1)[scored])
        return F.cross_entropy(logits, batch.labels.flatten()[scored])

    # Torch counts products one by one in this backend alone.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            loss()
        with FlopCounterMode(display=False) as training:
            loss().backward()
    assert flops.forward(config, batch) == forward.get_total_flops()
    assert flops.training(config, batch) == training.get_total_flops()


def test_rows_of_each_span() -> None:
    batch = batch_with_spans(TINY.peers, [[3, 7], [9, 11]])
    assert flops.span_rows(text_spans(batch)) == [5, 3, 5, 3]


def test_contestants_take_turns_and_none_always_follows_the_same() -> None:
    turns: list[str] = []
    contestants = [
        Contestant(
            name=name, step=lambda n=name: turns.append(n), tokens=1, parameters=1, precision="fp32"
        )
        for name in "abc"
    ]
    seconds = alternate(contestants, Effort(rounds=3, steps=1, warmup_steps=1))
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratio_is_taken_within_each_round() -> None:
    # The machine was ten times slower in the second round, for both.
    found = ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0])
    assert found.median == 2.0
    assert found.lower_quartile == 2.0
    assert found.upper_quartile == pytest.approx(2.1)


@pytest.mark.parametrize(
    ("peer", "width", "hidden"), [("llama", "intermediate_size", 680), ("gpt2", "n_inner", 1024)]
)
def test_peers_have_as_many_parameters(peer: str, width: str, hidden: int) -> None:
    ours = num_parameters(build(FULL.peers.causal()))
    theirs = peers.matched(peers.PEERS[peer], FULL.peers, parameters=ours)
    assert num_parameters(theirs) == pytest.approx(ours, rel=0.01)
    assert abs(getattr(theirs.config, width) - hidden) <= 16


def test_padded_encoding_equals_packed() -> None:
    shape = TINY.peers
    encoder = encoding.text_encoder(shape, dtype=torch.float32)
    batch = batch_with_spans(shape, [[3, 7], [9, 15], [20, 22]])
    spans = text_spans(batch)
    padded = encoding.encode_padded(encoder, spans, longest=9)
    torch.testing.assert_close(padded, encoder(spans), rtol=1e-5, atol=1e-6)
    whole = encoder(encoding.whole_sequence(batch.tokens, spans))
    assert whole.shape == padded.shape


def test_gpu_peak_is_that_of_the_named_card() -> None:
    assert gpu.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert gpu.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert gpu.peak_flops("something new") is None


@pytest.mark.long
@pytest.mark.timeout(120)
def test_tiny_bench_writes_every_key(tmp_path: Path) -> None:
    out = tmp_path / "out" / "bench.json"
    cases = [
        *("causal", "default", "semi_causal", "encoding", "lora", "lora_1p3b", "zero3"),
        "metalm_1p3b",
    ]
    assert main(["--tiny", "--only", *cases, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["ratios"]) >= KEYS
    assert all(value > 0 for value in found["ratios"].values())
    assert found["machine"]["threads"] == 1
    assert found["cases"]["causal"]["contestants"]["llama"]["parameters"] > 0
    assert found["cases"]["zero3"]["settings"]["ranks"] == 2


TUNING_KEYS = {
    "lora_vs_peft",
    "lora_vs_peft_fp32",
    "lora_packed_vs_peft",
    "lora_packed_vs_peft_fp32",
    "within_vs_across",
    "within_vs_across_fp32",
    "adapter_save_vs_allowed",
    "generate_batch1_vs_transformers",
    "generate_batch8_vs_transformers",
}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_tiny_finetuning_writes_every_key(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    cases = ["lora_peers", "within", "lora_save", "generation"]
    assert main(["--tiny", "--only", *cases, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["ratios"]) == TUNING_KEYS
    timed = TUNING_KEYS - {"adapter_save_vs_allowed"}
    measured = [set(case["processor_ratios"]) for case in found["cases"].values()]
    assert set().union(*measured) == timed


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(not choosing.has_harness(), reason="make .venv/harness/installed")
def test_tiny_choosing_writes_its_key(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(["--tiny", "--only", "choices", "--out", str(out)]) == 0
    assert set(json.loads(out.read_text())["ratios"]) == {"choices_vs_lm_eval"}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_tiny_restarting_writes_every_key(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(["--tiny", "--only", "restarting", "watching", "--out", str(out)]) == 0
    ratios = json.loads(out.read_text())["ratios"]
    keys = {"restart_vs_torchrun_warm", "restart_vs_torchrun_cold", "watching_overhead"}
    assert set(ratios) == keys <= MEANINGS.keys() & BARS.keys()
    assert all(value > 0 for value in ratios.values())


def test_rows_of_tasks_are_the_same_packed_and_padded() -> None:
    [rows] = task_rows.rows_of(TINY.ranks, count=1)
    packed = task_rows.packed(rows, TINY.ranks)
    assert all(len(sample.tokens) <= TINY.ranks.sequence_tokens for sample in packed)
    found: list[tuple[bytes, bytes]] = []
    for sample in packed:
        assert sample.documents is not None
        assert sample.spans is not None
        for (start, stop), (first, last) in zip(sample.documents, sample.spans, strict=True):
            assert start < first < last <= stop
            found.append((sample.tokens[start:stop].tobytes(), sample.tokens[first:last].tobytes()))
    assert sorted(found) == sorted(
        (row.tokens.tobytes(), row.tokens[slice(*row.spans[0])].tobytes())
        for row in rows
        if row.spans is not None
    )
    # Each on its own, packed, has as many slots to score as alone.
    alone = task_rows.batch_of(rows, attend="across")
    together = task_rows.batch_of(packed, attend="within")
    assert together.num_scored == alone.num_scored
    assert together.tokens.numel() <= alone.tokens.numel()


def test_spans_are_numbered_as_the_export_wants_them() -> None:
    batch = batch_with_spans(TINY.peers, [[3, 7], [7, 11], [13, 15]])
    numbers = span_numbers(batch)
    row = [0] * 3 + [1] * 4 + [2] * 4 + [0] * 2 + [3] * 2 + [0] * (TINY.peers.sequence_tokens - 15)
    assert numbers.tolist() == [row] * TINY.peers.sequences


@pytest.mark.long
def test_the_peer_has_our_loss_of_a_padded_batch() -> None:
    shape = TINY.ranks
    model = build(shape.semi_causal(max_tokens=shape.sequence_tokens)).eval()
    [rows] = task_rows.rows_of(shape, count=1)
    batch = task_rows.batch_of(rows, attend="across")
    with torch.no_grad(), exported(model, sequence_tokens=shape.sequence_tokens) as files:
        found = peer_loss(files.peer().eval(), batch)
        assert float(found) == pytest.approx(float(our_loss(model, batch)), abs=1e-5)


LOADING_KEYS = {
    "loading_vs_streaming",
    "loading_processor_vs_streaming",
    "loading_two_vs_streaming_two",
    "loading_packed_vs_streaming_cut",
    "loading_vs_array",
    "loading_vs_node",
    "loading_s3_vs_streaming",
    "loading_s3_vs_streaming_two",
    "loading_first_batch_gib",
}


@pytest.mark.long
@pytest.mark.timeout(180)
def test_tiny_loading_writes_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert main(["--tiny", "--only", "loading", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["ratios"]) == LOADING_KEYS
    assert all(value > 0 for value in found["ratios"].values())
    settings = found["cases"]["loading"]["settings"]
    printed = " ".join(capsys.readouterr().out.split())
    for key in ("where_time_goes", "first_batch"):
        assert settings[key] in printed
    assert "first batch of 384,600 documents in 200 shards" in printed


@pytest.mark.long
@pytest.mark.network
@pytest.mark.timeout(180)
def test_tiny_building_writes_every_key(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(["--tiny", "--only", "building", "--out", str(out)]) == 0
    assert set(json.loads(out.read_text())["ratios"]) == {"build_vs_tokenizer"}


def test_all_read_the_same_sequences(tmp_path: Path) -> None:
    """Each of them once in an epoch; and nothing stays in shared memory."""
    S, batches = 32, 4
    write_sequences(tmp_path, num_sequences=batches * BATCH, sequence_tokens=S)
    assert all(path.is_file() for path in tmp_path.glob("*/*")), "the bench uploads each of them"
    rows = np.load(tmp_path / "tokens.npy")
    wanted = {row[:S].tobytes() for row in rows}
    assert len(wanted) == batches * BATCH

    def distinct(rows: Iterable[torch.Tensor]) -> set[bytes]:
        return {row.numpy().astype(np.uint16).tobytes() for batch in rows for row in batch[:, :S]}

    with Reading(root=str(tmp_path), sequence_tokens=S).feed() as feed:
        steps = [feed.step(step) for step in range(1, batches + 1)]
    mine = [batch.tokens for step in steps for batch in step.batches]
    assert distinct(mine) == wanted
    streaming = Streaming(str(tmp_path))
    prefix = f"{streaming.dataset._shm_prefix_int:06}_"
    try:
        assert list(SHARED_MEMORY.glob(f"{prefix}*"))
        # It gives documents, to which nobody has put the `<s>` of a sequence.
        assert distinct(streaming.loader(workers=0)) == {row[1:].tobytes() for row in rows}
    finally:
        streaming.close()
    assert not list(SHARED_MEMORY.glob(f"{prefix}*"))


def test_missing_litgpt_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "has_litgpt", lambda: False)
    assert main(["--tiny", "--out", str(tmp_path / "bench.json")]) == 2
    message = capsys.readouterr().err
    assert "make bench" in message
    assert "--only causal default" in message
    assert not (tmp_path / "bench.json").exists()


def test_without_lm_eval_its_case_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(choosing, "has_harness", lambda: False)
    out = tmp_path / "bench.json"
    assert main(["--tiny", "--only", "choices", "--out", str(out)]) == 2
    assert "lm-eval is not installed: make .venv/harness/installed" in capsys.readouterr().err
    assert not out.exists()
