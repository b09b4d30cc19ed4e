"""A tiny semi-causal model trained for a few steps: by an oracle, and on ranks in any layout."""

import copy
import functools
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from model.adapters.tuning import tune
from model.batch import Batch
from model.loss import Loss
from model.recompute import Recompute
from model.region import Region
from model.semicausal import EncoderConfig, ModelConfig, SemiCausal
from parallel.compiled import compilation_of, compile_blocks
from parallel.costs import item_cost
from parallel.engine import build_engine, build_part, parameter_groups
from parallel.launch import World
from parallel.mesh import LayoutConfig, Mesh, build_mesh, layout_faults
from parallel.pipeline import microbatch_fault
from parallel.split import with_split
from parallel.zero.config import AdamW, RunPrecision, ZeroConfig
from parallel.zero.engine import ZeroEngine
from parallel.zero.state import local_slices
from tests import clips, sounds
from tests.distributed.tunings import TUNINGS, with_peft
from train.data.balance import balanced, spaced
from train.data.collate import Attend, Collator
from train.data.document import MEDIA, Kind
from train.data.sample import Sample, SampleItem
from train.data.spans.image import ImageSpansConfig
from train.data.spans.kinds import MEDIA_SPANS
from train.data.spans.places import NO_SPANS, Spans
from train.data.spans.prefix import PrefixConfig
from train.data.spans.protocol import SpanCapacity, SpanReader
from train.data.spans.text import TextReader, TextSpansConfig
from train.data.tokens import SpecialTokens
from train.step import reseed, train_step

NUM_STEPS = 5
CLIP_NORM = 0.3
TUNING_SEED = 11
ADAMW = AdamW(learning_rate=3e-3, weight_decay=0.1, clip_norm=CLIP_NORM)
SMOOTH = replace(ADAMW, epsilon=1e-3)
"""For what is tuned in bf16, whose steps grow with its gradients then. With the usual epsilon
Adam's step is as long for a gradient that is nothing but rounding: 0.3 % of B's elements went the
other way under tensor parallelism, and one of the 64 of the connector's A, on which the norm hangs:
99 % of its square is the connector's B, whose vectors are scaled by 50. Norms, equal to 8e-4 in the
first step, differed by 1e-2 in later ones (by 1e-1 with another order of sums), where now they do
by 5e-3."""
FIRM = replace(ADAMW, epsilon=1e-4)
"""For what is tuned in fp32. With the usual epsilon one of 16 elements of a bottleneck's bias, off
by 4e-7, was 1.4e-5 of that bias."""
SEQUENCES = 8
SLOTS = 48

History = list[tuple[float, float]]

MODEL: dict[str, Any] = {
    "decoder": {
        "vocabulary": 97,
        "width": 32,
        "num_layers": 5,
        "heads": 4,
        "feed_forward": 64,
        "max_tokens": SLOTS,
        "loss_chunk_tokens": 40,
    },
    "encoders": {
        "text": {
            "encoder": {
                "width": 16,
                "num_layers": 2,
                "heads": 2,
                "feed_forward": 32,
                "max_tokens": 24,
                "dropout": 0.0,
            }
        }
    },
}

