"""The directory of a run: the one place that names what lies in it."""

from pathlib import Path

from train.checkpoint.directory import CHECKPOINTS_NAME
from train.storage.lease import LEASE_PREFIX
from train.storage.place import Place

TOKENIZER = "tokenizer.json"


class RunDirectory:
    """What a run leaves, by name.

    Attributes:
        path: the directory.
        config: the resolved configuration; with it the directory is this run's.
        choice: what `tools.pretrain` chose, before the run begins.
        checkpoints: where the configuration names no other place.
        metrics: every record of the run.
        samples: the model's own words, as text.
        ledger: what each rank has read, a file for each start and rank.
        tokenizer: a copy of the corpus's.
        report: for a browser.
        summary: the numbers of a complete run, for programs.
        adapter: a LoRA run's adapters in peft's file format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.choice = path / "pretrain.json"
        self.checkpoints = path / CHECKPOINTS_NAME
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.txt"
        self.ledger = path / "ledger"
        self.tokenizer = path / TOKENIZER
        self.report = path / "report.html"
        self.summary = path / "summary.json"
        self.adapter = path / "adapter"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def holds_other_files(self) -> bool:
        """Whether there is anything that neither a run nor what starts it has left."""
        choice, draft = self.choice.name, f".{self.config.name}"
        ours = ("slurm-", LEASE_PREFIX, draft, choice, f".{choice}")
        return self.path.is_dir() and any(
            not entry.name.startswith(ours) for entry in self.path.iterdir()
        )


def kept_tokenizer(checkpoint: Place) -> Place | None:
    """The tokenizer kept in a checkpoint, as `tools.merge` does, or by its run; None without."""
    kept = (place / TOKENIZER for place in (checkpoint, checkpoint.parent.parent))
    return next((tokenizer for tokenizer in kept if tokenizer.exists()), None)
