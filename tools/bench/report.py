"""Writes what was measured, for people (a table) and for programs (JSON)."""

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table

from parallel.launch import multiplies_bf16, processor_name
from tools.bench.rounds import Findings
from tools.bench.shapes import Plan
from tools.command import write_json

BARS = {
    # Tokens/s over the peer's.
    "causal_vs_llama_same_precision": ("≥", 1.15),
    "causal_vs_gpt2_same_precision": ("≥", 1.05),
    "causal_vs_litgpt_same_precision": ("≥", 1.1),
    "causal_vs_llama_default": ("≥", 1.5),
    "generate_batch1_vs_transformers": ("≥", 1.5),
    "generate_batch8_vs_transformers": ("≥", 1.5),
    "choices_vs_lm_eval": ("≥", 1.5),
    "lora_vs_full": ("≥", 1.3),
    "lora_vs_full_tiny": ("≥", 1.3),
    "lora_vs_peft": ("≥", 1.2),
    "lora_packed_vs_peft": ("≥", 2.0),
    "within_vs_across": ("≥", 0.95),
    "lora_1p3b_peak_gib": ("≤", 6.0),
    "adapter_save_vs_allowed": ("≤", 1.0),
    "build_vs_tokenizer": ("≥", 0.7),
    "loading_vs_streaming": ("≥", 1.5),
    "loading_two_vs_streaming_two": ("≥", 1.5),
    "loading_s3_vs_streaming": ("≥", 1.0),
    "loading_vs_node": ("≥", 1.0),
    "loading_first_batch_gib": ("≤", 1.0),  # memory of a process that reads
    # Bandwidth over the disk's, and what a save costs training: one copy; a tenth is noise.
    "checkpoint_write_vs_dd": ("≥", 0.7),
    "checkpoint_read_vs_dd": ("≥", 0.7),
    "checkpoint_blocked_vs_copy": ("≤", 1.1),
    # Seconds over those of the store; and of a step.
    "restore_local_vs_s3": ("≤", 0.5),
    "local_save_vs_step": ("≤", 0.01),
    # Seconds from the kill of a rank to a new step, over torchrun's; share of a step.
    "restart_vs_torchrun_warm": ("≤", 0.7),
    "restart_vs_torchrun_cold": ("≤", 1.1),
    "watching_overhead": ("≤", 0.01),
    # Encoder time over ours, packed; seconds of a step over ours.
    "packed_vs_padded_images": ("≥", 1.5),
    "packed_vs_loop_images": ("≥", 3.0),
    "step_vs_llava": ("≥", 1.2),
    "packed_vs_llava": ("≥", 2.0),
    "media_wait_fraction": ("≤", 0.02),
    "decode_vs_reader": ("≥", 0.9),
    "balanced_vs_naive_data_ranks": ("≥", 1.2),
    "balanced_vs_naive_stages": ("≥", 1.2),
    # Step time over plain DDP's, and over what two stages with their bubble could reach.
    "zero3_vs_ddp": ("≤", 1.15),
    "two_stages_vs_ideal": ("≤", 1.15),
    # Step time over what FLOPs predict.
    "semi_causal_over_causal_fp32": ("≤", 1.10),
    "semi_causal_over_causal_bf16": ("≤", 1.15),
}
"""What we ask of ourselves."""

PREDICTED = "semi_causal_over_causal_flops"

ABOVE_PREDICTED = ("semi_causal_over_causal_fp32", "semi_causal_over_causal_bf16")

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
    "lora_vs_full": "step time, all weights / adapters of rank 16, medium size, bf16",
    "lora_vs_full_tiny": "the same at tiny size",
    "lora_vs_peft": "tokens/s with adapters, ours / transformers' with peft, exported model, bf16",
    "lora_vs_peft_fp32": "the same in fp32",
    "lora_packed_vs_peft": "the same on rows of tasks, ours packed, the peer's padded, bf16",
    "lora_packed_vs_peft_fp32": "the same in fp32",
    "within_vs_across": "tokens/s with adapters on packed rows, each alone / all together, bf16",
    "within_vs_across_fp32": "the same in fp32",
    "adapter_save_vs_allowed": "time that a save of adapters holds training up / 5 ms + 1.3 copies",
    "lora_1p3b_peak_gib": "GiB at most in two steps with adapters of 1.34 B + 368 M, bf16",
    "checkpoint_blocked_vs_copy": "time that a save holds training up / copy in memory",
    "checkpoint_write_vs_dd": "bandwidth, background write / dd with fsync",
    "checkpoint_write_vs_torch": "bandwidth, background write / torch.save with fsync",
    "checkpoint_write_vs_dcp": "bandwidth, background write / dcp.save",
    "checkpoint_blocked_vs_dcp": "time that a save holds training up / dcp.async_save",
    "checkpoint_read_vs_dd": "bandwidth, restore / dd, nothing cached",
    "checkpoint_read_vs_torch": "bandwidth, restore / torch.load, nothing cached",
    "checkpoint_read_vs_dcp": "bandwidth, restore / dcp.load, nothing cached",
    "restore_local_vs_s3": "time to restore, nodes' own disks / S3 on this machine, nothing cached",
    "restore_copies_vs_s3": "the same where one of two nodes is new and gets all from the other",
    "local_save_vs_step": "time that a save on the own disks holds training up / a step",
    "local_save_every_step": "step time, such a save at every step, its writing included / none",
    "restart_vs_torchrun_warm": "seconds from a rank's kill to a new step, keeper, warm / torchrun",
    "restart_vs_torchrun_cold": "the same where no ranks stand by",
    "watching_overhead": "heartbeats and the keeper's processor time / a step of 60 k parameters",
    "generate_batch1_vs_transformers": "tokens/s, ours / transformers' on our export, one prompt",
    "generate_batch8_vs_transformers": "the same, eight prompts at once",
    "choices_vs_lm_eval": "choices/s, four behind each context, ours / lm-eval's hf on our export",
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
    "packed_vs_padded_images": "encoder time, padded to the largest picture / packed, fp32",
    "packed_vs_loop_images": "encoder time, one picture after the other / packed, fp32",
    "step_vs_llava": "step time, transformers' LLaVA / ours, a picture in each sequence, fp32",
    "packed_vs_llava": "the same where rows vary, its padded / ours packed",
    "media_wait_fraction": "share of a step of make naming that waits for pictures",
    "decode_vs_reader": "pictures/s from files to pixels, ours / torchvision's",
    "balanced_vs_naive_data_ranks": "step time, pictures dealt as they come / by cost, two ranks",
    "balanced_vs_naive_stages": "the same on two stages",
    "zero3_vs_ddp": "step time, ZeRO-3 / torch DDP, two ranks, fp32",
    "two_stages_vs_ideal": "step time, two stages / half of the whole, bubble included, fp32",
    "two_halves_vs_two_stages": "step time, layers halved / stages balanced, fp32",
    "two_halves_vs_two_stages_predicted": "the same, as the cost model predicts it",
}
TWO_RANKS = "two_ranks_"
"""Begins the keys of a case that also stands without, on one rank."""