_BLOCKS: dict[str, Any] = {"width": 16, "num_layers": 2, "heads": 2, "feed_forward": 32}
_VIDEO: dict[str, Any] = {"kind": "video", "frames": 4, "patch_pixels": 4, **_BLOCKS}
PREFIX = PrefixConfig(max_tokens=4)
"""Of the text behind pictures, where it is read with them."""
ITEM_ENCODERS: dict[str, dict[str, Any]] = {
    "image": {
        "kind": "image", "patch_pixels": 4, "max_patches": 8, "class_token": "kept", **_BLOCKS,
    },
    "fused": {
        "kind": "image", "patch_pixels": 4, "max_patches": 8, "class_token": "dropped",
        "text": {"max_tokens": PREFIX.max_tokens, "shared_layers": 1}, **_BLOCKS,
    },
    "audio": {
        "kind": "audio", "front": {"kind": "log_mel", "mels": 8}, "max_seconds": 0.18, **_BLOCKS,
    },
    "video": _VIDEO | {"max_patches": 4},
    "divided": _VIDEO | {
        "max_patches": 2, "attention": "divided", "positions": "learned", "tube_frames": 1,
        "class_token": "kept",
    },
}  # fmt: skip
"""Beside the text encoder's, where a cell has items: up to nine vectors each."""
Items = Literal["", "image", "audio", "video", "divided", "fused", "all"]
ITEMS: dict[Items, tuple[str, ...]] = {
    "": (), "image": ("image",), "audio": ("audio",), "video": ("video",), "divided": ("divided",),
    "fused": ("fused",),
    "all": ("image", "audio", "divided"),
}  # fmt: skip
"""Encoders of a cell, by the name of its items."""
SIZES: dict[Kind, tuple[tuple[int, ...], ...]] = {
    Kind.IMAGE: ((12, 8), (4, 30), (5, 5), (9, 14)),
    Kind.AUDIO: ((1440, 8000), (1, 8000), (700, 8000), (1013, 8000)),
    Kind.VIDEO: ((5, 8, 8, 200), (1, 16, 8, 40), (9, 8, 40, 360), (4, 8, 16, 160)),
}
"""What is recorded of items."""


CONNECTORS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    # More slots than small items have vectors, and fewer than large ones.
    "resampler": {"kind": "resampler", "queries": 4, "num_layers": 2, "feed_forward": 24},
}
"""Behind the encoders of items."""


DECODERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "gpt2": {"positions": "learned", "activation": "gelu_tanh"},
    "qwen2": {
        "positions": "rope",
        "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_tokens": 24},
        "norm_layer": "rms_norm",
        "activation": "swiglu",
        "biases": "qkv",
        "kv_heads": 2,
        "head_width": 6,
        "embedding_scale": 10.0,
    },
}
"""Kinds of decoders."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way to compute the same steps.

    Attributes:
        spans: where there are any: "everywhere", "nowhere", or in the samples of the "first rank"
            of two, so that some microbatches have none.
        frozen: whether part of the encoder is fixed.
        attend: whether slots see across the two documents that each sample then holds.
        compiled: by which of torch's back ends, None for as it stands.
        tuned: what of it trains, a key of `TUNINGS`.
        decoder: which kind.
        items: which ones samples hold beside spans of text: where these are, up to two, and
            none in the short ones; so that some rows are of text alone.
        dealt: whether samples are dealt by what their items cost, as a run deals them.
        connector: behind the encoders of items.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence_parallel: bool = False
    chunks: int = 1
    zero: Literal[0, 1, 2, 3] = 0
    microbatches: int = 1
    spans: Literal["everywhere", "nowhere", "first rank"] = "everywhere"
    recompute: Recompute = "none"
    norm: Literal["deepnorm", "pre"] = "deepnorm"
    tied: bool = True
    frozen: bool = False
    precision: RunPrecision = "fp32"
    dropout: float = 0.0
    attend: Attend = "across"
    compiled: Literal["eager", "aot_eager"] | None = None
    tuned: str = ""
    decoder: Literal["ours", "gpt2", "qwen2"] = "ours"
    items: Items = ""
    dealt: bool = False
    connector: Literal["linear", "resampler"] = "linear"
    steps: int = NUM_STEPS

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def layout(self) -> str:
        """As people write it: tp2+sp·pp2·dp2."""
        parts = [f"tp{self.tensor}" + "+sp" * self.sequence_parallel] if self.tensor > 1 else []
        if self.pipeline > 1:
            parts.append(f"pp{self.pipeline}" + (f"x{self.chunks}" if self.chunks > 1 else ""))
        parts += [f"dp{self.data}"] if self.data > 1 else []
        return "·".join(parts) or "one"

    def spread(self) -> LayoutConfig:
        return LayoutConfig(
            tensor=self.tensor,
            pipeline=self.pipeline,
            sequence_parallel=self.sequence_parallel,
            chunks=self.chunks,
            recompute=self.recompute,
        )

    def fault(self) -> str | None:
        """Why such a run is refused before it starts, None if it is not."""
        faults = list(layout_faults(self.spread(), model_config(self)))
        microbatches = microbatch_fault(
            self.microbatches, pipeline=self.pipeline, chunks=self.chunks
        )
        return "; ".join([*faults, *([microbatches] if microbatches else [])]) or None

    def alone(self) -> "Cell":
        """What one process must compute to be compared with this cell."""
        return replace(self, **ALONE)


ALONE: dict[str, Any] = {
    "tensor": 1, "pipeline": 1, "data": 1, "sequence_parallel": False, "chunks": 1, "zero": 0,
    "microbatches": 1, "recompute": "none", "compiled": None, "dealt": False,
}  # fmt: skip


class UnevenSpans(TextSpansConfig):
    """Spans in some samples only: the last four of eight have none, so rank 1 of 2 has none."""

    where: str

    def choose(
        self, sample: Sample, *, seed: int, epoch: int, choice: int, special: SpecialTokens
    ) -> Spans:
        if self.where == "nowhere" or (self.where == "first rank" and sample.id % 8 >= 4):
            return NO_SPANS
        start = 2 + sample.id % 5
        spans = np.array([[start, start + 9], [start + 9, start + 14], [SLOTS - 6, SLOTS]])
        # They must end inside the short samples too.
        return spans[spans[:, 1] < len(sample.tokens)]


def model_config(cell: Cell) -> ModelConfig:
    config = copy.deepcopy(MODEL)
    config["decoder"] |= {"norm": cell.norm, "tied_head": cell.tied, "dropout": cell.dropout}
    config["decoder"] |= DECODERS[cell.decoder]
    encoder = config["encoders"]["text"]["encoder"]
    encoder |= {"dropout": cell.dropout}
    if cell.frozen:
        encoder["trainable_layers"] = 1
    for name in ITEMS[cell.items]:
        encoder = copy.deepcopy(ITEM_ENCODERS[name]) | {"dropout": cell.dropout}
        if cell.frozen:
            encoder["trainable_layers"] = 1
        config["encoders"][encoder["kind"]] = {
            "encoder": encoder,
            "connector": CONNECTORS[cell.connector],
        }
    return ModelConfig.model_validate(config)


def build(cell: Cell, mesh: Mesh) -> SemiCausal:
    config = model_config(cell)
    layout = with_split(cell.spread(), config, sequence_tokens=SLOTS, span_share=0.25)
    model = build_part(config, layout, mesh, seed=3)
    if cell.compiled is not None:
        torch._dynamo.reset()
        compile_blocks(model, backend=cell.compiled)
    tune(model, TUNINGS[cell.tuned], seed=TUNING_SEED)
    return model


def microbatches(cell: Cell, step: int, *, rank: int = 0) -> list[Batch]:
    random = np.random.default_rng(step)
    samples = [
        Sample(
            id=step * SEQUENCES + i,
            # Uneven lengths: a mean of ranks' means would be another number.
            tokens=random.integers(4, 97, SLOTS + 1 if i % 3 else SLOTS // 2),
            # Behind the first spans, before the last one.
            documents=np.array([[0, 20 + i % 4], [20 + i % 4, SLOTS + 1 if i % 3 else SLOTS // 2]]),
        )
        for i in range(SEQUENCES)
    ]
    readers: dict[str, SpanReader] = {}
    if cell.items:
        parts = item_parts(cell)
        samples = [_with_items(sample, parts, where=cell.spans) for sample in samples]
        for kind, part in parts.items():
            spans = MEDIA_SPANS[kind]
            if cell.items == "fused":
                spans = ImageSpansConfig(kind="image", prefix=PREFIX)
            readers[MEDIA[kind]] = spans.reader(
                part.encoder,
                capacity=SpanCapacity(
                    tokens=18,
                    spans=2,
                    longest_tokens=part.longest_span,
                    item_slots=part.connector.item_slots,
                    prefix_tokens=spans.prefix_tokens,
                ),
                seed=0,
                special=SpecialTokens(),
            )
    readers["text"] = TextReader(
        # Text behind pictures is theirs.
        kind=UnevenSpans(where="nowhere" if cell.items == "fused" else cell.spans),
        capacity=SpanCapacity(tokens=24, spans=3, longest_tokens=23),
    )
    collate = Collator(
        sequence_tokens=SLOTS,
        readers=readers,
        padding=3,
        attend=cell.attend,
    )
    costs = [0] * SEQUENCES
    if cell.dealt:
        costs = item_costs(samples, model_config(cell))
        order = balanced(costs)
        samples, costs = [samples[i] for i in order], [costs[i] for i in order]
    share = SEQUENCES // cell.data
    micro = share // cell.microbatches
    mine = range(rank * share, (rank + 1) * share, micro)
    places = spaced([sum(costs[i : i + micro]) for i in mine], stages=cell.pipeline)
    return [
        collate([(0, sample) for sample in samples[mine[place] : mine[place] + micro]])
        for place in places
    ]


def item_costs(samples: Sequence[Sample], config: ModelConfig) -> list[int]:
    """What the items of each sample cost."""
    return [
        sum(item_cost(config, MEDIA[i.kind], i.stop - i.start) for i in sample.items)
        for sample in samples
    ]


def item_parts(cell: Cell) -> dict[Kind, EncoderConfig]:
    """What reads a cell's items."""
    encoders = model_config(cell).encoders
    return {kind: encoders[name] for kind, name in MEDIA.items() if name in encoders}


