"""The configuration of a run: composes the parts' classes and cross-checks them."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from model.adapters.kinds import BottleneckConfig, LoraConfig
from model.adapters.patterns import Pattern
from model.adapters.tuning import Names, Tuning
from model.config import Config, PathText, Tokens
from model.encoders.protocol import SpanLoad
from model.fp8 import DIVISOR
from model.semicausal import ModelConfig
from parallel.costs import usual_load
from parallel.mesh import LayoutConfig, layout_faults, rank_fault
from parallel.pipeline import microbatch_fault
from parallel.zero.config import IN_FP8, ZeroConfig
from train.checkpoint.directory import CHECKPOINTS_NAME, Retention
from train.checkpoint.local.config import LocalConfig
from train.cluster import ClusterConfig, Store, in_the_store
from train.data.collate import Attend
from train.data.mixture import SourceConfig
from train.data.pack import Pack
from train.data.spans.kinds import SpansConfig
from train.data.spans.protocol import SpanCapacity
from train.data.spans.scoring import Unscored
from train.errors import ConfigError
from train.keep import KeepConfig
from train.optim import MOST_STEPS, OptimConfig
from train.run_directory import RunDirectory
from train.scores.config import EvaluationConfig
from train.storage.config import MOST_SECONDS, StorageConfig
from train.storage.path import local_path
from train.storage.place import Place
from train.watch.config import ProfileConfig, WatchConfig
from train.wrong_numbers.config import NotFiniteConfig, SpikesConfig

Positive = Annotated[int, Field(ge=1, le=10**12)]
Sequences = Annotated[int, Field(ge=1, le=2**20)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f]{1,128}$")]
"""A line that can head a report, and that W&B takes."""
Modality = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]

USUAL_SPAN_SHARE = 0.25
"""The paper's ratio, where the samples decide."""


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
    """Directory or `s3://bucket/path`; default checkpoints/ in the run directory."""
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
    precision: Literal["auto", "fp32", "bf16", "fp8", "fp8_with_head"] = "auto"
    """Of parameters and activations; of masters, moments and gradient sums, see `optim.precision`.
    `auto` is bf16 where the hardware multiplies it, else fp32. `fp8` stores all as bf16 does, and
    multiplies qkv, up and down of the decoder's blocks but the first and the last in fp8;
    `fp8_with_head` the head, too."""
    model: ModelConfig
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
        if faults := _faults(self):
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
        """The model without the encoders that never get a span: at ratio 0 it is exactly a GPT."""
        encoders = {
            modality: part
            for modality, part in self.model.encoders.items()
            if not self.spans[modality].is_idle
        }
        return self.model.model_copy(update={"encoders": encoders})

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
        longest = self.model.encoders[modality].encoder.longest_span
        return SpanCapacity(tokens=tokens, spans=spans, longest_tokens=longest)

    def span_load(self, modality: str) -> SpanLoad:
        """Spans of one sequence on average, as far as the configuration tells."""
        S = self.data.sequence_tokens
        load = self.spans[modality].load(S)
        given = self.data.span_capacity.get(modality)
        if load is None and given is not None:  # samples bring their own spans, at most these
            load = SpanLoad(
                vectors=given.tokens, spans=given.spans, longest=given.tokens / given.spans
            )
        if load is None:
            model = self.built_model
            usual = usual_load(model, sequences=1, sequence_tokens=S, span_share=USUAL_SPAN_SHARE)
            load = usual.spans[modality]
        return load

    @property
    def span_share(self) -> float:
        """Share of the slots in spans, as far as the configuration tells."""
        vectors = sum(self.span_load(modality).vectors for modality in self.spans)
        return min(1.0, vectors / self.data.sequence_tokens)

    def identity(self) -> dict[str, Any]:
        """What decides a run's numbers; the rest (layout, paths, watching) may change on resume."""
        kept = {
            "seed", "steps", "precision", "model", "spans", "optim", "init_from", "trainable",
            "lora", "bottleneck",
        }  # fmt: skip
        identity = self.model_dump(mode="json", include=kept)
        identity["optim"]["schedule_steps"] = self.schedule_steps
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


