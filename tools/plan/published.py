"""`python -m tools.plan published`: what others have published, beside what the planner predicts.

Their models are described as work: widths, layers, what a block moves. Figures are facts of the
sources named; where a source counts operations otherwise, its tokens a second are converted to
`tools.plan.search.FORMULA`. Rates are those of `tools.plan.machines`. No row has a rate of its own:

- `CONTENTION` and `HOP_SECONDS` were set by two rows of llm-foundry: 13 B on 8 GPUs in microbatches
  of 2, which travels most for what it computes, and 1 B on 512.
- `FIRST_FLASH` and `EAGER_MPT_MOVES` say what its kernels and operators were in 2023; they were
  looked for where 1 B and 7 B on 8 GPUs and 70 B on 128 differed.
- `LOW_POWER` was set by torchtitan's compiled rows: its devices draw 500 W and not 700.
- `EAGER_LLAMA_MOVES` and `COMPILED_LLAMA_MOVES` were counted from the operators, and not fitted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from parallel.mesh import LayoutConfig
from tools.arguments import Parser
from tools.plan.described import Described, common_of, decoder_of
from tools.plan.machines import Machine, MachineKind, Rates, nominal
from tools.plan.search import flops_per_token
from tools.plan.step_time import step_seconds
from tools.plan.table import console
from tools.plan.task import Candidate, Task, Wire, task_of
from train.config import RunConfig
from train.config_files import load

EXPERIMENT = str(Path(__file__).parents[2] / "configs/experiment/metalm_1p3b.yaml")

FSDP = Wire(by_layer=True, overlaps=True)
"""Gradients in fp32, as all three tables have it."""

EAGER_MPT_MOVES = 100.0
"""Elements of width that an eager MPT block moves a row, forward and backward, at F = 4 H: what
ours moves (65), two dropouts of rate 0 that multiply by ones (22), queries, keys and values made
contiguous and their gradients joined (12)."""
FIRST_FLASH = 0.5
"""Operations a second of the first FlashAttention in Triton, over those of today's on an H100."""
EAGER_LLAMA_MOVES = 190.0
"""The same of an eager Llama block at F = 3.5 H: two RMS norms of about ten operators each in fp32
(95), rotary positions through complex fp32 (25), the gate (49), residuals (12), layout (11)."""
FUSED_LLAMA_MOVES = 104.0
"""The same with kernels for norms (24) and positions (6): the gate at F = 4 H (56), residuals (12),
layout (6)."""
COMPILED_LLAMA_MOVES = 64.0
"""The same fused as a whole: norms and residuals (24), positions (6), gate (28), layout (6)."""
LOW_POWER = 0.80
"""Of what an H100 of 700 W multiplies, what one of 500 W does."""
HBM2E = 2.4 / 3.35
"""Bytes a second of its memory, over those of the H100 of 80 GB."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run that was published.

    Attributes:
        source: whose figure it is.
        name: the model, and what else tells rows apart.
        task: the run.
        candidate: how it was spread.
        machine: what it ran on.
        tokens_per_second: of a GPU.
    """

    source: str
    name: str
    task: Task
    candidate: Candidate
    machine: Machine
    tokens_per_second: float

    @property
    def predicted(self) -> float:
        """Tokens a second of a GPU."""
        seconds = step_seconds(self.task, self.candidate, self.machine).total
        slots = self.task.sequences * self.task.sequence_tokens
        return slots / seconds / self.candidate.ranks

    def mfu(self, tokens_per_second: float) -> float:
        """By the planner's formula."""
        return tokens_per_second * flops_per_token(self.task) / self.machine.peak_flops["bf16"]

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.tokens_per_second - 1


