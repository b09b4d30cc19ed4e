"""`python -m tools.bench`: speed against peers and against our own other ways, as ratios."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from tools.bench import (
    building,
    causal,
    checkpointing,
    encoding,
    gpu,
    peers,
    ranks,
    report,
    semicausal,
    shapes,
    stages,
)
from tools.bench.loading.case import from_shards
from tools.bench.rounds import Findings
from tools.bench.shapes import Plan
from tools.ranks import RanksFailed, run_ranks

GPU_TIMEOUT_SECONDS = 1500.0

BUSY_LOAD = 0.5
"""Mean load of the last minute above which timings are not to be trusted."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        work: what each of its processes calls.
        about: one line.
        ranks: processes.
    """

    work: Callable[[Plan], Findings]
    about: str
    ranks: int = 1


CASES = {
    "causal": Case(work=causal.same_precision, about="ours, Llama and GPT-2 in fp32"),
    "litgpt": Case(work=causal.litgpt, about="ours and litgpt in fp32"),
    "default": Case(work=causal.defaults, about="our default against Llama's"),
    "semi_causal": Case(work=semicausal.over_causal, about="with spans over without"),
    "encoding": Case(work=encoding.ways_to_encode, about="packed, padded, whole sequence"),
    "zero3": Case(
        work=ranks.zero3_vs_ddp, about="ZeRO-3 against DDP on two ranks", ranks=ranks.NUM_RANKS
    ),
    "stages": Case(
        work=stages.two_stages, about="a pipeline of two stages", ranks=stages.NUM_STAGES
    ),
    "checkpoint": Case(work=checkpointing.against_others, about="saving and restoring, dd, torch"),
    "building": Case(
        work=building.against_tokenizer, about="from texts to shards, beside the tokenizer alone"
    ),
    "loading": Case(work=from_shards, about="from shards to batches, beside streaming"),
    "metalm_1p3b": Case(work=gpu.metalm_1p3b, about="the 1.3B on a GPU"),
}

ON_GPU = "metalm_1p3b"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases one after another, show and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="fewer rounds: two minutes")
    effort.add_argument(
        "--tiny", action="store_true", help="tries the plumbing in seconds; numbers mean nothing"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"))
    options = parser.parse_args(arguments)
    name, plan = _plan(quick=options.quick, tiny=options.tiny)
    chosen: list[str] = options.only or list(CASES)
    console = Console()
    if "litgpt" in chosen and not peers.has_litgpt():
        others = " ".join(case for case in CASES if case != "litgpt")
        sys.stderr.write(
            "litgpt, one of the peers, is not installed: `make bench` installs it (pip install "
            f'-e ".[bench]"); to do without, add --only {others}\n'
        )
        return 2
    if ON_GPU in chosen and not torch.cuda.is_available():
        console.print(f"{ON_GPU}: left out, there is no CUDA device")
        chosen = [case for case in chosen if case != ON_GPU]
    busy = os.getloadavg()[0]
    if busy > BUSY_LOAD:
        # Two threads wait for each other: under contention they lose more than the share taken.
        console.print(f"[red]other processes keep {busy:.1f} cores busy: measure when they rest[/]")
    started = time.perf_counter()
    findings: list[Findings] = []
    for case in chosen:
        console.print(f"{case}: {CASES[case].about} ...")
        try:
            findings.append(run(case, plan))
        except RanksFailed as error:
            sys.stderr.write(f"{case}: {error}\n")
            return 1
    seconds = time.perf_counter() - started
    report.show(console, findings)
    report.write(options.out, findings, threads=plan.threads, plan=name, load=busy, seconds=seconds)
    console.print(f"{seconds / 60:.1f} minutes; {options.out} holds the numbers", highlight=False)
    return 0


def run(case: str, plan: Plan) -> Findings:
    """One case, in processes of its own.

    Raises:
        RanksFailed: it broke or took too long.
    """
    on_gpu = case == ON_GPU
    return run_ranks(
        CASES[case].work,
        plan,
        ranks=CASES[case].ranks,
        threads=max(1, plan.threads // CASES[case].ranks),
        timeout_seconds=GPU_TIMEOUT_SECONDS if on_gpu else plan.timeout_seconds,
        cuda=on_gpu,
    )


def _plan(*, quick: bool, tiny: bool) -> tuple[str, Plan]:
    if tiny:
        return "tiny", shapes.TINY
    return ("quick", shapes.QUICK) if quick else ("full", shapes.FULL)


if __name__ == "__main__":
    sys.exit(main())
