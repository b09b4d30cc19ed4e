"""`python -m tools.pretrain`: the first run, from packages to a trained model, on this machine.

Builds the corpus unless there is one at `data.corpus` (a directory or `s3://bucket/path`), trains
`configs/experiment/first_light.yaml` on two ranks under ZeRO-3 through the deepspeed launcher, lets
the model speak, and writes the numbers to `out/pretrain.json`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from train.config import RunConfig
from train.config_files import load
from train.data.store.shards import ShardStore
from train.errors import DataError, UserError
from train.run_directory import SUMMARY
from train.watch.metrics import FILE_NAME, read_metrics

EXPERIMENT = "configs/experiment/first_light.yaml"
RANKS = 2


def main(arguments: list[str] | None = None) -> int:
    """Build, train, report; the exit status of the first command that fails."""
    parser = argparse.ArgumentParser(prog="python -m tools.pretrain", description=__doc__)
    parser.add_argument("--started", type=float, default=time.time(), help="Unix seconds")
    parser.add_argument("--out", type=Path, default=Path("out/pretrain.json"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    console = Console()
    try:
        config = load(RunConfig, [EXPERIMENT, *options.overrides])
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not config.data.sources and not is_built(config):
        console.rule("corpus")
        if code := build_corpus(config):
            return code
    console.rule("training")
    if code := launch([EXPERIMENT, *options.overrides], ranks=RANKS):
        return code
    console.rule("result")
    directory = Path(config.run_directory)
    summary = json.loads((directory / SUMMARY).read_text())
    was_complete = (directory / SUMMARY).stat().st_mtime < options.started
    if was_complete and options.out.exists():
        # Nothing was trained now: the numbers of the time it was stay.
        summary = json.loads(options.out.read_text())
    else:
        summary["seconds_total"] = time.time() - options.started
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(summary, indent=2) + "\n")
    show(console, summary, directory)
    return 0


def is_built(config: RunConfig) -> bool:
    """Whether a corpus is where the configuration says, built by whatever."""
    assert config.data.corpus is not None, "checked with the configuration"
    try:
        ShardStore(f"{config.data.corpus.rstrip('/')}/train", storage=config.storage)
    except DataError:
        return False  # and if it cannot be reached, building says so
    return True


def build_corpus(config: RunConfig) -> int:
    """Build the corpus that a configuration asks for."""
    command = [
        *(sys.executable, "-m", "tools.corpus", "build", str(config.data.corpus)),
        *("--vocabulary", str(config.model.decoder.vocabulary)),
        *("--sequence-tokens", str(config.data.sequence_tokens)),
    ]
    return subprocess.run(command).returncode


def launch(arguments: list[str], *, ranks: int) -> int:
    """Train on `ranks` ranks of this machine through the deepspeed launcher."""
    environment = dict(os.environ)
    if torch.cuda.is_available():
        ranks = min(ranks, torch.cuda.device_count())
    else:
        environment.setdefault("DS_ACCELERATOR", "cpu")
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner"),
        *("--num_gpus", str(ranks), "--master_port", str(free_port()), "--log_level", "error"),
        *("--module", "train", *arguments),
    ]
    return subprocess.run(command, env=environment).returncode


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def show(console: Console, summary: dict[str, float], directory: Path) -> None:
    """Print what was learnt, and where things are."""
    first, last = summary["validation_loss_first"], summary["validation_loss_last"]
    unigram = summary["unigram_entropy"]
    table = Table("what", "value", title_justify="left")
    table.add_row("validation loss before any step", f"{first:.3f} nats")
    table.add_row("validation loss at the end", f"{last:.3f} nats")
    table.add_row("unigram entropy, same tokens", f"{unigram:.3f} nats")
    table.add_row("below the unigram entropy by", f"{unigram - last:.3f} nats")
    table.add_row("tokens per second", f"{summary['tokens_per_second']:,.0f}")
    table.add_row("waiting for data", f"{summary['data_wait_fraction']:.2%} of the time")
    table.add_row("seconds training; this command in all", _seconds(summary))
    table.add_row("checkpoint", str(summary["checkpoint"]))
    table.add_row("report (open in a browser)", str(summary["report"]))
    console.print(table)
    for sample in read_metrics(directory / FILE_NAME).samples[-2:]:
        console.print(f"{sample.prompt} ▸{sample.text}", markup=False, highlight=False)
    console.print(f"\nGo on: python -m tools.generate {directory} --prompt '...'", markup=False)


def _seconds(summary: dict[str, float]) -> str:
    return f"{summary['seconds_training']:.0f}; {summary['seconds_total']:.0f}"


if __name__ == "__main__":
    sys.exit(main())