MPT_VOCABULARY = 50_368
MPT = {  # width, layers, heads
    "1b": (2048, 24, 16), "3b": (2560, 32, 20), "7b": (4096, 32, 32), "13b": (5120, 40, 40),
    "30b": (7168, 48, 56), "70b": (8192, 80, 64),
}  # fmt: skip
LLM_FOUNDRY = "mosaicml/llm-foundry, scripts/train/benchmarking/README.md, H100 80GB BF16"
LLM_FOUNDRY_ROWS = """
1b 8 14 1 FULL_SHARD no 45455
1b 16 20 1 FULL_SHARD no 46037
1b 32 20 1 FULL_SHARD no 45130
1b 64 20 1 FULL_SHARD no 44402
1b 128 12 1 SHARD_GRAD_OP no 44123
1b 256 12 1 SHARD_GRAD_OP no 42555
1b 512 12 1 SHARD_GRAD_OP no 39837
3b 16 10 3 FULL_SHARD no 24142
3b 32 6 3 FULL_SHARD no 23021
3b 64 6 3 FULL_SHARD no 22525
3b 128 8 1 SHARD_GRAD_OP no 23422
3b 256 8 1 SHARD_GRAD_OP no 22772
3b 512 8 1 SHARD_GRAD_OP no 21664
7b 8 6 1 FULL_SHARD no 10643
7b 128 6 1 FULL_SHARD no 10475
7b 256 6 1 FULL_SHARD no 10119
7b 512 6 1 FULL_SHARD no 9670
13b 8 2 1 FULL_SHARD no 4792
13b 16 2 1 FULL_SHARD no 4767
13b 32 2 1 FULL_SHARD no 4811
13b 64 2 1 FULL_SHARD no 4800
13b 128 16 1 FULL_SHARD yes 5080
13b 256 16 1 FULL_SHARD yes 4989
13b 512 16 1 FULL_SHARD yes 4952
30b 8 3 21 FULL_SHARD yes 2002
30b 16 10 3 FULL_SHARD yes 2263
30b 32 14 3 FULL_SHARD yes 2308
30b 128 8 1 FULL_SHARD yes 2199
30b 256 8 1 FULL_SHARD yes 2148
30b 512 8 1 FULL_SHARD yes 2115
70b 32 2 16 FULL_SHARD yes 882
70b 64 8 4 FULL_SHARD yes 1039
70b 128 8 1 FULL_SHARD yes 1058
70b 256 8 1 FULL_SHARD yes 1035
70b 512 8 1 FULL_SHARD yes 1007
"""
"""All rows of 2,048 tokens but those of 760 M: model, GPUs, sequences of a microbatch, number of
microbatches, sharding, activation checkpointing, tokens a second of a GPU."""

TORCHTITAN = "pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
TORCHTITAN_ROWS = """
8 eager 5762
8 compiled 6667
128 eager 5605
128 compiled 6514
"""
"""GPUs, blocks, tokens a second of a GPU: Llama 3.1 8 B, 8,192 tokens, microbatches of 2, one a
step; every second product computed again. Their own 33 to 39 % leave out the token embedding."""


NANOTRON = "huggingface/nanotron, docs/benchmark_summary.svg, 1.34 B"
NANOTRON_ROWS = """
8 44.3
32 38.38
64 32.47
128 29.46
256 23.20
512 5.3
"""
"""GPUs, MFU of the best layout that was found, all with 2^20 tokens a step in sequences of 4,096.
The shape follows from the size: Llama 3.2 1 B with as many heads of keys as of queries, and a
vocabulary of 2^17. Which layouts they were is not told: the planner takes its own best."""


OURS = "this repository, 26 November 2026 (docs/lab-notes.md)"
OURS_ROWS = """
h200 16 1 none 53091
h200 16 1 blocks 54209
h200 16 4 blocks 56528
h200 20 1 blocks 53976
h200 24 1 blocks 55835
h100 12 1 auto 54657
h100 12 4 auto 57469
"""
"""Device, sequences of a microbatch, microbatches, what is compiled, tokens a second: the 1.3 B. On
the H200 it was a prototype with chunks of 4,096 in its head, passed over by torch. Rates of H100
and H200 come from the first row's kernels."""
PROTOTYPE_BYTES = 52.0
"""Of an element and step that the prototype moved besides AdamW's own: gradients were zeroed,
added, copied onto themselves and scaled."""
PROTOTYPE_CALL_SECONDS = 2e-4
"""Of each block and step: it launched some operators for each tensor."""


