"""`python -m train A.yaml B.yaml key=value`: pretrain or finetune a model."""

import os

from parallel.allocator import let_segments_expand
from train.preemption import quiet_until_asked
from train.watch.heartbeat import Heartbeat

BEAT = Heartbeat.of_environment()

if __name__ == "__main__":
    quiet_until_asked()  # what is imported next takes seconds
    let_segments_expand(os.environ)

import argparse
import contextlib
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from model import backend
from model.loss import why_no_triton
from parallel.compiled import REMEDY, why_no_compiler
from parallel.launch import join, leave, own_device
from parallel.launcher import announced
from parallel.mesh import forget_groups
from parallel.zero.config import IN_FP8, why_unsupported
from train.asked import prompt_fault
from train.claim import check, stored_elsewhere
from train.config import RunConfig, batch_fault
from train.config_files import dump, load
from train.data.spans.at_random import RandomSpansConfig
from train.dry_run import dry_run
from train.errors import ConfigError, HardwareError, StorageError, UserError, explained, named, told
from train.exit_status import ExitStatus
from train.imported import import_rest
from train.loop import train
from train.precision import decided, guessed
from train.prepare import agreed, use_compile_cache
from train.storage.path import local_path
from train.tasks.task import load_tasks
from train.watch.streams import PATIENCE_SECONDS, Streams, lasting_streams

IMPORTED = time.perf_counter()

LOCAL = "checkpoint.local.directory"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, and do as they say."""
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("arguments", nargs="+", metavar="FILE.yaml|key=value")
    parser.add_argument("--print", action="store_true", help="show the resolved config and exit")
    parser.add_argument("--dry-run", action="store_true", help="build all, run one batch, report")
    # Launchers add it in either spelling; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(arguments)
    with lasting_streams(patience_seconds=PATIENCE_SECONDS) as streams:
        return run(options, streams)


def run(options: argparse.Namespace, streams: Streams) -> int:
    """Check, join the other ranks, train."""
    try:
        launched, config = announced(), load(RunConfig, options.arguments)
        ranks = launched.size
        if options.print and ranks == 1:  # to look at, a layout needs no launcher
            ranks = config.layout.model_ranks
        is_auto = config.precision == "auto"
        config = resolve(config, ranks=ranks)
        say_what_spans_miss(config)
        if config.precision in IN_FP8 and not torch.cuda.is_available():
            say(f"note: precision: {config.precision} is emulated on a CPU: right, and slow")
        if options.print:
            sys.stdout.write(dump(config))
            return streams.status()
        if not options.dry_run:
            check(config)
        use_compile_cache(config)
        say_what_the_head_lacks(config)
        if launched.remark is not None:
            sys.stderr.write(f"{launched.remark}\n")
        world = join(timeout_seconds=config.collective_timeout_seconds)
        if is_auto:
            config = with_decided_precision(config, ranks=ranks)
        if options.dry_run:
            code = dry_run(config, world)
        else:
            with contextlib.ExitStack() as held:
                code = train(
                    config, world, imported=IMPORTED, held=held, beat=BEAT, streams=streams
                )
        forget_groups()
        leave()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from the last checkpoint\n")
        code = abandon(ExitStatus.INTERRUPTED)
    except Exception as error:
        mendable = _mendable(error)
        BEAT.tell(mendable)
        if isinstance(mendable, UserError):
            complain(mendable)
            code = abandon(ExitStatus.MISTAKE)
        elif isinstance(mendable, HardwareError):
            sys.stderr.write(f"{told(mendable)}\n")
            code = abandon(ExitStatus.FAULT)
        else:
            traceback.print_exc()
            code = abandon(ExitStatus.FAULT)
    BEAT.end(code)
    return code


def _mendable(error: Exception) -> Exception:
    """An error as it is to be told; what the system refuses to a run is rarely the user's."""
    if isinstance(error, OSError | MemoryError) and not dist.is_initialized():
        sentence = None if isinstance(error, UserError) else explained(error)
        return error if sentence is None else UserError(sentence)
    return named(error)


