"""How many sequences a rank computes at a time: what `auto` takes, and whether it fits.

Before its first step a run makes one whose gradient is not finite: forward, backward, reduction,
norm and update take the memory that they will take, and the update changes nothing. It reads as
many span tokens as there is room for. Two small steps before it show how memory grows with the
microbatch; so `auto` finds what fits, and what does not fit is refused by all ranks together,
before one of them runs out of memory while the others wait for it.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from model.batch import Batch, PackedSpans
from parallel.agreement import failing_together, gathered
from parallel.memory import DeviceMemory, device_memory
from parallel.pipeline import forward_backward, microbatch_fault
from parallel.zero.engine import ZeroEngine
from train.config import RunConfig
from train.data.collate import Collator
from train.data.sample import Sample
from train.data.spans.media import MediaReader
from train.data.spans.places import NO_SPANS, FlatSpans, Ints, Spans
from train.data.spans.protocol import Draw, SpanCapacity
from train.data.spans.text import TextReader
from train.data.tokens import SpecialTokens
from train.errors import ConfigError, MemoryExceededError, UserError, end_at_once, named
from train.watch.metrics import GIB_BYTES

MOST_SLOTS_ON_GPU = 1 << 16
"""Of a microbatch that `auto` takes: beyond, a step gains less than 2 % (1.3 B on an H200)."""
MOST_SLOTS_ON_CPU = 1 << 12
"""Memory of a host is shared with others and not asked, so that `auto` stays small there."""
MICROBATCHES_A_STAGE = 4
"""As many at least does `auto` leave to each stage of a pipeline, which idles for one of them."""

COMPILED_SHARE = 0.7
"""Of the memory that eager blocks take, what compiled ones need at least: they keep 24 d bytes a
slot where eager ones keep 32 d."""


def possible_sizes(config: RunConfig, *, ranks: int) -> list[int]:
    """Sequences of a microbatch that the batch and the layout allow, in rising order."""
    layout, S = config.layout, config.data.sequence_tokens
    mine = config.batch.sequences // max(1, ranks // layout.model_ranks)
    return [
        size
        for size in range(1, mine + 1)
        if mine % size == 0
        and microbatch_fault(mine // size, pipeline=layout.pipeline, chunks=layout.chunks) is None
        and not (layout.sequence_parallel and size * S % layout.tensor)
    ]


def settled(config: RunConfig, *, ranks: int) -> RunConfig:
    """With the microbatch that `auto` takes where memory does not decide.

    Args:
        config: of a batch that the ranks can share.
        ranks: of the run.

    Raises:
        ConfigError: there is no size that batch and layout allow.
    """
    if config.batch.micro_sequences != "auto":
        return config
    sizes = possible_sizes(config, ranks=ranks)
    if not sizes:
        raise ConfigError(
            "batch.micro_sequences: auto finds no size that layout.chunks and "
            "layout.sequence_parallel both allow: change batch.sequences or the layout"
        )
    most_slots = MOST_SLOTS_ON_GPU if torch.cuda.is_available() else MOST_SLOTS_ON_CPU
    layout = config.layout
    mine = config.batch.sequences // max(1, ranks // layout.model_ranks)
    stages = layout.pipeline
    fits = [
        size
        for size in sizes
        if size * config.data.sequence_tokens <= most_slots
        and (stages == 1 or mine // size >= MICROBATCHES_A_STAGE * stages)
    ]
    return _with_size(config, max(fits, default=sizes[0]))


def tried(
    config: RunConfig,
    engine: ZeroEngine,
    collate: Collator,
    *,
    memory: DeviceMemory | None = None,
) -> RunConfig:
    """With a microbatch that has been tried and fits; every rank must call it.

    Neither weights nor moments change.

    Args:
        config: of the run; `batch.try_first` says whether anything is tried.
        engine: ready for the first step.
        collate: makes the run's batches.
        memory: what is asked; this rank's device if None.

    Raises:
        MemoryExceededError: it does not fit: by the measure of smaller ones, or when it is tried;
            on every rank, or their processes end with it (see `failing_together`).
        ConfigError: `auto` finds no size that batch and layout allow.
    """
    is_auto = config.batch.micro_sequences == "auto"
    config = settled(config, ranks=engine.mesh.world.size)
    memory = memory or device_memory()
    is_asked = config.batch.try_first
    if is_asked is False or (is_asked is None and memory is None):
        return config
    trial = _Trial(config, engine, collate)
    chosen = config.micro_sequences
    if memory is not None:
        with _together():
            growth = trial.measure(memory)
        fitting = growth.largest(trial.sizes)
        if is_auto and fitting is not None:
            chosen = min(chosen, fitting)
        # All ranks have the same figures, and refuse together.
        if growth.bytes_of(chosen) * COMPILED_SHARE > growth.usable_bytes:
            raise trial.refusal(chosen)
    if engine.mesh.world.is_main:  # it may take a minute where blocks are compiled
        sys.stderr.write(
            f"trying a step of microbatches of {chosen} sequences, without its update\n"
        )
    with _together():
        trial.run(chosen)
    return _with_size(config, chosen)


_together = partial(failing_together, UserError, end=end_at_once)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How memory of the fullest rank grows with the microbatch.

    Attributes:
        fixed_bytes: what is there whatever its size.
        sequence_bytes: what each of its sequences takes.
        usable_bytes: what there is, on the rank that has least.
    """

    fixed_bytes: float
    sequence_bytes: float
    usable_bytes: float

    def bytes_of(self, sequences: int) -> float:
        """What a microbatch takes."""
        return self.fixed_bytes + sequences * self.sequence_bytes

    def largest(self, sizes: list[int]) -> int | None:
        """The largest of these that fits, None if none does."""
        fitting = [size for size in sizes if self.bytes_of(size) <= self.usable_bytes]
        return max(fitting, default=None)