def rows() -> Iterator[Row]:
    """All runs of known layouts."""
    yield from llm_foundry()
    yield from torchtitan()
    yield from ours()


def llm_foundry() -> Iterator[Row]:
    """MPT: a plain decoder with biases and a tied head, eager."""
    for name, *numbers, sharding, checkpointing, speed in map(str.split, _lines(LLM_FOUNDRY_ROWS)):
        gpus, micro, num_microbatches = map(int, numbers)
        width, num_layers, heads = MPT[name]
        decoder = decoder_of(width, num_layers, heads, 4 * width, MPT_VOCABULARY, tokens=2048)
        common = common_of(decoder, sequences=gpus * micro * num_microbatches, tokens=2048)
        yield Row(
            source=LLM_FOUNDRY,
            name=f"MPT {name}, microbatch {micro}, {sharding}"
            + ", checkpointing" * (checkpointing == "yes"),
            task=Described(
                **common, moves=EAGER_MPT_MOVES, recomputed=float(checkpointing == "yes")
            ),
            candidate=Candidate(
                layout=LayoutConfig(split=[num_layers]),
                data=gpus,
                stage=3 if sharding == "FULL_SHARD" else 2,
                micro_sequences=micro,
                num_microbatches=num_microbatches,
                wire=FSDP,
            ),
            machine=_scaled(nominal("h100"), attention=FIRST_FLASH),
            tokens_per_second=float(speed),
        )


def torchtitan() -> Iterator[Row]:
    """Llama 3.1 8 B on H100s of 96 GB."""
    for gpus, blocks, speed in map(str.split, _lines(TORCHTITAN_ROWS)):
        decoder = decoder_of(4096, 32, 32, 14336, 128_256, tokens=8192, tied=False)
        moves = COMPILED_LLAMA_MOVES if blocks == "compiled" else EAGER_LLAMA_MOVES
        yield Row(
            source=TORCHTITAN,
            name=f"Llama 3.1 8B, microbatch 2, FSDP, selective recomputation, {blocks}",
            task=Described(
                **common_of(decoder, sequences=2 * int(gpus), tokens=8192),
                gated=True,
                key_value_share=0.25,
                moves=moves,
                recomputed=0.5,
            ),
            candidate=Candidate(
                layout=LayoutConfig(split=[32]),
                data=int(gpus),
                stage=3,
                micro_sequences=2,
                num_microbatches=1,
                wire=FSDP,
            ),
            machine=_scaled(nominal("h100"), products=LOW_POWER, attention=LOW_POWER, memory=HBM2E),
            tokens_per_second=float(speed),
        )


def ours() -> Iterator[Row]:
    """The 1.3 B with its text encoder."""
    for name, *numbers, compiled, speed in map(str.split, _lines(OURS_ROWS)):
        device: MachineKind = "h100" if name == "h100" else "h200"
        micro, num_microbatches = map(int, numbers)
        keys = [f"model.compile={compiled}", f"batch.sequences={micro * num_microbatches}"]
        if device == "h200":
            keys += ["model.decoder.loss_chunk_tokens=4096", "model.decoder.loss_kernel=torch"]
        task = task_of(load(RunConfig, [EXPERIMENT, *keys]), kind=device)
        yield Row(
            source=OURS,
            name=f"MetaLM 1.3B, microbatch {micro}"
            + f" x {num_microbatches}" * (num_microbatches > 1)
            + (", eager" if compiled == "none" else ", compiled"),
            task=task,
            candidate=Candidate(
                layout=LayoutConfig(split=[task.model.decoder.num_layers]),
                data=1,
                stage=1,
                micro_sequences=micro,
                num_microbatches=num_microbatches,
            ),
            machine=nominal(device) if device == "h100" else _prototype(nominal(device)),
            tokens_per_second=float(speed),
        )


