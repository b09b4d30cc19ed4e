"""`python -m tools.bench`: speed against peers and against our own other ways, as ratios."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from rich.console import Console

from tools.arguments import Parser, output_file
from tools.bench import (
    building,
    causal,
    checkpointing,
    choosing,
    encoding,
    generating,
    gpu,
    local_disks,
    peers,
    report,
    restarting,
    shapes,
    stages,
    tuning,
    zero,
)
from tools.bench.loading.case import from_shards
from tools.bench.media import dealing, llava, reading
from tools.bench.media.encoding import ways_to_encode_pictures
from tools.bench.rounds import Findings
from tools.bench.shapes import Plan
from tools.command import command_line
from tools.ranks import RanksFailed, run_ranks
from train.errors import UserError

BUSY_LOAD = 0.5
"""Mean load of the last minute above which timings are not to be trusted."""


class Case(NamedTuple):
    """One comparison: what each of its processes calls, in a line, and how many there are."""

    work: Callable[[Plan], Findings]
    about: str
    ranks: int = 1
    timeout_seconds: float = 0.0
    """At least, whatever the plan says."""


CASES = {
    "causal": Case(causal.same_precision, "ours, Llama and GPT-2 in fp32"),
    "litgpt": Case(causal.litgpt, "ours and litgpt in fp32"),
    "default": Case(causal.defaults, "our default against Llama's"),
    "semi_causal": Case(zero.spans_over_none, "with spans over without"),
    "encoding": Case(encoding.ways_to_encode, "packed, padded, whole sequence"),
    "generation": Case(generating.against_transformers, "generation, ours and transformers'"),
    "choices": Case(choosing.against_lm_eval, "four choices behind a context, ours and lm-eval's"),
    "lora": Case(tuning.lora_vs_full, "training all weights over adapters alone"),
    "lora_peers": Case(tuning.lora_vs_peft, "adapters, ours and peft's"),
    "lora_save": Case(tuning.adapter_save, "what saving adapters holds up"),
    "within": Case(tuning.within_vs_across, "adapters on packed rows, apart and together"),
    "lora_1p3b": Case(tuning.lora_of_true_size, "adapters of the 1.3B: memory of two steps"),
    "zero3": Case(zero.zero3_vs_ddp, "ZeRO-3 against DDP on two ranks", ranks=2),
    "stages": Case(stages.two_stages, "a pipeline of two stages", stages.NUM_STAGES),
    "checkpoint": Case(checkpointing.against_others, "saving and restoring, dd, torch"),
    "checkpoint_two_ranks": Case(checkpointing.against_others, "the same on two ranks", ranks=2),
    "local_disks": Case(local_disks.against_a_store, "own disks beside a store", ranks=2),
    "restarting": Case(
        restarting.against_torchrun,
        "a rank is killed: our keeper, torchrun",
        timeout_seconds=1500.0,
    ),
    "watching": Case(restarting.watching, "what it costs to be watched", timeout_seconds=300.0),
    "building": Case(building.against_tokenizer, "from texts to shards, the tokenizer alone"),
    "loading": Case(from_shards, "from shards to batches, beside streaming"),
    "pictures": Case(ways_to_encode_pictures, "pictures packed, padded, one by one"),
    "llava": Case(llava.against_llava, "ours and transformers' LLaVA in fp32"),
    "waiting": Case(reading.waiting, "what training waits for pictures", timeout_seconds=300.0),
    "reader": Case(reading.beside_torchvision, "files to pixels, ours and torchvision's"),
    "balance_ranks": Case(dealing.on_data_ranks, "pictures dealt to two ranks", ranks=2),
    "balance_stages": Case(dealing.on_stages, "pictures dealt to two stages", ranks=2),
    "metalm_1p3b": Case(gpu.metalm_1p3b, "the 1.3B on a GPU", timeout_seconds=1500.0),
}

ON_GPU = "metalm_1p3b"


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases one after another, show and write what was found; 1 if one failed."""
    parser = Parser(prog="python -m tools.bench", description=__doc__)
    effort = parser.add_mutually_exclusive_group()
    for less, about in (
        (shapes.QUICK, "fewer rounds: two minutes"),
        (shapes.TINY, "tries the plumbing in seconds; numbers mean nothing"),
    ):
        effort.add_argument(
            f"--{less.name}", dest="plan", action="store_const", const=less, help=about
        )
    parser.set_defaults(plan=shapes.FULL)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--out", type=output_file, default="out/bench.json")
    options = parser.parse_args(arguments)
    plan: Plan = options.plan
    chosen: list[str] = options.only or list(CASES)
    console = Console()
    if "litgpt" in chosen and not peers.has_litgpt():
        others = " ".join(case for case in CASES if case != "litgpt")
        raise UserError(
            "litgpt, one of the peers, is not installed: `make bench` installs it (pip install "
            f'-e ".[bench]"); to do without, add --only {others}'
        )
    if "choices" in chosen and not choosing.has_harness():
        if options.only:
            raise UserError("lm-eval is not installed: make .venv/harness/installed")
        console.print("choices: left out, lm-eval is not there (make .venv/harness/installed)")
        chosen.remove("choices")
    if ON_GPU in chosen and not torch.cuda.is_available():
        console.print(f"{ON_GPU}: left out, there is no CUDA device")
        chosen.remove(ON_GPU)
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        # Two threads wait for each other: under contention they lose more than the share taken.
        console.print(f"[red]other processes keep {load:.1f} cores busy: measure when they rest[/]")
    started = time.perf_counter()
    findings: dict[str, Findings] = {}
    failed: dict[str, str] = {}
    for name in chosen:
        case = CASES[name]
        console.print(f"{name}: {case.about} ...")
        try:
            findings[name] = run_ranks(
                case.work,
                plan,
                ranks=case.ranks,
                threads=max(1, plan.threads // case.ranks),
                timeout_seconds=max(plan.timeout_seconds, case.timeout_seconds),
                cuda=name == ON_GPU,
            )
        except RanksFailed as error:
            # What the others found stands.
            sys.stderr.write(f"{name}: {error}\n")
            failed[name] = str(error)
    if not findings:
        return 1
    seconds = time.perf_counter() - started
    report.show(console, findings)
    report.write(options.out, findings, failed=failed, plan=plan, load=load, seconds=seconds)
    dealing.write_balance(options.out.with_name(dealing.BALANCE_NAME), findings)
    console.print(f"{seconds / 60:.1f} minutes; {options.out} holds the numbers", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