def _faults(config: RunConfig) -> list[str]:
    data, layout, zero = config.data, config.layout, config.zero
    encoders, decoder, S = config.model.encoders, config.model.decoder, data.sequence_tokens
    patience = config.storage.timeout_seconds + config.storage.retry_budget_seconds
    micro_sequences = config.batch.micro_sequences
    # What `auto` could take in any case: all that a data rank has.
    rows = S * (config.batch.sequences if micro_sequences == "auto" else micro_sequences)
    rules = [
        (
            data.corpus is None and not data.sources,
            "data.corpus: is missing: set data.corpus=DIRECTORY (or s3://bucket/path), or name "
            "several in data.sources",
        ),
        (
            data.corpus is not None and data.sources,
            f"data.corpus: {data.corpus} is named beside data.sources: set data.corpus=null to mix "
            f"the sources, or data.sources.NAME=null for each of {', '.join(data.sources)}",
        ),
        (
            patience >= config.collective_timeout_seconds,
            f"storage.retry_budget_seconds: a rank may wait {patience:g} s for data (with "
            "storage.timeout_seconds), longer than the others wait for it "
            f"(collective_timeout_seconds {config.collective_timeout_seconds:g}): lower one, or "
            "raise the other",
        ),
        (
            config.run_mirror is not None and config.checkpoint.directory is not None,
            "checkpoint.directory: run_mirror holds the checkpoints: leave one of the two out",
        ),
        (
            config.batch.sequences % data.span_choices,
            f"data.span_choices: {data.span_choices} of each sequence do not divide "
            f"batch.sequences ({config.batch.sequences})",
        ),
        (
            S > decoder.max_tokens,
            f"data.sequence_tokens: {S} slots but the decoder has positions for "
            f"{decoder.max_tokens}; raise model.decoder.max_tokens or shorten the sequence",
        ),
        (
            config.spikes is not None
            and config.checkpoint.every_steps * (config.checkpoint.keep - 1)
            < config.spikes.patience_steps,
            "spikes.patience_steps: no checkpoint before so many steps is kept: lower it, "
            "or raise checkpoint.keep or checkpoint.every_steps",
        ),
        *(
            (
                not first <= last <= config.steps,
                f"left_out: [{first}, {last}] are no steps of the run: name a first and a last, up "
                f"to steps ({config.steps})",
            )
            for first, last in config.ranges_left_out
        ),
        *(
            (True, f"profile.steps: {step} is no step of the run, or left out: name others")
            for step in (() if config.profile is None else config.profile.steps)
            if step > config.steps or step in config.steps_left_out
        ),
        *((True, fault) for fault in decoder.faults("model.decoder")),
        (
            config.optim.warmup_steps > config.schedule_steps,
            f"optim.warmup_steps: {config.optim.warmup_steps} steps of warm-up exceed the run's "
            f"steps, or optim.schedule_steps ({config.schedule_steps}): lower it, or raise these",
        ),
        (
            layout.sequence_parallel and rows % layout.tensor,
            f"layout.sequence_parallel: the {rows} slots of a microbatch (batch.micro_sequences x "
            f"data.sequence_tokens) do not divide by layout.tensor {layout.tensor}",
        ),
        (
            zero.offload_directory is not None and config.checkpoint.asynchronous,
            "checkpoint.asynchronous: must be false with zero.offload_directory: the copy that is "
            "written in the background would bring into memory what was moved out of it",
        ),
        *(
            (
                is_set and config.init_from is None,
                f"{key}: needs init_from, a checkpoint whose weights the adapters bend; python -m "
                "tools.assemble makes one of a decoder and an encoder from elsewhere, or new ones",
            )
            for key, is_set in (
                ("lora", config.lora is not None),
                ("bottleneck", config.bottleneck is not None),
            )
        ),
        (
            config.lora is not None and config.lora.rank > decoder.width,
            f"lora.rank: {config.lora and config.lora.rank} is more than model.decoder.width "
            f"({decoder.width}): no layer has so many directions",
        ),
    ]
    if config.precision in IN_FP8:
        rules += _fp8_rules(config)
    needs_whole = {
        f"spans.{name}.kind: stored": kind.is_stored for name, kind in config.spans.items()
    }
    needs_whole["data.attend: within"] = data.attend == "within"
    rules += [
        (
            is_set and data.pack == "stream",
            f"{key} needs documents that stay whole, and data.pack: stream cuts them: leave out "
            "data.pack, or change it to fit",
        )
        for key, is_set in needs_whole.items()
    ]
    one_copy = {
        "zero.offload_directory": zero.offload_directory is not None,
        "optim.precision": config.optim.precision != "fp32",
    }
    rules += [
        (
            is_set and layout.model_ranks > 1,
            f"{key}: is for runs with layout.tensor=1 and layout.pipeline=1; with more it was "
            "never shown to be right: leave it out",
        )
        for key, is_set in one_copy.items()
    ]
    rules += [
        (name not in encoders, f"{key}.{name}: there is no encoder model.encoders.{name}")
        for key, names in (("spans", config.spans), ("data.span_capacity", data.span_capacity))
        for name in names
    ]
    rules += [
        (
            name not in config.spans,
            f"spans.{name}: is missing; say how the spans of model.encoders.{name} are chosen, "
            "e.g. kind=random",
        )
        for name in encoders
    ]
    faults = [message for is_broken, message in rules if is_broken]
    for name in sorted(set(encoders) & set(config.spans)):
        faults += _encoder_faults(config, name)
    if set(encoders) <= set(config.spans):
        faults += layout_faults(layout, config.built_model)
        if config.tuning.is_set and not faults:
            faults += _tuning_faults(config)
    return faults