def _with_items(sample: Sample, parts: Mapping[Kind, EncoderConfig], *, where: str) -> Sample:
    """The sample with items between its spans of text, if there are any and it is long."""
    count = sample.id % 3
    is_bare = where == "nowhere" or (where == "first rank" and sample.id % 8 >= 4)
    if is_bare or len(sample.tokens) <= SLOTS:
        return sample
    tokens, items = sample.tokens.copy(), list[SampleItem]()
    scored = np.ones(len(tokens), dtype=np.bool_)
    at = 24
    for number in range(count):
        kind = list(parts)[(sample.id + number) % len(parts)]
        size = SIZES[kind][(sample.id + number) % len(SIZES[kind])]
        stop = at + parts[kind].item_slots(size)
        data = _FILES[kind](*size)
        items.append(
            SampleItem(kind=kind, size=size, data=data, start=at, stop=stop, name="an item")
        )
        tokens[at:stop], scored[at:stop] = 3, False
        at = stop
    return replace(sample, tokens=tokens, scored=scored, items=tuple(items))


@functools.cache
def _png(height: int, width: int) -> bytes:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    return content.getvalue()


@functools.cache
def _wav(count: int, rate: int) -> bytes:
    return sounds.saved(sounds.noise(count), rate)


@functools.cache
def _mkv(frames: int, height: int, width: int, milliseconds: int) -> bytes:
    assert milliseconds == 40 * frames
    return clips.exact(clips.noise(frames, height, width))


_FILES = {Kind.IMAGE: _png, Kind.AUDIO: _wav, Kind.VIDEO: _mkv}


def oracle(cell: Cell) -> tuple[History, dict[str, Tensor]]:
    """Loss and gradient norm of each step in one process, norm and clipping in fp64; weights.

    Low-rank adapters are plain peft's there.
    """
    return _oracle(cell.alone())


@functools.cache
def _oracle(cell: Cell) -> tuple[History, dict[str, Tensor]]:
    tuning = TUNINGS[cell.tuned]
    by_peft = tuning.lora is not None
    mesh = build_mesh(LayoutConfig(), World.here(torch.device("cpu")))
    model = build(replace(cell, tuned="") if by_peft else cell, mesh)
    if by_peft:
        with_peft(model, tuning, seed=TUNING_SEED)
    batches = (microbatches(cell, step)[0] for step in range(cell.steps))
    history = plain_steps(model, batches, adamw=adamw_of(cell))
    return history, {name: p.detach() for name, p in model.named_parameters()}


def adamw_of(cell: Cell) -> AdamW:
    """What a cell is trained by."""
    if not cell.tuned:
        return ADAMW
    return SMOOTH if cell.precision == "bf16" else FIRM


