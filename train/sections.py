"""Sections of a run's configuration that no part of its own describes: batch, data, checkpoints."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from model.config import Config, PathText, Tokens
from train.checkpoint.directory import Retention
from train.checkpoint.local.config import LocalConfig
from train.data.collate import Attend
from train.data.mixture import SourceConfig
from train.data.pack import Pack
from train.data.spans.scoring import Unscored
from train.optim import MOST_STEPS

Positive = Annotated[int, Field(ge=1, le=10**12)]
Sequences = Annotated[int, Field(ge=1, le=2**20)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f]{1,128}$")]
"""A line that can head a report, and that W&B takes."""
Modality = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class BatchConfig(Config):
    """How many sequences make a step, however many ranks share them."""

    sequences: Sequences
    """Sequences in a global batch."""
    micro_sequences: Sequences | Literal["auto"] = "auto"
    """Sequences that one rank computes at a time. `auto` on GPUs: the most that fit, as far as more
    still gain something; on CPUs as many as make 4,096 slots."""
    try_first: bool | None = None
    """Make a step without an update before the first, which shows whether a microbatch fits.
    Default: on GPUs alone."""


class SpanCapacityConfig(Config):
    """Static room for spans in one sequence."""

    tokens: Tokens
    """Span tokens."""
    spans: Tokens
    """Spans; each costs the encoder one start token."""


class DataConfig(Config):
    """Where samples come from."""

    corpus: PathText | None = None
    """Directory or `s3://bucket/path` that `tools.corpus` wrote."""
    sources: dict[Name, SourceConfig] = Field(default_factory=dict)
    """Several corpora by name instead of one, each with its share of the sequences."""
    sequence_tokens: Annotated[Tokens, Field(ge=2)]
    """Slots of a sequence."""
    shuffle_window: Positive = 65_536
    """Samples shuffled among each other, after the shards have been shuffled; documents packed
    together."""
    span_choices: Positive = 1
    """Choices of spans with which a step holds each sequence."""
    balance: bool = True
    """Order the sequences of a step by what their pictures, sounds and videos cost the encoders, so
    that ranks and microbatches have equal work; a step holds the same sequences either way."""
    ledger_mib: Annotated[float, Field(gt=0, le=1e6)] = 64.0
    """Size from which a rank's ledger of what it read holds digests only."""
    unscored: Unscored = "stop"
    """What a step does whose batch has no scored token: `stop` ends the run and names the
    documents, `pass_over` goes on to the next step without an update."""
    unscored_ids: list[str] = Field(default_factory=list)
    """Ids of documents that break reading or the loss: padding is read in their place, and nothing
    of them is scored."""
    pack: Pack = "fit"
    """`fit` lays documents into sequences, whole where they fit; `stream` cuts all documents, one
    after the other, every `sequence_tokens` tokens, as in the paper."""
    attend: Attend = "across"
    """`across` the documents of a sequence, as in the paper, or `within` each, as in a sequence of
    its own; for corpora of documents, whose packing then gives each its own `<s>`."""
    span_capacity: dict[str, SpanCapacityConfig] = Field(default_factory=dict)
    """By modality; default: a quarter more than the ratio asks for."""

    @field_validator("sources", mode="before")
    @classmethod
    def _without_dropped(cls, sources: Any) -> Any:
        # `data.sources.NAME=null` takes out a source that a file put in.
        if not isinstance(sources, dict):
            return sources
        return {name: source for name, source in sources.items() if source is not None}

    @property
    def mixed(self) -> dict[str, SourceConfig]:
        """All sources by name; a single corpus is a mixture of one."""
        if self.sources:
            return self.sources
        assert self.corpus is not None, "refused with the configuration"
        return {"corpus": SourceConfig(corpus=self.corpus)}


class CheckpointConfig(Config):
    """When to save, and where to."""

    every_steps: Positive = 500
    """The last step and a preemption save as well."""
    keep: Positive = 2
    """Newest checkpoints that stay."""
    keep_every_steps: Positive | None = None
    """Checkpoints of a multiple of this many steps stay as well."""
    asynchronous: bool = True
    """Write while training goes on, from a copy of each rank's share in host memory; without,
    training waits for the write and no copy is made."""
    directory: PathText | None = None
    """Default: checkpoints/ in the run directory. In a store they are `run_mirror`'s."""
    local: LocalConfig | None = None
    """Checkpoints on the nodes' own disks besides, from which a run goes on sooner. Default: none.
    With them, a store or disk that fails is an alarm and no end of the run, as long as the last
    step is saved in the other place."""

    @property
    def retention(self) -> Retention:
        """Which checkpoints stay."""
        return Retention(keep=self.keep, keep_every_steps=self.keep_every_steps)

    def is_local(self, step: int) -> bool:
        """Whether a step is saved on the nodes' own disks."""
        return self.local is not None and step % self.local.every_steps == 0


class ValidationConfig(Config):
    """When to look at the validation split."""

    every_steps: Positive = 500
    """Before the first step and after the last it is looked at as well."""
    sequences: Positive = 64
    """The first this many of the split; the last validation of a run is of all of it besides."""


class SamplesConfig(Config):
    """What the report shows of the model's own words."""

    prompts: list[str] = Field(default_factory=list)
    """A part between [[ and ]] is read by the encoder, `\\[[` is as it stands (`train/prompt.py`).
    Written at each validation."""
    max_new_tokens: Tokens = 48
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