def _tuning_faults(config: RunConfig) -> Iterator[str]:
    """Patterns that choose nothing, what would stay random, what is said twice."""
    supplied = [""] if config.init_from is not None else []
    if config.model.decoder.init_from is not None:
        supplied.append("decoder.")
    for modality, part in config.built_model.encoders.items():
        key = f"model.encoders.{modality}.encoder"
        if part.encoder.init_from is not None:
            supplied.append(f"encoders.{modality}.")
        if config.trainable is not None and part.encoder.trainable_layers is not None:
            yield f"{key}.trainable_layers: trainable says what trains: leave one of them out"
    yield from config.tuning.faults(Names.of(config.built_model), supplied=supplied)


def _fp8_rules(config: RunConfig) -> list[tuple[bool, str]]:
    layout, decoder, S = config.layout, config.model.decoder, config.data.sequence_tokens
    key = f"precision: {config.precision}"
    sizes = {
        "model.decoder.width": decoder.width,
        "model.decoder.feed_forward": decoder.feed_forward,
        "data.sequence_tokens": S,
    }
    return [
        (
            layout.model_ranks > 1,
            f"{key} works with layout.tensor=1 and layout.pipeline=1: use data parallelism "
            "and ZeRO, or precision=bf16",
        ),
        (
            decoder.activation == "swiglu" or decoder.biases != "all",
            "precision: fp8 multiplies blocks that have all biases and no gate "
            "(model.decoder.biases, model.decoder.activation): use precision=bf16",
        ),
        (
            config.zero.stage == 3,
            f"{key} works with zero.stage up to 2, as weights in fp8 stay whole on every "
            "rank: lower it, or use precision=bf16",
        ),
        (
            config.tuning.has_adapters,
            f"{key} multiplies whole weights, without adapters: use precision=bf16 with them",
        ),
        (
            decoder.num_layers < 3,
            f"{key} leaves the decoder's first and last block in bf16, and of "
            f"{decoder.num_layers} (model.decoder.num_layers) there is none between: use "
            "precision=bf16",
        ),
        *(
            (
                size % DIVISOR != 0,
                f"{of}: with precision={config.precision} it must be a multiple of {DIVISOR}, not "
                f"{size}: change it, or use precision=bf16",
            )
            for of, size in sizes.items()
        ),
    ]


def _encoder_faults(config: RunConfig, modality: str) -> list[str]:
    encoder, spans = config.model.encoders[modality].encoder, config.spans[modality]
    S = config.data.sequence_tokens
    load = spans.load(S)
    return [
        *encoder.faults(
            f"model.encoders.{modality}.encoder",
            vocabulary=config.model.decoder.vocabulary,
            longest=0 if load is None else int(load.longest),
            is_supplied=config.init_from is not None,
        ),
        *spans.faults(f"spans.{modality}", encoder, sequence_tokens=S),
    ]
