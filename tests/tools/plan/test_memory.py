"""Predicted bytes against what torch allocates, and what each choice does to them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from model.attention import CausalSelfAttention, SpanGrid, SpanSelfAttention
from model.batch import PackedSpans
from model.block import Block, run_block
from model.encoders.image import ImageEncoderConfig
from model.encoders.protocol import SpanLoad
from model.layers import Layers, initialize
from model.loss import LinearCrossEntropy
from model.recompute import Recompute
from model.resampler import ResamplerConnectorConfig
from model.semicausal import EncoderConfig, ModelConfig
from model.style import USUAL_STYLE
from parallel.mesh import LayoutConfig
from parallel.zero.config import Precision, ZeroConfig
from tools.bench.gpu import METALM, REPEATABLE
from tools.plan.activations import connector_bytes, head_bytes, kept
from tools.plan.check import _shape
from tools.plan.check import _task as _shaped
from tools.plan.machines import GIB, nominal
from tools.plan.measure import metered
from tools.plan.memory import Memory, fullest_rank, rank_memory
from tools.plan.task import Candidate, Task, task_of
from train.config import RunConfig
from train.config_files import load

WIDTH, HEADS, HIDDEN = 128, 4, 512
SEQUENCES, SLOTS = 2, 64
CPU = nominal("cpu")
SPAN_LENGTHS = [32, 20, 30, 27]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def task(precision: Precision = "fp32", **changes: Any) -> Task:
    model = {
        "decoder": {
            "vocabulary": 512,
            "width": WIDTH,
            "num_layers": 8,
            "heads": HEADS,
            "feed_forward": HIDDEN,
            "max_tokens": SLOTS,
        },
        "encoders": {
            "text": {
                "encoder": {
                    "width": WIDTH,
                    "num_layers": 1,
                    "heads": HEADS,
                    "feed_forward": HIDDEN,
                    "max_tokens": 40,
                    "dropout": 0.0,
                }
            }
        },
    }
    spans = SpanLoad(
        vectors=(sum(SPAN_LENGTHS) - len(SPAN_LENGTHS)) / SEQUENCES,
        spans=len(SPAN_LENGTHS) / SEQUENCES,
        longest=max(SPAN_LENGTHS) - 1,
    )
    values: dict[str, Any] = {
        "model": ModelConfig.model_validate(model),
        "precision": precision,
        "sequences": 64,
        "sequence_tokens": SLOTS,
        "spans": {"text": spans},
        "zero": ZeroConfig(),
        "steps": 10,
    }
    return Task(**values | changes)


def candidate(
    *,
    stage: int = 0,
    data: int = 1,
    microbatches: int = 1,
    micro_sequences: int = SEQUENCES,
    **layout: Any,
) -> Candidate:
    keys = {"split": [8], **layout}
    return Candidate(
        layout=LayoutConfig.model_validate(keys),
        data=data,
        stage=stage,
        micro_sequences=micro_sequences,
        num_microbatches=microbatches,
    )


def kept_by_torch(block: nn.Module, x: torch.Tensor, *context: Any) -> int:
    run_block(block, x, *context).sum().backward()  # what the first call alone allocates
    block.zero_grad(set_to_none=True)
    outputs: list[torch.Tensor] = []
    with metered() as meter:
        outputs.append(run_block(block, x, *context))
    return meter.live_bytes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_decoder_block_keeps_what_is_predicted(
    precision: Precision, recompute: Recompute
) -> None:
    block = _block(CausalSelfAttention, precision, recompute)
    x = torch.randn(SEQUENCES * SLOTS, WIDTH, dtype=DTYPES[precision], requires_grad=True)
    one = _difference_of_a_layer(precision, recompute)
    # A checkpoint also keeps the state of the generator, some 5 kB whatever the block.
    extra = 0 if recompute == "none" else 6_000
    assert kept_by_torch(block, x, SEQUENCES) == pytest.approx(one, rel=0.01, abs=extra)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_block_keeps_no_more_where_documents_are_apart(
    precision: Precision, recompute: Recompute
) -> None:
    block = _block(CausalSelfAttention, precision, recompute)
    x = torch.randn(SEQUENCES * SLOTS, WIDTH, dtype=DTYPES[precision], requires_grad=True)
    documents = torch.tensor([0, 20, 23, 64, 100, 128, 128], dtype=torch.int32)
    apart, across = (kept_by_torch(block, x, SEQUENCES, each) for each in (documents, None))
    assert apart == pytest.approx(across, abs=1000)


def test_a_part_is_whole_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.plan.memory.LIBRARY_BYTES", 0)  # more than all else here
    # So many ranks that a share is next to nothing, and nothing is gathered for long.
    few = ZeroConfig(stage=3, bucket_elements=1000, live_elements=1000, persist_parameters_below=0)
    job, spread = task("bf16", zero=few), candidate(stage=3, data=1024, micro_sequences=1)
    share = job.share(spread, 0)
    tables = SLOTS * WIDTH * 4
    on_cpu, on_gpu = (fullest_rank(job, spread, m) for m in (CPU, nominal("h100")))
    assert on_cpu == Memory(parameters=4 * share.elements + tables, workspace=2 * share.largest)
    assert on_gpu == Memory(parameters=2 * share.elements + tables, workspace=2 * share.largest)


@pytest.mark.parametrize(
    ("precision", "chunk_tokens", "sequences"),
    [
        ("fp32", 10, SEQUENCES),
        ("fp32", 1000, SEQUENCES),
        ("bf16", 10, SEQUENCES),
        # Of few rows at once oneDNN's scratch, which the planner leaves out, is a tenth.
        ("bf16", 1000, 16 * SEQUENCES),
    ],
)
def test_the_head_takes_what_is_predicted(
    precision: Precision, chunk_tokens: int, sequences: int
) -> None:
    dtype, rows = DTYPES[precision], 2048
    job = task(precision)
    decoder = job.model.decoder.model_copy(update={"loss_chunk_tokens": chunk_tokens})
    job = replace(job, model=job.model.model_copy(update={"decoder": decoder}))
    load = job.load(sequences)
    predicted = head_bytes(job, load=load, vocabulary_rows=rows, on_gpu=False)
    weight = nn.Parameter(torch.randn(rows, WIDTH, dtype=dtype) * 0.02)
    head = LinearCrossEntropy(weight, chunk_tokens=chunk_tokens)
    states = torch.randn(int(load.slots), WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.randint(rows, (len(states),))
    head(states, targets, int(load.scored)).total.backward()  # what the first call alone allocates
    weight.grad = states.grad = None
    with metered() as meter:
        total = head(states, targets, int(load.scored)).total
    # The states were there before.
    assert meter.peak_bytes == pytest.approx(predicted.forward - states.nbytes, rel=0.05)
    kept_bytes = meter.live_bytes
    with metered() as meter:
        total.backward()
    peak = kept_bytes + meter.peak_bytes
    assert peak == pytest.approx(predicted.backward, rel=0.05)
    assert weight.grad is not None
    assert weight.grad.nbytes == predicted.left


def test_on_gpus_the_head_has_its_logits_once_and_sums_within_the_product() -> None:
    job = task("bf16")
    load, rows = job.load(8000), 64_000
    states, weight = 2 * WIDTH * load.slots, WIDTH * rows
    assert load.scored > 8192
    head = head_bytes(job, load=load, vocabulary_rows=rows, on_gpu=True)
    assert head.forward == 2 * states + 4 * weight + 2 * 8192 * rows
    assert head.backward == 2 * states + (4 + 2) * weight
    alone = head_bytes(job, load=job.load(64), vocabulary_rows=rows, on_gpu=True)
    assert alone.forward == 2 * states * 64 / 8000 + 2 * weight + 2 * 64 * SLOTS * rows
    by_torch = job.model.decoder.model_copy(update={"loss_kernel": "torch"})
    job = replace(job, model=job.model.model_copy(update={"decoder": by_torch}))
    assert (
        head_bytes(job, load=load, vocabulary_rows=rows, on_gpu=True).forward - head.forward
        == 4 * 8192 * rows
    )


@pytest.mark.parametrize(
    ("sequences", "keys", "gib"),
    [
        (12, (), 73.46),
        (1, (), 32.88),
        (1, ("model.compile=none",), 32.85),
        (1, ("model.decoder.loss_chunk_tokens=256",), 33.10),
        (1, ("model.decoder.loss_kernel=torch",), 33.00),
        (1, ("zero.immediate_gradients=false",), 32.88),
        (1, ("spans.text.ratio=0",), 26.06),
    ],
)
def test_what_an_h100_took_is_foretold(sequences: int, keys: tuple[str, ...], gib: float) -> None:
    """The 1.3B on one (docs/lab-notes.md): most in tensors."""
    job = task_of(load(RunConfig, [*METALM, *REPEATABLE, *keys]), kind="h100")
    spread = Candidate(
        layout=LayoutConfig(split=[job.model.decoder.num_layers]),
        data=1,
        stage=1,
        micro_sequences=sequences,
        num_microbatches=1,
    )
    predicted = fullest_rank(job, spread, nominal("h100")).total / GIB
    assert predicted == pytest.approx(gib, rel=0.01 if sequences > 1 else 0.002)


def test_a_grid_of_a_gpu_is_the_one_that_is_planned() -> None:
    cells = torch.arange(9 * 129)
    grid = SpanGrid.fitted(cells.to("meta"), 9, 129)
    assert (grid.num_spans, grid.longest_rows) == SpanGrid.padded(9, 129) == (16, 144)


def _difference_of_a_layer(precision: Precision, recompute: Recompute) -> float:
    eight = candidate(recompute=recompute)
    seven = candidate(pipeline=2, split=[7, 1], recompute=recompute)
    job = task(precision)
    pieces = [kept(job, c, job.share(c, 0), fused=False).pieces[0] for c in (eight, seven)]
    return pieces[0] - pieces[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("bias_trains", [True, False])
def test_an_encoder_block_keeps_what_is_predicted(
    precision: Precision, recompute: Recompute, bias_trains: bool
) -> None:
    dtype = DTYPES[precision]
    block = _block(SpanSelfAttention, precision, recompute)
    longest = max(SPAN_LENGTHS)
    cells = torch.cat([torch.arange(n) + i * longest for i, n in enumerate(SPAN_LENGTHS)])
    grid = SpanGrid(cells, len(SPAN_LENGTHS), longest)
    x = torch.randn(len(cells), WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.zeros(len(SPAN_LENGTHS), HEADS, longest, longest, dtype=dtype)
    bias.requires_grad_(bias_trains)
    measured = kept_by_torch(block, x, grid, bias)
    job = task(precision)
    this = candidate(recompute=recompute)
    fused = not bias_trains and precision == "fp32"
    predicted = kept(job, this, job.share(this, 0), fused=fused).encoder
    # What is kept once, whatever the layers: the bias, the embeddings' norm, the vectors.
    pairs = bias.numel() * dtype.itemsize
    rows = len(cells) * WIDTH * dtype.itemsize
    vectors = (len(cells) - len(SPAN_LENGTHS)) * WIDTH * dtype.itemsize
    predicted -= pairs + 2 * rows + vectors
    assert measured == pytest.approx(predicted, rel=0.02, abs=8_000)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_resampler_keeps_what_is_predicted(precision: Precision, recompute: Recompute) -> None:
    dtype, H = DTYPES[precision], 192
    config = ResamplerConnectorConfig(kind="resampler", queries=24, num_layers=3)
    encoder = ImageEncoderConfig(
        kind="image",
        width=WIDTH,
        num_layers=1,
        heads=HEADS,
        feed_forward=HIDDEN,
        patch_pixels=8,
        max_patches=40,
    )
    module = config.build(encoder, H, layers=Layers(), recompute=recompute).to(dtype)
    initialize(module, seed=1)
    longest = max(SPAN_LENGTHS)
    cells = torch.cat([torch.arange(n) + i * longest for i, n in enumerate(SPAN_LENGTHS)])
    spans = PackedSpans(
        slots=torch.arange(24 * len(SPAN_LENGTHS)),
        num_vectors=len(cells),
        item_cells=cells,
        num_items=len(SPAN_LENGTHS),
        longest_item=longest,
    )
    vectors = torch.randn(len(cells), WIDTH, dtype=dtype, requires_grad=True)
    module(vectors, spans).sum().backward()
    module.zero_grad(set_to_none=True)
    outputs: list[torch.Tensor] = []
    with metered() as meter:
        outputs.append(module(vectors, spans))
    load = SpanLoad(vectors=len(cells), spans=len(SPAN_LENGTHS), longest=longest, item_slots=24)
    part = EncoderConfig(encoder=encoder, connector=config)
    e = dtype.itemsize
    predicted = connector_bytes(
        part, load, LayoutConfig(recompute=recompute), e, H=H, fused=False, reads=True, passes=True
    ).kept
    predicted += outputs[0].nbytes  # in the slots, counted there
    # Of each block that is computed again the generator's state is kept, 5,056 bytes.
    assert meter.live_bytes == pytest.approx(predicted, rel=0.03, abs=3 * 6_000)


def _block(attention: Any, precision: Precision, recompute: Recompute) -> Block:
    block = Block(
        width=WIDTH,
        heads=HEADS,
        hidden=HIDDEN,
        attention=attention,
        layers=Layers(),
        style=USUAL_STYLE,
        depth=8,
        recompute=recompute,
    )
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0, 0.02)
    return block.to(DTYPES[precision])


def test_the_meter_sees_what_came_and_went() -> None:
    with metered() as meter:
        stays = torch.zeros(1000)
        goes = torch.zeros(5000)
        del goes
        torch.zeros(100)
    assert meter.peak_bytes == 24_000
    assert meter.live_bytes == stays.nbytes


def test_training_state_of_each_stage() -> None:
    job = task()
    elements = job.share(candidate(), 0).trained

    def memory(stage: int, data: int) -> Memory:
        return fullest_rank(job, candidate(stage=stage, data=data), CPU)

    assert memory(0, 4).optimizer == 8 * elements
    assert memory(1, 4).optimizer == 12 * elements / 4  # masters beside the parameters
    assert memory(3, 4).optimizer == 8 * elements / 4
    assert memory(3, 4).parameters < memory(2, 4).parameters / 2
    bf16 = fullest_rank(task("bf16"), candidate(stage=1, data=4), CPU)
    assert bf16.optimizer == 12 * elements / 4
    assert bf16.gradients >= 4 * elements


def test_gradients_that_are_added_as_they_come_are_not_all_there() -> None:
    """Of a step whose update is its fullest moment; a rank alone reduces nothing besides."""

    def peak(*, immediate: bool, data: int) -> float:
        job = task("bf16", zero=ZeroConfig(stage=1, immediate_gradients=immediate))
        spread = candidate(stage=1, data=data, micro_sequences=1)
        return rank_memory(job, spread, CPU, pipeline_rank=0).total

    share = task().share(candidate(), 0)
    spared = peak(immediate=False, data=2) - peak(immediate=True, data=2)
    assert spared == 2 * (share.trained - share.largest)
    assert peak(immediate=True, data=1) < peak(immediate=True, data=2) + 3 * 4 / 2 * share.trained


@pytest.mark.parametrize(
    ("precision", "microbatches", "mib"),
    [("fp32", 1, 116.1), ("fp32", 2, 132.2), ("bf16", 1, 116.1), ("bf16", 2, 116.1)],
)
def test_one_bucket_at_stage_2(precision: Precision, microbatches: int, mib: float) -> None:
    """Of 6.8 M parameters on two ranks with gloo, as `tools.plan.measure` has measured it."""
    small = _shaped(_shape(256, 6, 4), _shape(128, 2, 4), vocabulary=4096, sequence_tokens=128)
    spread, split = candidate(stage=2, data=2, microbatches=microbatches, micro_sequences=1), [6]
    spread = replace(spread, layout=LayoutConfig(split=split))
    job = replace(small, precision=precision, sequences=2 * microbatches)
    found = rank_memory(job, spread, CPU, pipeline_rank=0).total / 2**20
    assert found == pytest.approx(mib, rel=0.03)


def test_each_way_to_spare_memory_spares_some() -> None:
    job = task()

    def activations(**keys: Any) -> float:
        # So many that the fullest moment is a backward.
        this = candidate(micro_sequences=64, **keys)
        memory = rank_memory(job, this, CPU, pipeline_rank=0)
        return memory.activations + memory.encoder

    whole = activations()
    assert activations(recompute="full") < whole / 4
    assert activations(tensor=2) < whole
    assert activations(tensor=2, sequence_parallel=True) < activations(tensor=2)


def test_microbatches_in_flight_of_the_plain_schedule() -> None:
    for microbatches, expected in ((8, [4, 3, 2, 1]), (2, [2, 2, 2, 1])):
        this = candidate(pipeline=4, split=[2, 2, 2, 2], microbatches=microbatches)
        assert [this.in_flight(stage) for stage in range(4)] == [((n,),) for n in expected]


def test_microbatches_in_flight_of_the_interleaved_schedule() -> None:
    this = candidate(pipeline=2, chunks=2, split=[2, 2, 2, 2], microbatches=4)
    # Narayanan et al. (2104.04473) §2.2: 2 (p - s - 1) + (c - 1) p forwards before the first pair.
    assert max(sum(counts) for counts in this.in_flight(0)) == 5
    assert max(sum(counts) for counts in this.in_flight(1)) == 3
    assert (3, 2) in this.in_flight(0)


def test_earlier_stages_hold_more() -> None:
    this = candidate(pipeline=4, split=[2, 2, 2, 2], microbatches=8, micro_sequences=64)
    job = task()
    held = [rank_memory(job, this, CPU, pipeline_rank=s).activations for s in range(4)]
    assert held == sorted(held, reverse=True)