def abandon(code: int) -> int:
    """End at once if others may be inside a collective: they are the launcher's to end."""
    BEAT.end(code)
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def resolve(config: RunConfig, *, ranks: int) -> RunConfig:
    """Settle what depends on the machine and on the number of ranks.

    Raises:
        ConfigError: the batch does not divide, or the machine cannot do what is asked.
    """
    if config.precision == "auto":
        config = config.model_copy(update={"precision": guessed(config)})
    assert config.precision != "auto"
    unsupported = why_unsupported(config.zero.stage, config.precision)
    uneven = batch_fault(config, ranks=ranks)
    marks = prompt_fault(config.samples.prompts, config.model)
    no_compiler = why_no_compiler(own_device()) if config.model.compile == "blocks" else None
    absent = backend.fault(
        config.model.attention,
        device=own_device(),
        dtype=torch.float32 if config.precision == "fp32" else torch.bfloat16,
        head_width=config.model.decoder.channels,
    )
    wants_triton = config.model.decoder.loss_kernel == "triton"
    lacking = why_no_triton(own_device()) if wants_triton else None
    rules = [
        # Not a check of the configuration: what earlier versions stored must stay readable.
        *((fault, fault) for fault in _local_faults(config)),
        *((fault, fault) for fault in _task_faults(config)),
        (uneven, uneven),
        (marks, f"samples.prompts: {marks}"),
        (unsupported, f"precision: {unsupported}"),
        (absent, f"model.attention: {absent}"),
        *(
            (fault, fault)
            for fault in config.zero.faults(config.precision, states=config.optim.precision)
        ),
        (
            no_compiler,
            f"model.compile: blocks cannot be compiled here, {no_compiler}: install it, or "
            f"{REMEDY}",
        ),
        (
            lacking,
            f"model.decoder.loss_kernel: triton does not work here ({lacking}): set auto or torch",
        ),
        (
            config.optim.precision == "bf16" and config.precision == "fp32",
            "optim.precision: bf16 is for runs whose parameters are bf16 too: set precision=bf16, "
            "or leave optim.precision out",
        ),
        (
            config.zero.offload_directory is not None and torch.cuda.is_available(),
            "zero.offload_directory: only training on CPUs can keep its optimiser in files: leave "
            "it out, and spread the run over more GPUs if it does not fit",
        ),
    ]
    faults = [str(message) for is_broken, message in rules if is_broken]
    if faults:
        raise ConfigError("\n".join(faults))
    return config


def with_decided_precision(config: RunConfig, *, ranks: int) -> RunConfig:
    """The same in the precision of all ranks; every rank must call it.

    Raises:
        ConfigError: some machine cannot do it.
    """
    found = decided(config)
    if found.remark is not None:
        say(f"note: {found.remark}")
    if found.is_as_guessed:
        return config
    settled = config.model_copy(update={"precision": found.precision})
    return agreed(lambda: resolve(settled, ranks=ranks))


def _local_faults(config: RunConfig) -> Iterator[str]:
    """Directories that have to lie on this host, and do not."""
    named = {
        "run_directory": config.run_directory,
        "zero.offload_directory": config.zero.offload_directory,
        "storage.cache": config.storage.cache,
        "compile_cache": config.compile_cache,
        LOCAL: None if config.checkpoint.local is None else config.checkpoint.local.directory,
    }
    found: dict[str, Path] = {}
    for key, text in named.items():
        try:
            if text is not None:
                found[key] = Path(os.path.realpath(local_path(text)))
        except StorageError as error:
            yield f"{key}: {error}"
    if (fault := stored_elsewhere(config)) is not None:
        yield fault
    elif config.checkpoint.directory is not None:
        with contextlib.suppress(StorageError):  # told where it is used
            place = local_path(config.checkpoint.directory)
            found["checkpoint.directory"] = Path(os.path.realpath(place))
    for key in ("run_directory", "checkpoint.directory"):
        if LOCAL in found and key in found and found[LOCAL].is_relative_to(found[key]):
            yield (
                f"{LOCAL}: {named[LOCAL]} lies in {key}, which all nodes share: name a directory "
                "on a disk that each node has to itself"
            )
            return


def _task_faults(config: RunConfig) -> list[str]:
    """Tasks to be asked in training that are none."""
    if config.evaluation is None:
        return []
    try:
        load_tasks(config.evaluation.tasks)
    except ConfigError as error:
        return [f"evaluation.tasks: {line}" for line in str(error).splitlines()]
    return []


def complain(error: UserError) -> None:
    """Print the message alone."""
    if isinstance(error, ConfigError):
        say(told(error))
    else:
        sys.stderr.write(f"{told(error)}\n")


def say_what_spans_miss(config: RunConfig) -> None:
    """Note each ratio of random spans that their lengths do not reach, on the first rank."""
    if os.environ.get("RANK", "0") != "0":
        return
    for modality, kind in config.spans.items():
        if isinstance(kind, RandomSpansConfig):
            missed = kind.shortfall(config.data.sequence_tokens)
            if missed is not None:
                say(f"note: spans.{modality}.{missed}")


def say_what_the_head_lacks(config: RunConfig) -> None:
    """Note on the first rank that a GPU has no kernel of ours for the loss, and why."""
    device = own_device()
    if device.type == "cuda" and config.model.decoder.loss_kernel == "auto":
        lacking = why_no_triton(device)
        if lacking is not None:
            say(f"note: model.decoder.loss_kernel: torch, for triton does not work here: {lacking}")


def say(text: str) -> None:
    """Print what all ranks know, once."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    BEAT.wait_until_needed(import_rest)
    sys.exit(main())
