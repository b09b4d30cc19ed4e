"""The configuration of a run: composes the parts' classes and cross-checks them."""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from model.adapters.kinds import BottleneckConfig, LoraConfig
from model.adapters.patterns import Pattern
from model.adapters.tuning import Tuning
from model.config import Config, PathText
from model.encoders.protocol import ItemEncoderKind, SpanLoad
from model.objectives.kinds import ObjectiveConfig
from model.semicausal import ModelConfig
from parallel.costs import usual_load
from parallel.mesh import LayoutConfig, rank_fault
from parallel.pipeline import microbatch_fault
from parallel.zero.config import RunPrecision, ZeroConfig
from train.checkpoint.directory import CHECKPOINTS_NAME
from train.cluster import ClusterConfig, Store, in_the_store
from train.cross_checks import faults_of
from train.data.mixture import SourceConfig
from train.data.spans.kinds import SpansConfig
from train.data.spans.protocol import SpanCapacity
from train.errors import ConfigError
from train.keep import KeepConfig
from train.optim import OptimConfig
from train.run_directory import RunDirectory
from train.scores.config import EvaluationConfig
from train.sections import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    Modality,
    Name,
    SamplesConfig,
    Steps,
    ValidationConfig,
)
from train.storage.config import MOST_SECONDS, StorageConfig
from train.storage.path import local_path
from train.storage.place import Place
from train.watch.config import ProfileConfig, WatchConfig
from train.wrong_numbers.config import NotFiniteConfig, SpikesConfig

USUAL_SPAN_SHARE = 0.25
"""The paper's ratio, where the samples decide."""


Precision = Literal["auto", RunPrecision]
"""As configured."""


