"""Writes what was measured, for people (a table) and for programs (JSON)."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from parallel.launch import multiplies_bf16
from tools.bench.rounds import Findings, Spread

AT_LEAST = {
    "causal_vs_llama_same_precision": 1.15,
    "causal_vs_gpt2_same_precision": 1.05,
    "causal_vs_litgpt_same_precision": 1.1,
    "causal_vs_llama_default": 1.5,
    "checkpoint_write_vs_dd": 0.7,
    "checkpoint_read_vs_dd": 0.7,
    "build_vs_tokenizer": 0.7,
    "loading_vs_streaming": 1.5,
    "loading_two_vs_streaming_two": 1.5,
    "loading_s3_vs_streaming": 1.0,
    "loading_vs_node": 1.0,
}
"""What we ask of ourselves: tokens/s over the peer's, bandwidth over the disk's."""

AT_MOST = {
    "zero3_vs_ddp": 1.15,
    "two_stages_vs_ideal": 1.15,
    "checkpoint_blocked_vs_copy": 1.1,  # no more than a copy; a tenth is noise
    "loading_first_batch_gib": 1.0,
}
"""Step time over that of plain DDP, and over what two stages with their bubble could reach; what a
save costs training over one copy of the same bytes; memory of a process that reads."""

ABOVE_FLOPS_AT_MOST = {
    "semi_causal_over_causal_fp32": 1.10,
    "semi_causal_over_causal_bf16": 1.15,
}
"""And step time over what FLOPs predict."""

PREDICTED = "semi_causal_over_causal_flops"

MEANINGS = {
    "causal_vs_llama_same_precision": "tokens/s, ours / transformers' Llama, fp32",
    "causal_vs_gpt2_same_precision": "tokens/s, ours / transformers' GPT-2, same GELU, fp32",
    "causal_vs_litgpt_same_precision": "tokens/s, ours / litgpt, fp32",
    "causal_vs_llama_default": "tokens/s, our default / transformers' Llama in its own, fp32",
    "causal_vs_llama_autocast": "tokens/s, ours in bf16 / transformers' Llama under bf16 autocast",
    "semi_causal_over_causal_fp32": "step time, 25 % in spans / none, fp32",
    "semi_causal_over_causal_bf16": "step time, 25 % in spans / none, bf16",
    PREDICTED: "the same, as FLOPs predict it",
    "packed_vs_padded": "encoder time, padded to the longest span / packed, fp32",
    "packed_vs_padded_bf16": "encoder time, padded to the longest span / packed, bf16",
    "packed_vs_whole_sequence": "encoder time, whole sequence / packed, fp32",
    "packed_vs_whole_sequence_bf16": "encoder time, whole sequence / packed, bf16",
    "checkpoint_blocked_vs_copy": "time that a save holds training up / copy in memory",
    "checkpoint_write_vs_dd": "bandwidth, background write / dd with fsync",
    "checkpoint_write_vs_torch": "bandwidth, background write / torch.save with fsync",
    "checkpoint_write_vs_dcp": "bandwidth, background write / dcp.save",
    "checkpoint_blocked_vs_dcp": "time that a save holds training up / dcp.async_save",
    "checkpoint_read_vs_dd": "bandwidth, restore / dd, nothing cached",
    "checkpoint_read_vs_torch": "bandwidth, restore / torch.load, nothing cached",
    "checkpoint_read_vs_dcp": "bandwidth, restore / dcp.load, nothing cached",
    "build_vs_tokenizer": "tokens/s of tools.corpus build / the tokenizer's own batch rate",
    "loading_vs_streaming": "sequences/s, our one thread / StreamingDataset without workers",
    "loading_processor_vs_streaming": "the same in seconds of processor time, streaming / ours",
    "loading_two_vs_streaming_two": "sequences/s, two ranks of ours / two workers of streaming's",
    "loading_packed_vs_streaming_cut": "tokens/s, documents packed / streaming's, cut anywhere",
    "loading_vs_array": "sequences/s, ours / rows gathered from one array",
    "loading_vs_node": "tokens/s, packed and with spans, one thread / what eight H100s train",
    "loading_s3_vs_streaming": "seconds of an epoch from S3, nothing cached, streaming / ours",
    "loading_s3_vs_streaming_two": "the same, two workers of streaming's / our one reader",
    "loading_first_batch_gib": "GiB at most to the first batch of 300 million documents",
    "zero3_vs_ddp": "step time, ZeRO-3 / torch DDP, two ranks, fp32",
    "two_stages_vs_ideal": "step time, two stages / half of the whole, bubble included, fp32",
    "two_halves_vs_two_stages": "step time, layers halved / stages balanced, fp32",
    "two_halves_vs_two_stages_predicted": "the same, as the cost model predicts it",
}


def machine(*, threads: int) -> dict[str, object]:
    """What the numbers were measured on, and with."""
    cuda = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "bf16_in_hardware": multiplies_bf16(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("torch", "deepspeed", "transformers", "litgpt")
        },
    }


def requirement(key: str, ratios: dict[str, float]) -> tuple[str, bool] | None:
    """What is asked of a ratio and whether it is met; None where nothing is asked."""
    if key in AT_LEAST:
        return f"≥ {AT_LEAST[key]:.2f}", ratios[key] >= AT_LEAST[key]
    if key in AT_MOST:
        return f"≤ {AT_MOST[key]:.2f}", ratios[key] <= AT_MOST[key]
    if key in ABOVE_FLOPS_AT_MOST and PREDICTED in ratios:
        limit = ABOVE_FLOPS_AT_MOST[key] * ratios[PREDICTED]
        return f"≤ {limit:.2f}", ratios[key] <= limit
    return None


def show(console: Console, findings: Sequence[Findings]) -> None:
    """Two tables: each contestant, then the ratios with what is asked of them."""
    contestants = Table("case", "contestant", "precision", title="Medians", title_justify="left")
    for heading in ("parameters", "step, s", "tokens/s"):
        contestants.add_column(heading, justify="right")
    for found in findings:
        for index, (name, values) in enumerate(found.contestants.items()):
            contestants.add_row(
                "" if index else found.case,
                name,
                str(values["precision"]),
                f"{values['parameters']:,}",
                f"{values['step_seconds']:.3f}",
                f"{values['tokens_per_second']:,.0f}",
            )
    console.print(contestants)
    table = Table("ratio", title="Ratios", title_justify="left")
    for heading in ("median", "quartiles", "asked"):
        table.add_column(heading, justify="right")
    ratios = medians(findings)
    for found in findings:
        for key, value in found.ratios.items():
            asked = requirement(key, ratios)
            text = "" if asked is None else f"[{'green' if asked[1] else 'red'}]{asked[0]}[/]"
            name = f"{key}\n[dim]{MEANINGS[key]}[/]"
            table.add_row(name, f"{value.median:.3f}", _quartiles(value), text)
    console.print(table)
    for found in findings:
        for key in ("formula", "counted", "where_time_goes", "first_batch"):
            if key in found.settings:
                console.print(str(found.settings[key]), markup=False)
        for name, values in found.contestants.items():
            if "mfu" in values:
                console.print(
                    f"{found.case} {name}: MFU {values['mfu']:.1%}, counted "
                    f"{values['mfu_counted']:.1%}, {values['sequences']} sequences at a time"
                )


def medians(findings: Sequence[Findings]) -> dict[str, float]:
    """All ratios by key."""
    return {key: value.median for found in findings for key, value in found.ratios.items()}


def write(
    path: Path,
    findings: Sequence[Findings],
    *,
    threads: int,
    plan: str,
    load: float,
    seconds: float,
) -> None:
    """Write `ratios`, `machine`, and what each case rests on.

    Args:
        path: of the JSON file.
        findings: of each case.
        threads: of each case.
        plan: name of the plan.
        load: mean load of the machine before the bench, in cores.
        seconds: that the bench took.
    """
    document = {
        "ratios": medians(findings),
        "machine": machine(threads=threads) | {"load_before": load},
        "plan": plan,
        "seconds_total": seconds,
        "cases": {found.case: asdict(found) for found in findings},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def _quartiles(value: Spread) -> str:
    if value.lower_quartile == value.upper_quartile:
        return ""
    return f"{value.lower_quartile:.3f}-{value.upper_quartile:.3f}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