def _prototype(machine: Machine) -> Machine:
    """With the rates of its way to handle gradients."""

    def changed(rates: Rates) -> Rates:
        update = {
            "step_element_seconds": [PROTOTYPE_BYTES / rates.elementwise] * 4,
            "step_block_seconds": [PROTOTYPE_CALL_SECONDS] * 4,
        }
        return rates.model_copy(update=update)

    return _with_rates(machine, changed)


def nanotron() -> Iterator[Row]:
    """Strong scaling: the same batch on ever more GPUs."""
    decoder = decoder_of(2048, 16, 32, 8192, 1 << 17, tokens=4096)
    common = common_of(decoder, sequences=256, tokens=4096)
    task = Described(**common, gated=True, moves=FUSED_LLAMA_MOVES)
    machine = nominal("h100")
    for gpus, mfu in map(str.split, _lines(NANOTRON_ROWS)):
        candidates = [
            Candidate(
                layout=LayoutConfig(split=[16], tensor=tensor),
                data=int(gpus) // tensor,
                stage=1,
                micro_sequences=micro,
                num_microbatches=256 * tensor // (int(gpus) * micro),
                wire=Wire(scatters=True, overlaps=True),
            )
            for tensor in (1, 2, 4, 8)
            for micro in (1, 2, 4, 8)
            if 256 * tensor % (int(gpus) * micro) == 0
        ]
        best = min(candidates, key=lambda each: step_seconds(task, each, machine).total)
        yield Row(
            source=NANOTRON,
            name=f"Llama-like 1.34B, ZeRO-1; here tensor {best.layout.tensor}, microbatch "
            f"{best.micro_sequences}",
            task=task,
            candidate=best,
            machine=machine,
            tokens_per_second=float(mfu) / 100 * machine.peak_flops["bf16"] / flops_per_token(task),
        )


def main(arguments: list[str]) -> int:
    """Print the table."""
    Parser(prog="python -m tools.plan published", description=__doc__).parse_args(arguments)
    out = console()
    table = Table(title="published and predicted", title_justify="left")
    for name in ("source", "run", "GPUs", "tokens/s/GPU", "predicted", "MFU", "predicted", "error"):
        table.add_column(name, justify="left" if name in ("source", "run") else "right")
    sources: list[str] = []
    for row in (*rows(), *nanotron()):
        if row.source not in sources:
            sources.append(row.source)
        table.add_row(
            str(sources.index(row.source) + 1),
            row.name,
            str(row.candidate.ranks),
            f"{row.tokens_per_second:,.0f}",
            f"{row.predicted:,.0f}",
            f"{row.mfu(row.tokens_per_second):.1%}",
            f"{row.mfu(row.predicted):.1%}",
            f"{row.error:+.1%}",
        )
    out.print(table)
    for number, source in enumerate(sources, start=1):
        out.print(f"{number}: {source}", markup=False, soft_wrap=True)
    return 0


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


def _scaled(
    machine: Machine, *, products: float = 1.0, attention: float = 1.0, memory: float = 1.0
) -> Machine:
    """With rates that are these shares of what they were."""

    def changed(rates: Rates) -> Rates:
        of_memory = ("elementwise", "logits", "update")
        update = {name: memory * getattr(rates, name) for name in of_memory}
        update["attention"] = attention * rates.attention
        update["products"] = [(size, products * rate) for size, rate in rates.products]
        return rates.model_copy(update=update)

    return _with_rates(machine, changed)


def _with_rates(machine: Machine, changed: Callable[[Rates], Rates]) -> Machine:
    entries = [e.model_copy(update={"rates": changed(e.rates)}) for e in machine.rates]
    return machine.model_copy(update={"rates": entries})