class _Trial:
    """Steps without an update, of microbatches of any size."""

    def __init__(self, config: RunConfig, engine: ZeroEngine, collate: Collator):
        self.sizes = possible_sizes(config, ranks=engine.mesh.world.size)
        self._config = config
        self._engine = engine
        self._collate = collate
        self._growth: Growth | None = None

    def measure(self, memory: DeviceMemory) -> Growth:
        """How memory grows, by the two smallest microbatches that the run could have."""
        few = self.sizes[:2]
        # Compiled for two more shapes, blocks would take a minute each, and then be dynamic ones.
        with torch.compiler.set_stance("force_eager"):
            peaks = [memory.peak_of(partial(self.run, size)) for size in few]
        everyone = gathered((peaks, memory.usable_bytes()))
        lines = [_line(few, peaks) for peaks, _ in everyone]
        self._growth = Growth(
            fixed_bytes=max(fixed for fixed, _ in lines),
            sequence_bytes=max(slope for _, slope in lines),
            usable_bytes=min(usable for _, usable in everyone),
        )
        return self._growth

    def run(self, size: int) -> None:
        """A step of microbatches of this size.

        Raises:
            MemoryExceededError: it does not fit.
        """
        layout, device = self._config.layout, self._engine.mesh.world.device
        most = self._config.batch.sequences // (self._engine.mesh.data_size * size)
        # Later ones find the gradients of the first there; in a pipeline several are under way.
        enough = 2 if layout.pipeline == 1 else layout.pipeline * (1 + (layout.chunks > 1))
        try:
            batch = fullest_batch(self._config, self._collate, size).to(device)
            forward_backward(self._engine, [batch] * min(most, enough), scale=math.inf)
            self._engine.step().read()
        except FloatingPointError:
            return
        except Exception as error:
            if named(error) is error:
                raise
            raise self.refusal(size) from error
        raise AssertionError("a gradient that was multiplied by infinity is finite")

    def refusal(self, size: int) -> MemoryExceededError:
        """That a microbatch does not fit, and what would."""
        figures, remedies, growth = "", list[str](), self._growth
        smaller = [each for each in self.sizes if each < size]
        if growth is None:
            remedies += [f"try batch.micro_sequences={max(smaller)}"] if smaller else []
        else:
            figures = (
                f" ({growth.bytes_of(size) / GIB_BYTES:.1f} GiB by the measure of smaller ones, "
                f"of {growth.usable_bytes / GIB_BYTES:.1f} that can be used)"
            )
            fitting = growth.largest(smaller)
            remedies += [] if fitting is None else [f"{fitting} does"]
        stronger = {"none": "selective", "selective": "full"}.get(self._config.layout.recompute)
        if stronger is not None:
            remedies.append(f"layout.recompute={stronger} takes less")
        if self._config.zero.stage < 3:
            remedies.append("so does zero.stage=3 on several ranks")
        told = "; ".join(remedies) or "take more ranks or a smaller model"
        return MemoryExceededError(
            f"batch.micro_sequences: a microbatch of {size} does not fit{figures}: {told}"
        )