class RunConfig(Config):
    """Everything that defines a run."""

    name: Name
    run_directory: PathText
    """Holds metrics, checkpoints and the report; running again continues there."""
    run_mirror: Store | None = None
    """`s3://bucket/path` that holds all of it besides, and the checkpoints alone: where the same
    run is started on another cluster, which shares nothing but the store, it goes on from there."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    steps: Steps
    """Optimiser steps."""
    precision: Precision = "auto"
    """Of parameters and activations; of masters, moments and gradient sums, see `optim.precision`.
    `auto` is bf16 where the hardware of all ranks multiplies it, else fp32, for as long as the run
    goes on. `fp8` stores all as bf16 does, and
    multiplies qkv, up and down of the decoder's blocks but the first and the last in fp8;
    `fp8_with_head` the head, too."""
    model: ModelConfig
    objective: ObjectiveConfig | None = None
    """What one encoder trains for alone, so that other runs can begin with it
    (`model.encoders.*.encoder.init_from`): the decoder is then not built, nor are other encoders.
    Default: the decoder predicts tokens."""
    spans: dict[Modality, SpansConfig] = Field(default_factory=dict)
    """How the spans of each modality are chosen."""
    data: DataConfig
    storage: StorageConfig = Field(default_factory=StorageConfig)
    batch: BatchConfig
    optim: OptimConfig
    layout: LayoutConfig = Field(default_factory=LayoutConfig)
    zero: ZeroConfig = Field(default_factory=ZeroConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    samples: SamplesConfig = Field(default_factory=SamplesConfig)
    evaluation: EvaluationConfig | None = None
    """Tasks that the model is asked while it trains."""
    watch: WatchConfig = Field(default_factory=WatchConfig)
    profile: ProfileConfig | None = None
    """Steps whose time is looked at closely."""
    not_finite: NotFiniteConfig = Field(default_factory=NotFiniteConfig)
    """What is done about steps whose loss or gradient is NaN or infinite."""
    spikes: SpikesConfig | None = None
    """What is done about spikes of loss or gradient norm. Default: nothing."""
    left_out: list[Steps | Annotated[list[Steps], Field(min_length=2, max_length=2)]] = Field(
        default_factory=list
    )
    """Steps that read nothing and update nothing: numbers, or [first, last]. The run adds those
    whose numbers it finds wrong."""
    init_from: PathText | None = None
    """Checkpoint that supplies all first weights, as for finetuning."""
    trainable: list[Pattern] | None = Field(default=None, min_length=1)
    """What trains, by patterns over the names of parameters (`model/adapters/patterns.py`):
    `[encoders, connectors]` fixes the decoder, `["*.bias"]` is BitFit, `["blocks.{-2..-1}"]` the
    last two blocks of decoder and encoders. Default: everything; with adapters, they alone."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and keep the rest fixed; needs `init_from`."""
    bottleneck: BottleneckConfig | None = None
    """Train narrow nets behind sublayers and keep the rest fixed; needs `init_from`."""
    compile_cache: PathText | None = None
    """Directory of this host in which `model.compile` keeps what it has compiled, for later starts
    and other ranks and runs. Default: one of this user's, in the system's temporary directory."""
    collective_timeout_seconds: Annotated[float, Field(ge=1, le=MOST_SECONDS)] = 600.0
    """How long a rank may wait for the slowest one."""
    cluster: ClusterConfig | None = Field(default=None, exclude=True)
    """What the run's job asks of Slurm; stored with no run."""
    keep: KeepConfig = Field(default_factory=KeepConfig, exclude=True)
    """What is done to keep the run going; stored with no run."""

    _in_the_store = model_validator(mode="before")(in_the_store)

    @model_validator(mode="after")
    def _cross_check(self) -> "RunConfig":
        if faults := faults_of(self):
            raise ValueError("\n".join(faults))
        return self

    @property
    def ranges_left_out(self) -> list[tuple[int, int]]:
        """First and last of the steps that `left_out` names."""
        pairs = ([each, each] if isinstance(each, int) else each for each in self.left_out)
        return [(first, last) for first, last in pairs]

    @property
    def steps_left_out(self) -> set[int]:
        """Those that `left_out` names."""
        return {step for first, last in self.ranges_left_out for step in range(first, last + 1)}

    @property
    def directory(self) -> RunDirectory:
        """What the run leaves, by name."""
        return RunDirectory(local_path(self.run_directory))

    @property
    def mirror(self) -> Place | None:
        """Where `run_mirror` is, if there is to be one.

        Raises:
            StorageError: it is no place of a store.
        """
        return None if self.run_mirror is None else Place.parse(self.run_mirror, self.storage)

    def checkpoints_of(self, directory: RunDirectory) -> Place:
        """Where the checkpoints of the run in a directory lie.

        Raises:
            StorageError: they cannot lie where the configuration says.
        """
        if self.checkpoint.directory is not None:
            return Place.parse(self.checkpoint.directory, self.storage)
        mirror = self.mirror
        return Place.of(directory.checkpoints) if mirror is None else mirror / CHECKPOINTS_NAME

    @property
    def tuning(self) -> Tuning:
        """What of the model is trained."""
        return Tuning(trainable=self.trainable, lora=self.lora, bottleneck=self.bottleneck)

    @property
    def schedule_steps(self) -> int:
        """Steps over which the learning rate falls."""
        return self.optim.schedule_steps or self.steps

    def on_corpus(self, corpus: str | None) -> Self:
        """The same, but reading one corpus in place of its sources; unchanged for None.

        Raises:
            ConfigError: nothing can have such a name.
        """
        if corpus is None:
            return self
        try:
            SourceConfig(corpus=corpus)
        except ValidationError:
            raise ConfigError(f"{corpus!r} cannot be the name of a corpus: name another") from None
        data = self.data.model_copy(update={"corpus": corpus, "sources": {}})
        return self.model_copy(update={"data": data})

    @property
    def built_model(self) -> ModelConfig:
        """The model without the encoders that never get a span: at ratio 0 it is exactly a GPT.

        Of one that trains alone, no other encoder.
        """
        alone = self.trains_alone
        encoders = {
            modality: part
            for modality, part in self.model.encoders.items()
            if not self.spans[modality].is_idle and alone in (None, modality)
        }
        return self.model.model_copy(update={"encoders": encoders})

    @property
    def trains_alone(self) -> str | None:
        """Modality of the encoder that trains without the decoder, if one does."""
        if self.objective is None:
            return None
        return self.objective.encoder or next(iter(self.model.encoders), None)

    @property
    def micro_sequences(self) -> int:
        """Sequences of a microbatch, once `auto` is settled (`train.microbatch`)."""
        assert self.batch.micro_sequences != "auto", "settled when the run is prepared"
        return self.batch.micro_sequences

    def span_capacity(self, modality: str) -> SpanCapacity:
        """Static room for spans of a modality in one sequence."""
        S = self.data.sequence_tokens
        given = self.data.span_capacity.get(modality)
        tokens, spans = (
            self.spans[modality].room(S) if given is None else (given.tokens, given.spans)
        )
        part = self.model.encoders[modality]
        return SpanCapacity(
            tokens=tokens,
            spans=spans,
            longest_tokens=part.longest_span,
            item_slots=part.connector.item_slots,
            prefix_tokens=self.spans[modality].prefix_tokens,
        )

    def span_load(self, modality: str) -> SpanLoad:
        """Spans of one sequence on average, as far as the configuration tells."""
        S = self.data.sequence_tokens
        load, prefix = self.spans[modality].load(S), self.spans[modality].prefix_tokens
        given = self.data.span_capacity.get(modality)
        if load is None and given is not None:  # samples bring their own spans, at most these
            part = self.model.encoders[modality]
            if (item_slots := part.connector.item_slots) is not None:
                return SpanLoad.of_items(
                    slots=given.tokens,
                    spans=given.spans,
                    item_slots=item_slots,
                    longest=part.encoder.longest_span,
                )
            load = SpanLoad(
                vectors=given.tokens, spans=given.spans, longest=given.tokens / given.spans
            )
        if load is None:
            model = self.built_model
            usual = usual_load(model, sequences=1, sequence_tokens=S, span_share=USUAL_SPAN_SHARE)
            load = usual.spans[modality]
        if prefix:
            more = load.spans * prefix / 2
            load = replace(load, vectors=load.vectors + more, longest=load.longest + prefix)
        return load

    @property
    def span_share(self) -> float:
        """Share of the slots in spans, as far as the configuration tells."""
        slots = sum(self.span_load(modality).slots for modality in self.spans)
        return min(1.0, slots / self.data.sequence_tokens)

    @property
    def reads_items(self) -> bool:
        """Whether there is an encoder of pictures, sounds or videos."""
        parts = self.built_model.encoders.values()
        return any(isinstance(part.encoder, ItemEncoderKind) for part in parts)

    def identity(self) -> dict[str, Any]:
        """What decides a run's numbers; the rest (layout, paths, watching) may change on resume."""
        kept = {
            "seed", "steps", "precision", "model", "spans", "optim", "init_from", "trainable",
            "lora", "bottleneck",
        }  # fmt: skip
        identity = self.model_dump(mode="json", include=kept)
        identity["optim"]["schedule_steps"] = self.schedule_steps
        if self.objective is not None:
            identity["objective"] = self.objective.model_dump(mode="json")
        # Matters of memory and speed: the sums are the same but for their rounding.
        for key in ("loss_chunk_tokens", "loss_kernel"):
            del identity["model"]["decoder"][key]
        del identity["model"]["compile"]
        del identity["model"]["attention"]
        identity["batch"] = {"sequences": self.batch.sequences}
        identity["data"] = {
            "sequence_tokens": self.data.sequence_tokens,
            "shuffle_window": self.data.shuffle_window,
            "span_choices": self.data.span_choices,
            # Where they lie may change; checkpoints know what was in there.
            "sources": {
                name: source.model_dump(mode="json", exclude={"corpus"})
                for name, source in self.data.mixed.items()
            },
            "span_capacity": {
                modality: [capacity.tokens, capacity.spans]
                for modality in self.built_model.encoders
                if self.spans[modality].is_stored
                for capacity in [self.span_capacity(modality)]
            },
            "attend": self.data.attend,
            "pack": self.data.pack,
        }
        if self.reads_items:
            identity["data"]["balance"] = self.data.balance
        return identity


def batch_fault(config: RunConfig, *, ranks: int) -> str | None:
    """Why so many ranks cannot share the global batch evenly, if they cannot."""
    layout, batch = config.layout, config.batch
    if (fault := rank_fault(layout, ranks=ranks)) is not None:
        return fault
    ranks //= layout.model_ranks
    is_auto = batch.micro_sequences == "auto"
    share = ranks * (1 if batch.micro_sequences == "auto" else batch.micro_sequences)
    if batch.sequences % share:
        near = max(1, round(batch.sequences / share)) * share
        times = "" if is_auto else f" x batch.micro_sequences {batch.micro_sequences}"
        return (
            f"batch.sequences: {batch.sequences} does not divide into {ranks} data rank(s)"
            f"{times}; the nearest that does is {near}"
        )
    num_microbatches = batch.sequences // share
    return microbatch_fault(num_microbatches, pipeline=layout.pipeline, chunks=layout.chunks)