SAID = ("formula", "counted", "where_time_goes", "first_batch", "seconds", "seconds_first_round")
"""Settings that are shown."""


def asked(key: str, ratios: Mapping[str, float]) -> str:
    """What is asked of a ratio: green if it is met, red if not; nothing where nothing is asked."""
    if key not in BARS:
        return ""
    sign, bar = BARS[key]
    if key in ABOVE_PREDICTED:
        bar *= ratios[PREDICTED]
    met = ratios[key] >= bar if sign == "≥" else ratios[key] <= bar
    return f"[{'green' if met else 'red'}]{sign} {bar:.2f}[/]"


def show(console: Console, findings: Mapping[str, Findings]) -> None:
    """Two tables: each contestant, then the ratios with what is asked of them.

    Beside a ratio stands the same in processor time, to be trusted where others kept the machine
    busy.
    """
    contestants = Table(
        *("case", "contestant", "precision"),
        *(Column(heading, justify="right") for heading in ("parameters", "step, s", "tokens/s")),
        title="Medians",
        title_justify="left",
    )
    for case, found in findings.items():
        for index, (name, values) in enumerate(found.contestants.items()):
            contestants.add_row(
                "" if index else case,
                name,
                str(values["precision"]),
                f"{values['parameters']:,}",
                f"{values['step_seconds']:.3f}",
                f"{values['tokens_per_second']:,.0f}",
            )
    console.print(contestants)
    table = Table(
        "ratio",
        *(
            Column(heading, justify="right")
            for heading in ("median", "quartiles", "processor", "asked")
        ),
        title="Ratios",
        title_justify="left",
    )
    ratios = medians(findings.values())
    for found in findings.values():
        for key, value in found.ratios.items():
            low, high = value.lower_quartile, value.upper_quartile
            processor = found.processor_ratios.get(key)
            table.add_row(
                f"{key}\n[dim]{MEANINGS[key.removeprefix(TWO_RANKS)]}[/]",
                f"{value.median:.3f}",
                "" if low == high else f"{low:.3f}-{high:.3f}",
                "" if processor is None else f"{processor.median:.3f}",
                asked(key, ratios),
            )
    console.print(table)
    for case, found in findings.items():
        for key in SAID:
            if key in found.settings:
                console.print(f"{case} {key}: {found.settings[key]}", markup=False)
        for name, values in found.contestants.items():
            if "mfu" in values:
                console.print(
                    f"{case} {name}: MFU {values['mfu']:.1%}, counted "
                    f"{values['mfu_counted']:.1%}, {values['sequences']} sequences at a time"
                )


def medians(findings: Iterable[Findings]) -> dict[str, float]:
    """All ratios by key."""
    return {key: value.median for found in findings for key, value in found.ratios.items()}


def write(
    path: Path,
    findings: Mapping[str, Findings],
    *,
    failed: Mapping[str, str],
    plan: Plan,
    load: float,
    seconds: float,
) -> None:
    """Write `ratios`, `machine` with its load before, what cases rest on, and why some failed."""
    machine = {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": plan.threads,
        "bf16_in_hardware": multiplies_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name) if find_spec(name) else None
            for name in ("torch", "deepspeed", "transformers", "litgpt")
        },
        "load_before": load,
    }
    document = {
        "ratios": medians(findings.values()),
        "machine": machine,
        "plan": plan.name,
        "seconds_total": seconds,
        "failed": dict(failed),
        "cases": {case: {"case": case} | asdict(found) for case, found in findings.items()},
    }
    write_json(path, document)
