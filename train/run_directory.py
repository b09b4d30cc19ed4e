"""The directory of a run: the one place that names what lies in it."""

import contextlib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from train.checkpoint.directory import CHECKPOINTS_NAME, CONFIG_NAME
from train.data.tokens import TOKENIZER_BYTES_AT_MOST
from train.errors import UserError
from train.storage.lease import LEASE_PREFIXES
from train.storage.place import Place
from train.storage.record import content_of

TOKENIZER = "tokenizer.json"
ATTEMPTS_NAME = "attempts.jsonl"


class RunDirectory:
    """What a run leaves, by name.

    Attributes:
        path: the directory.
        config: the resolved configuration; with it the directory is this run's.
        choice: what `tools.pretrain` chose, before the run begins.
        checkpoints: where the configuration names no other place.
        metrics: every record of the run.
        samples: the model's own words, as text.
        hardware: what each node's did, a file for each.
        ledger: what each rank has read, a file for each start and rank.
        left_out: steps that the run leaves out since their numbers were wrong.
        local: under which name its checkpoints are on its nodes' own disks.
        tokenizer: a copy of the corpus's.
        report: for a browser.
        summary: the numbers of a complete run, for programs.
        scores: answers, predictions and pages of tasks, see `train.scores`.
        profile: what a profiler has seen of chosen steps, a directory for each.
        adapter: a LoRA run's adapters in peft's file format.
        attempts: how each start ended, see `tools.keep`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG_NAME
        self.choice = path / "pretrain.json"
        self.checkpoints = path / CHECKPOINTS_NAME
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.txt"
        self.hardware = path / "hardware"
        self.ledger = path / "ledger"
        self.left_out = path / "left_out.json"
        self.local = path / "local.json"
        self.tokenizer = path / TOKENIZER
        self.report = path / "report.html"
        self.summary = path / "summary.json"
        self.scores = path / "scores"
        self.profile = path / "profile"
        self.adapter = path / "adapter"
        self.attempts = path / ATTEMPTS_NAME

    def __str__(self) -> str:
        return str(self.path)

    @property
    def mirrored(self) -> list[Path]:
        """What of it another cluster has to have; checkpoints lie in the mirror alone."""
        return [
            *(self.config, self.choice, self.metrics, self.samples, self.ledger, self.left_out),
            *(self.tokenizer, self.report, self.summary, self.scores, self.adapter, self.attempts),
        ]

    @property
    def holds_other_files(self) -> bool:
        """Whether there is anything that neither a run nor what starts it has left."""
        choice, draft = self.choice.name, f".{self.config.name}"
        ours = ("slurm-", *LEASE_PREFIXES, draft, choice, f".{choice}")
        return self.path.is_dir() and any(
            not entry.name.startswith(ours) for entry in self.path.iterdir()
        )


def kept_tokenizer(checkpoint: Place, state: Mapping[str, Any]) -> Place | None:
    """The tokenizer kept in a checkpoint, as `tools.merge` does, or by its run; None without.

    Args:
        checkpoint: it may lie elsewhere than its run.
        state: of the checkpoint.
    """
    places = [checkpoint, checkpoint.parent.parent]
    with contextlib.suppress(UserError):  # a place of another host
        places.append(Place.parse(str(state["config"].get("run_directory", checkpoint))))
    known = state.get("tokenizer_sha256", "unknown")
    for tokenizer in (place / TOKENIZER for place in places):
        # A file of this name beside a directory of checkpoints may be another run's.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            content = content_of(tokenizer, limit_bytes=TOKENIZER_BYTES_AT_MOST)
            if known in ("unknown", sha256(content).hexdigest()):
                return tokenizer
    return None
