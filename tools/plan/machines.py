"""Rates of machines: nominal presets, and constants measured by a calibration."""

import bisect
import contextlib
import math
import os
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import psutil
from pydantic import Field, ValidationError

from model.config import Config
from parallel.zero.config import Precision
from train.errors import ConfigError, StorageError
from train.storage.path import user_cache
from train.storage.record import content_of

MachineKind = Literal["h100", "h200", "a100", "cpu"]
KINDS: tuple[MachineKind, ...] = ("h100", "h200", "a100", "cpu")

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
ByStage = list[NotNegative]
"""For each ZeRO stage."""
GIB = 2**30


class Link(Config):
    """What a message takes: a latency, and its bytes one after the other."""

    latency_seconds: NotNegative
    bytes_per_second: Positive
    hop_seconds: NotNegative = 0.0
    """What each further rank adds that a message passes on its way."""

    def seconds(self, num_bytes: float, *, hops: float = 0.0) -> float:
        """Time of a message."""
        return self.latency_seconds + hops * self.hop_seconds + num_bytes / self.bytes_per_second


class Links(Config):
    """Communication among ranks, for each kind of it."""

    reduce: Link
    """All-reduce: bytes over the link are 2 (k - 1) / k of the tensor's."""
    gather: Link
    """All-gather or reduce-scatter: (k - 1) / k."""
    send: Link
    """From one stage to the next."""

    def all_reduce(self, num_bytes: float, *, ranks: int, times: float = 1) -> float:
        """Seconds of `times` all-reduces of a tensor of so many bytes, up and down a tree."""
        if ranks == 1:
            return 0.0
        sent = 2 * (ranks - 1) / ranks * num_bytes
        return times * self.reduce.seconds(sent, hops=2 * math.log2(ranks / 2))

    def all_gather(self, num_bytes: float, *, ranks: int, times: float = 1) -> float:
        """Seconds of `times` all-gathers to, or reduce-scatters of, so many bytes, in a ring."""
        if ranks == 1:
            return 0.0
        sent = (ranks - 1) / ranks * num_bytes
        return times * self.gather.seconds(sent, hops=ranks - 2)


class Rates(Config):
    """What one rank computes in a second, while as many ranks of its node are busy."""

    products: list[tuple[Positive, Positive]]
    """Matrix products: (geometric mean of the three dims, operations a second), by rising size."""
    attention: Positive
    """Operations a second of causal attention, a backward counted as two forwards."""
    span_attention: Positive
    """The same in an encoder, position bias included."""
    elementwise: Positive
    """Bytes a second of norms, residuals and activations."""
    logits: Positive
    """Bytes a second of the head apart from its products: logits, and its weight's gradient."""
    update: Positive
    """Bytes a second of fused AdamW."""
    block_seconds: NotNegative
    """What calling a block, forward and backward, costs whatever its size."""
    microbatch_seconds: NotNegative
    """The same of a microbatch."""
    step_element_seconds: ByStage
    """Handling gradients and weights once a step, for each element of a rank's parameters, the
    update aside."""
    step_block_seconds: ByStage
    """The same for each block, whatever its size."""
    microbatch_element_seconds: ByStage
    """What ZeRO adds to each microbatch, for each element."""
    microbatch_block_seconds: ByStage
    """The same for each block, whatever its size."""

    def product_seconds(self, rows: float, inner: float, outer: float) -> float:
        """Time of a product [rows, inner] x [inner, outer]."""
        operations = 2 * rows * inner * outer
        if operations == 0:
            return 0.0
        size = (rows * inner * outer) ** (1 / 3)
        # Between sizes by their logarithm; what is smaller than the smallest is slower still.
        number = bisect.bisect(self.products, size, key=itemgetter(0))
        (below, slower), (above, faster) = (
            self.products[max(number - 1, 0)],
            self.products[min(number, len(self.products) - 1)],
        )
        part = math.log(size / below) / math.log(above / below) if above > below else 0.0
        rate = (slower + part * (faster - slower)) * min(1.0, size / self.products[0][0])
        return operations / rate


ZERO_RATES = [name for name, field in Rates.model_fields.items() if field.annotation == ByStage]
"""Of `Rates`, what only an engine shows."""


class RatesAt(Config):
    """Rates at one precision and number of busy ranks."""

    precision: Precision
    busy_ranks: Annotated[int, Field(ge=1)]
    rates: Rates