def plain_steps(model: SemiCausal, batches: Iterable[Batch], *, adamw: AdamW = ADAMW) -> History:
    """Loss and gradient norm of a step on each batch, in one process and by torch alone."""
    groups = parameter_groups(model, weight_decay=adamw.weight_decay)
    for group in groups:
        group["lr"] = adamw.learning_rate * group["rate_ratio"]
    optimizer = torch.optim.AdamW(
        groups, lr=adamw.learning_rate, betas=adamw.betas, eps=adamw.epsilon
    )
    history: History = []
    for batch in batches:
        result = model(batch)
        assert isinstance(result, Loss)
        loss = result.total / batch.num_scored
        optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([g.double().square().sum() for g in grads]).sum().sqrt().item()
        for grad in grads:
            grad.copy_((grad.double() * min(1.0, CLIP_NORM / (norm + 1e-6))).float())
        optimizer.step()
        history.append((loss.item(), norm))
    return history


_MESHES: dict[tuple[int, int], Mesh] = {}


def mesh_of(cell: Cell) -> Mesh:
    """This rank's mesh; the last one is kept, since groups cost time and sockets."""
    key = (cell.tensor, cell.pipeline)
    if key not in _MESHES or not _stands(_MESHES[key]):
        _MESHES.clear()
        _MESHES[key] = build_mesh(cell.spread(), World.here())
    return _MESHES[key]


def _stands(mesh: Mesh) -> bool:
    """Whether its groups are there still: another mesh that was built destroys them."""
    try:
        for value in vars(mesh).values():
            if isinstance(value, dist.ProcessGroup):
                dist.get_rank(value)
    except ValueError:
        return False
    return True


def engine_of(cell: Cell) -> ZeroEngine:
    """The tiny model under ZeRO at a cell's layout."""
    mesh = mesh_of(cell)
    return build_engine(
        build(cell, mesh),
        mesh,
        adamw=adamw_of(cell),
        zero=ZeroConfig(stage=cell.zero, persist_parameters_below=100),
        precision=cell.precision,
    )


def run_steps(engine: ZeroEngine, cell: Cell, steps: Iterable[int]) -> History:
    """Losses and gradient norms of steps on this rank's share of each global batch."""
    history: History = []
    for step in steps:
        reseed(7, step=step, mesh=engine.mesh)
        batches = microbatches(cell, step, rank=engine.mesh.data_rank)
        result = train_step(engine, batches)
        history.append((result.averages.loss, result.gradient_norm))
        # Parts are compared one by one in test_norms_by_part.py.
        whole = math.hypot(*result.gradient_norms.values())
        assert math.isclose(whole, result.gradient_norm, rel_tol=1e-12)
    compilation = compilation_of(engine.module)
    assert compilation is None or (compilation.num_graphs and compilation.failure is None)
    return history


def on_ranks(cell: Cell) -> History:
    """What `oracle` computes, on this process group in the cell's layout."""
    engine = engine_of(cell)
    history = run_steps(engine, cell, range(cell.steps))
    engine.close()
    return history


Part = tuple[str, Region, Tensor]
"""Name, region, and the values there."""


def trained_on_ranks(cell: Cell) -> tuple[History, list[Part]]:
    """The same, and the parts of the weights that this rank owns in the end."""
    engine = engine_of(cell)
    history = run_steps(engine, cell, range(cell.steps))
    parts = [
        (part.name, part.region, part.tensor.clone())
        for part in local_slices(engine)
        if part.owned and part.kind == "value"
    ]
    engine.close()
    return history, parts


def assembled(parts_of_ranks: Sequence[Sequence[Part]]) -> dict[str, Tensor]:
    """Whole weights from the owned parts of all ranks, each element of which is there once."""
    whole: dict[str, Tensor] = {}
    covered: dict[str, Tensor] = {}
    for name, region, value in (p for parts in parts_of_ranks for p in parts):
        shape, box = region.shape, region.box
        target = whole.setdefault(name, torch.zeros(shape))
        count = covered.setdefault(name, torch.zeros(shape, dtype=torch.int64))
        # Flat places of the box's elements in the whole weight, in the box's own order.
        places = torch.arange(target.numel()).view(shape)[tuple(slice(*bounds) for bounds in box)]
        mine = places.flatten()[region.start : region.stop]
        target.view(-1)[mine] = value.float()
        count.view(-1)[mine] += 1
    assert all(bool((count == 1).all()) for count in covered.values()), "not tiled exactly once"
    return whole