def _line(sizes: list[int], peaks: list[float]) -> tuple[float, float]:
    """What is taken whatever the size, and by each sequence."""
    if len(sizes) == 1:
        return 0.0, peaks[0] / sizes[0]
    slope = max(0.0, (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]))
    return peaks[0] - sizes[0] * slope, slope


def fullest_batch(config: RunConfig, collate: Collator, sequences: int) -> Batch:
    """A microbatch with as many tokens in spans of text, and items, as there is room for."""
    S = config.data.sequence_tokens
    begins = 1  # slot 0 holds <s>
    readers = dict(collate.readers)
    for modality, reader in readers.items():
        if isinstance(reader, TextReader | MediaReader):
            spans = _fullest_spans(reader, begins=begins, ends=S - 1)
            readers[modality] = _Fixed(reader, spans)
            begins = int(spans[-1, 1]) if len(spans) else begins
    full = Collator(
        sequence_tokens=S,
        readers=readers,
        padding=collate.padding,
        attend=collate.attend,
        masking=collate.masking,
    )
    first_word = 1 + max(vars(SpecialTokens()).values())
    tokens = np.full(S + 1, min(first_word, config.model.decoder.vocabulary - 1))
    tokens[0] = SpecialTokens().start
    whole = np.array([[0, S + 1]])
    return full([(0, Sample(id=row, tokens=tokens, documents=whole)) for row in range(sequences)])


@dataclass(frozen=True)
class _Fixed:
    """Reads the same spans in every sample."""

    reader: TextReader | MediaReader[Any, Any]
    spans: Spans

    @property
    def capacity(self) -> SpanCapacity:
        return self.reader.capacity

    def choose(self, sample: Sample, *, epoch: int, choice: int = 0) -> Spans:
        return self.spans

    def pack(
        self,
        samples: Sequence[Sample],
        tokens: Ints,
        spans: FlatSpans,
        *,
        draws: Sequence[Draw] | None = None,
    ) -> PackedSpans:
        if isinstance(self.reader, TextReader):
            return self.reader.pack(samples, tokens, spans)
        blank = [self.reader.largest_blank(length) for length in spans.lengths.tolist()]
        return self.reader.arrays(blank, tokens, spans)


def _fullest_spans(reader: TextReader | MediaReader[Any, Any], *, begins: int, ends: int) -> Spans:
    """As many tokens as there is room for, in as few and long spans: their grid is largest."""
    capacity = reader.capacity
    spans: list[tuple[int, int]] = []
    left = min(capacity.most_slots, ends - begins)
    while left > 0 and len(spans) < capacity.spans:
        length = min(left, capacity.most_in_one)
        if isinstance(reader, MediaReader):
            while length and reader.largest_blank(length) is None:
                length -= 1  # a video has a multiple of its times
            if not length:
                break
        spans.append((begins, begins + length))
        begins, left = begins + length, left - length
    return np.array(spans, dtype=np.int64) if spans else NO_SPANS


def _with_size(config: RunConfig, size: int) -> RunConfig:
    batch = config.batch.model_copy(update={"micro_sequences": size})
    return config.model_copy(update={"batch": batch})