class Machine(Config):
    """A kind of machine and its nodes."""

    kind: MachineKind
    device: str
    """Whose numbers these are."""
    measured: bool
    """By a calibration; else taken from data sheets and common experience."""
    memory_bytes: Positive
    """Of one rank."""
    ranks_per_node: Annotated[int, Field(ge=1)]
    peak_flops: dict[Precision, Positive]
    """Of one rank, which MFU is measured against."""
    rates: list[RatesAt]
    within_node: Links
    between_nodes: Links
    has_fused_span_attention: bool
    """Whether attention with a trained position bias has a kernel that keeps no scores."""

    def rates_for(self, precision: Precision, *, ranks: int) -> Rates:
        """Rates of one rank when so many are busy in all.

        Raises:
            ConfigError: the calibration did not measure this precision.
        """
        busy = min(ranks, self.ranks_per_node)
        known = [entry for entry in self.rates if entry.precision == precision]
        if not known:
            raise ConfigError(
                f"precision: {precision} was not calibrated on {self.device}; calibrate again, or "
                "choose another"
            )
        return min(known, key=lambda entry: abs(entry.busy_ranks - busy)).rates

    def links(self, *, span: int, stride: int = 1) -> Links:
        """Links of a group.

        Args:
            span: consecutive ranks from its first to its last.
            stride: ranks from each of its ranks to the next. Groups of a node's ranks talk at the
                same time, so each has as many of the node's ways out as it has ranks there.
        """
        if span <= self.ranks_per_node:
            return self.within_node
        ways = max(1, self.ranks_per_node // stride)

        def widened(kind: Literal["reduce", "gather"]) -> Link:
            one, limit = getattr(self.between_nodes, kind), getattr(self.within_node, kind)
            most = max(limit.bytes_per_second, one.bytes_per_second)
            rate = min(ways * one.bytes_per_second, most)
            return one.model_copy(update={"bytes_per_second": rate})

        return self.between_nodes.model_copy(
            update={"reduce": widened("reduce"), "gather": widened("gather")}
        )

    @property
    def usable_bytes(self) -> float:
        """Of a rank's memory, what tensors can fill; the rest goes to contexts and fragments."""
        return 0.92 * self.memory_bytes


class _Sheet(NamedTuple):
    """Figures of the makers, for one rank: dense operations and bytes a second, each direction."""

    device: str
    fp32: float
    bf16: float
    memory_gib: float
    memory_rate: float
    node_link: float
    network: float
    products: float
    """Share of the peak that products sustain at most; of the H200 measured in steps of 1.3 B."""
    attention: float
    """Share of the peak that causal attention attains; of the H200 likewise, with heads of 64."""


_SHEETS: dict[MachineKind, _Sheet] = {
    "h100": _Sheet("H100 SXM 80 GB", 67e12, 989e12, 79.1, 3.35e12, 450e9, 50e9, 0.70, 0.30),
    "h200": _Sheet("H200 SXM 141 GB", 67e12, 989e12, 139.8, 4.8e12, 450e9, 50e9, 0.73, 0.30),
    "a100": _Sheet("A100 SXM 80 GB", 19.5e12, 312e12, 79.1, 2.04e12, 300e9, 25e9, 0.78, 0.40),
    "cpu": _Sheet("a core with AVX-512", 95e9, 215e9, 0.0, 8e9, 1.25e9, 1.25e9, 0.78, 0.40),
}

_NOMINAL_PRODUCTS = ((256, 0.15), (512, 0.35), (1024, 0.60), (2048, 0.72), (4096, 0.78))
"""Share of the peak that products of a size attain, where the device sustains so much."""
HOP_SECONDS = 5e-6
"""What each rank of a ring over several nodes adds to a message's way."""


def nominal(kind: MachineKind, *, cores: int = 1, memory_bytes: float = 8 * GIB) -> Machine:
    """A machine by its data sheet, with shares of the peak that large runs commonly attain.

    Args:
        kind: which.
        cores: of a node without GPUs; each is a rank.
        memory_bytes: of a node without GPUs.
    """
    sheet, on_cpu = _SHEETS[kind], kind == "cpu"
    peaks: dict[Precision, float] = {"fp32": sheet.fp32, "bf16": sheet.bf16}
    near, far = (2e-4, 5e-4) if on_cpu else (1e-5, 3e-5)
    return Machine(
        kind=kind,
        device=sheet.device,
        measured=False,
        memory_bytes=memory_bytes / cores if on_cpu else sheet.memory_gib * GIB,
        ranks_per_node=cores if on_cpu else 8,
        peak_flops=peaks,
        rates=[
            RatesAt(
                precision=precision,
                busy_ranks=1,
                rates=_nominal_rates(peak, sheet, call=5e-4 if on_cpu else 2e-4, handled=handled),
            )
            for (precision, peak), handled in zip(
                peaks.items(), [_HANDLED_ON_CPUS] * 2 if on_cpu else _HANDLED_BYTES, strict=True
            )
        ],
        within_node=_links(latency=near, nominal_rate=sheet.node_link),
        between_nodes=_links(
            latency=far, nominal_rate=sheet.network, hop=0.0 if on_cpu else HOP_SECONDS
        ),
        has_fused_span_attention=not on_cpu,
    )


class _Handled(NamedTuple):
    """Bytes an element that ZeRO moves at each stage, besides AdamW's own."""

    step: tuple[float, ...]
    microbatch: tuple[float, ...]
    has_calls: bool = False
    """Whether each block has calls of its own in a step, rather than one for all tensors."""


_HANDLED_BYTES: Final = (
    # In fp32 DeepSpeed copies gradients to buckets, to the part that is this rank's, and to a flat
    # group; all is read once for the norm, and weights are written.
    _Handled(step=(20.0, 28.0, 28.0, 36.0), microbatch=(12.0, 12.0, 12.0, 24.0)),
    # In bf16 at stages 0 and 1 gradients lie where they are summed (`parallel.zero.accumulation`):
    # they are read once for the norm (4), and masters to write weights (6); each microbatch reads
    # a gradient, and the sum, and writes it (10).
    _Handled(step=(10.0, 10.0, 28.0, 36.0), microbatch=(10.0, 10.0, 12.0, 24.0)),
)
"""On GPUs, in fp32, and in bf16 with fp32 sums."""
_HANDLED_ON_CPUS: Final = _Handled(
    step=(44.0, 52.0, 52.0, 60.0), microbatch=(12.0, 12.0, 12.0, 24.0), has_calls=True
)
"""Norms are taken in fp64 there."""


def _nominal_rates(peak: float, sheet: _Sheet, *, call: float, handled: _Handled) -> Rates:
    moved = 0.70 * sheet.memory_rate
    return Rates(
        products=[(size, min(share, sheet.products) * peak) for size, share in _NOMINAL_PRODUCTS],
        attention=sheet.attention * peak,
        span_attention=0.10 * peak,
        elementwise=moved,
        logits=moved,
        update=0.80 * sheet.memory_rate,
        block_seconds=call,
        microbatch_seconds=5 * call,
        step_element_seconds=[num_bytes / moved for num_bytes in handled.step],
        step_block_seconds=[call * handled.has_calls] * 4,
        microbatch_element_seconds=[num_bytes / moved for num_bytes in handled.microbatch],
        microbatch_block_seconds=[0.0, call, call, 5 * call],
    )


def _links(*, latency: float, nominal_rate: float, hop: float = 0.0) -> Links:
    """All at 80 % of what is nominal."""
    link = Link(latency_seconds=latency, bytes_per_second=0.8 * nominal_rate, hop_seconds=hop)
    return Links(reduce=link, gather=link, send=link)


def calibration_path(kind: MachineKind) -> Path:
    """Where the calibration of a kind of machine is kept."""
    return user_cache(f"machine-{kind}.json")


_BYTES_AT_MOST = 1 << 20


def read_machine(path: Path) -> Machine:
    """A calibration that was kept.

    Raises:
        ConfigError: it is missing or damaged.
        DataError: it is no file, or cannot be read.
    """
    try:
        return Machine.model_validate_json(content_of(path, limit_bytes=_BYTES_AT_MOST))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError:
        raise ConfigError(
            f"{path}: is no calibration of this version; measure again with python -m tools.plan "
            "calibrate"
        ) from None


def machine_for(kind: MachineKind, calibration: Path | None) -> tuple[Machine, str]:
    """The calibration named or kept, else the preset; and which it is, in words.

    Raises:
        ConfigError: the calibration that was named is missing, damaged or of another kind.
    """
    path = calibration
    if path is None:
        with contextlib.suppress(StorageError):  # who has no home has kept none
            path = calibration_path(kind)
    if path is not None and (path == calibration or path.exists()):
        machine = read_machine(path)
        if machine.kind != kind:
            raise ConfigError(f"{path}: is of {machine.kind}, not {kind}")
        return machine, f"measured ({path}, {machine.device})"
    preset = nominal(
        kind, cores=os.cpu_count() or 1, memory_bytes=float(psutil.virtual_memory().total)
    )
    return preset, "nominal, not measured (python -m tools.plan calibrate, on such a machine)"
