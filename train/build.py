"""Builds the parts of a run from its configuration: model, sources, plan, feed."""

import math
from collections.abc import Container
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.adapters.layer import is_adapter, plain_name
from model.adapters.tuning import Names, tune
from model.encoders.protocol import ItemEncoderKind
from model.layers import initialize
from model.objectives import alone
from model.objectives.alone import EncoderAlone
from model.semicausal import ModelConfig, SemiCausal, parameter_counts
from parallel import engine
from parallel.compiled import compile_if
from parallel.costs import item_cost
from parallel.engine import build_part
from parallel.mesh import Mesh
from parallel.split import with_split
from parallel.zero.engine import ZeroEngine
from train import adapter
from train.checkpoint.restore import load_weights
from train.config import RunConfig
from train.config_files import differences
from train.data.collate import Collator
from train.data.corpus import Corpus
from train.data.document import MEDIA
from train.data.feed import Feed
from train.data.masks.kinds import masking
from train.data.masks.protocol import Masking
from train.data.mixture import Mixture, shares
from train.data.pack import Room
from train.data.plan import StepPlan
from train.data.sources import Laying, Source, Sources
from train.data.tokens import SpecialTokens
from train.errors import CheckpointError, ConfigError, DataError
from train.loading import alone_fault, drawn_of, load_config
from train.storage.cache import require_working_set
from train.storage.path import local_path
from train.storage.place import Place


def open_sources(config: RunConfig) -> Sources:
    """Open all splits of all sources and check that they fit the model.

    Raises:
        DataError: a split is missing, damaged or of another vocabulary.
        ConfigError: the cache holds fewer shards than are read at a time.
    """
    data, storage = config.data, config.storage
    laying = Laying(
        sequence_tokens=data.sequence_tokens,
        pack=data.pack,
        attend=data.attend,
        window=data.shuffle_window,
        seed=config.seed,
        vocabulary=config.model.decoder.vocabulary,
        unscored_ids=frozenset(data.unscored_ids),
        rooms=rooms(config),
    )
    opened: list[Source] = []
    for number, (name, source) in enumerate(data.mixed.items()):
        cache = None if storage.cache is None else storage.cache_directory
        corpus = Corpus(
            source.corpus,
            cache=cache / name if cache and len(data.mixed) > 1 else cache,
            storage=storage,
        )
        opened.append(Source(name, number, corpus, laying))
    needed = sum(source.working_set_bytes for source in opened)
    require_working_set(storage.cache_limit_bytes, working_set_bytes=needed)
    return Sources(opened)


def rooms(config: RunConfig) -> tuple[Room, ...]:
    """What one sequence has room for, of the spans that documents bring."""
    found: list[Room] = []
    for modality, part in config.built_model.encoders.items():
        kind = config.spans[modality]
        if not kind.is_stored:
            continue
        capacity = config.span_capacity(modality)
        vectors = cost = None
        if isinstance(part.encoder, ItemEncoderKind):
            vectors = part.item_slots
            cost = partial(item_cost, config.built_model, modality)
        found.append(
            Room(
                kind=kind.medium,
                spans=capacity.spans,
                slots=capacity.tokens,
                vectors=vectors,
                cost=cost,
            )
        )
    return tuple(found)


def build_collator(config: RunConfig, special: SpecialTokens) -> Collator:
    """The collator for the encoders that the run builds."""
    return Collator(
        sequence_tokens=config.data.sequence_tokens,
        readers={
            modality: config.spans[modality].reader(
                part.encoder,
                capacity=config.span_capacity(modality),
                seed=config.seed,
                special=special,
            )
            for modality, part in config.built_model.encoders.items()
        },
        padding=special.padding,
        attend=config.data.attend,
        num_sources=len(config.data.mixed),
        masking=_masking(config, special),
    )


def _masking(config: RunConfig, special: SpecialTokens) -> Masking | None:
    modality = config.trains_alone
    if config.objective is None or modality is None:
        return None
    encoder = config.model.encoders[modality].encoder
    return masking(config.objective, encoder, modality=modality, seed=config.seed, special=special)


def build_plan(config: RunConfig) -> StepPlan:
    """The global batches of the run, of sources that it opens.

    Raises:
        DataError: as `open_sources`; or an encoder has nothing to read in them.
        ConfigError: epochs or tokens of the sources do not make up the run.
    """
    sources = open_sources(config)
    _require_items(config, sources)
    return StepPlan(
        sources,
        build_mixture(config, sources),
        entries=config.batch.sequences,
        choices=config.data.span_choices,
        is_balanced=config.data.balance and config.reads_items,
    )


def _require_items(config: RunConfig, sources: Sources) -> None:
    faults = [
        f"model.encoders.{MEDIA[room.kind]}: {sources.places} has nothing that it reads: leave the "
        f"encoder out, with spans.{MEDIA[room.kind]}, or name a corpus with items of "
        f"{MEDIA[room.kind]}"
        for room in rooms(config)
        if room.vectors is not None and not sources.count(room.kind)
    ]
    if faults:
        raise DataError("\n".join(faults))


def build_mixture(config: RunConfig, sources: Sources) -> Mixture:
    """How the steps of a run are shared among its sources.

    Args:
        config: of the run.
        sources: its own, and more of them behind.

    Raises:
        ConfigError: epochs or tokens of the sources do not make up the run.
    """
    mixed, choices = config.data.mixed, config.data.span_choices
    amounts = {
        source.name: source.sequences_for(
            epochs=mixed[source.name].epochs, tokens=mixed[source.name].tokens
        )
        for source in sources.all
        if source.name in mixed and mixed[source.name].is_budgeted
    }
    sequences = config.batch.sequences // choices
    table = shares(mixed, amounts, steps=config.steps, sequences=sequences)
    return Mixture(table, sequences=sequences, seed=config.seed)


def build_feed(
    config: RunConfig,
    plan: StepPlan,
    collate: Collator,
    mesh: Mesh,
    *,
    left_out: Container[int] = (),
) -> Feed:
    """This rank's feed of training microbatches, the same for all that hold one model copy."""
    return Feed(
        plan,
        collate,
        micro_sequences=config.micro_sequences,
        rank=mesh.data_rank,
        ranks=mesh.data_size,
        # The store knows better what went wrong; this deadline is for what it cannot see. It ends
        # before the other ranks' patience does, so that they hear the reason.
        timeout_seconds=0.8 * config.collective_timeout_seconds,
        last_step=config.steps,
        left_out=left_out,
        stages=config.layout.pipeline,
    )


def build_model(config: RunConfig, mesh: Mesh) -> SemiCausal | EncoderAlone:
    """This rank's part of the model, with first values from the seed or from checkpoints.

    Adapters are put on where they are configured.

    Raises:
        CheckpointError: a named checkpoint is missing, damaged or of another model.
    """
    model = _encoder_alone(config, mesh) or _whole_model(config, mesh)
    for path, prefix in first_weights(config):
        refuse_other_architecture(path, of_part(config, prefix))
        # An encoder is not on every stage of a pipeline.
        part = dict(model.named_modules()).get(prefix.rstrip("."))
        if part is not None:
            load_weights(path, part, prefix=prefix)
    if isinstance(model, SemiCausal):
        tune(model, config.tuning, seed=config.seed)
    for path, prefix in first_weights(config):
        _refuse_drawn(path, model, prefix=prefix)
    return model


def _whole_model(config: RunConfig, mesh: Mesh) -> SemiCausal:
    layout = with_split(
        config.layout,
        config.built_model,
        sequence_tokens=config.data.sequence_tokens,
        span_share=config.span_share,
    )
    return build_part(config.built_model, layout, mesh, seed=config.seed)


def _encoder_alone(config: RunConfig, mesh: Mesh) -> EncoderAlone | None:
    modality, built = config.trains_alone, config.built_model
    if config.objective is None or modality is None:
        return None
    model = EncoderAlone(
        modality,
        built.encoders[modality].encoder,
        config.objective,
        vocabulary=built.decoder.vocabulary,
        attention=built.attention,
        recompute=config.layout.recompute,
    )
    initialize(model, seed=config.seed)
    compile_if(built.compile, model, device=mesh.world.device)
    return model


def parameters_by_part(config: RunConfig) -> dict[str, int]:
    """Parameters of what a run trains, or leaves fixed beside it; nothing is allocated for it."""
    modality, built = config.trains_alone, config.built_model
    if config.objective is None or modality is None:
        return parameter_counts(built)
    encoder = built.encoders[modality].encoder
    return alone.parameter_counts(
        modality, encoder, config.objective, vocabulary=built.decoder.vocabulary
    )


def _refuse_drawn(path: Place, model: torch.nn.Module, *, prefix: str) -> None:
    """Refuse to keep fixed what a checkpoint has from chance.

    Raises:
        CheckpointError: a parameter of this rank's part would stay so.
    """
    drawn = drawn_of(path)
    begins = [f"{part}." for part in drawn.parts] if drawn is not None else []
    random = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
        and not is_adapter(name)
        and any(name.startswith(begin) and name.startswith(prefix) for begin in begins)
    ]
    if drawn is not None and random:
        raise CheckpointError(
            f"{path} has {', '.join(drawn.parts)} as drawn from seed {drawn.seed}, and "
            f"{len(random)} parameters such as {plain_name(random[0])} would stay random: let them "
            f"train, with trainable=[{', '.join(drawn.parts)}]"
        )


def first_adapter(config: RunConfig) -> dict[str, Tensor]:
    """Values out of the file from which adapters, and what trains beside them, are to start.

    Raises:
        CheckpointError: it is missing, damaged, or of another model or base.
    """
    if config.lora is None or config.lora.init_from is None:
        return {}
    path = local_path(config.lora.init_from)
    given = adapter.read(path)
    for base, prefix in first_weights(config):
        if not prefix:
            adapter.refuse_other_base(given, path, base)
    adapter.refuse_unfitting(given, path, Names.of(config.built_model), tuning=config.tuning)
    return given.values


# What makes two models compute alike with the same weights; the rest may differ.
DECODER_SHAPE = {
    *("vocabulary", "width", "num_layers", "heads", "feed_forward", "norm", "tied_head"),
    *("positions", "rope_theta", "norm_layer", "norm_epsilon", "activation", "biases"),
    *("kv_heads", "head_width", "embedding_scale", "rope_scaling"),
}


def architecture(config: ModelConfig) -> dict[str, Any]:
    """What a checkpoint's model must share with this one, by part."""
    parts: dict[str, Any] = {"decoder": config.decoder.model_dump(include=DECODER_SHAPE)}
    for modality, part in config.encoders.items():
        vocabulary = config.decoder.vocabulary
        parts[f"encoders.{modality}.encoder"] = part.encoder.architecture(vocabulary=vocabulary)
        parts[f"encoders.{modality}.connector"] = part.connector.model_dump()
    return parts


def of_part(config: RunConfig, prefix: str) -> dict[str, Any]:
    """What a checkpoint must share with a run that takes the weights whose names begin so."""
    here = architecture(config.built_model)
    if not prefix:
        return here
    return {part: here[part] for part in (f"{prefix}encoder", prefix[:-1]) if part in here}


def refuse_other_architecture(path: Place, here: dict[str, Any]) -> None:
    """Refuse first weights of a model that is not this one; equal shapes are not enough.

    Args:
        path: checkpoint that is to supply weights.
        here: the parts of this model that it is to fill.

    Raises:
        CheckpointError: it is of another model, or a LoRA run's, or missing or damaged.
    """
    stored = load_config(path)
    if stored.tuning.has_adapters:
        raise CheckpointError(
            f"{path} is a LoRA run: merge it first, with python -m tools.merge {path} OUT"
        )
    if stored.trains_alone is not None and "decoder" in here:
        raise alone_fault(path, stored)
    there = architecture(stored.built_model)
    for part in here:
        if part not in there:
            raise CheckpointError(
                f"{path} is a checkpoint of another model: it has no {part}; name one that has, "
                "or leave it out here"
            )
        changed = differences(there[part], here[part], prefix=f"model.{part}.")
        if changed:
            raise CheckpointError(
                f"{path} is a checkpoint of another model ({'; '.join(changed)}): change the "
                "config to what is there"
            )


def first_weights(config: RunConfig) -> list[tuple[Place, str]]:
    """The checkpoints that supply first weights, in order, and what names of these begin with."""
    named = [
        (config.model.decoder.init_from, "decoder."),
        *(
            (part.encoder.init_from, f"encoders.{modality}.")
            for modality, part in config.built_model.encoders.items()
        ),
    ]
    return [
        (Place.parse(path, config.storage), prefix)
        for path, prefix in [*named, (config.init_from, "")]
        if path is not None
    ]


def count_parameters(config: RunConfig, model: torch.nn.Module) -> int:
    """Parameters of the whole model, adapters included; `model` is this rank's part of it."""
    if config.layout.model_ranks == 1:
        return sum(parameter.numel() for parameter in model.parameters())
    names = Names.of(config.built_model)
    shapes = [*names.parameters.values(), *config.tuning.adapter_shapes(names).values()]
    return sum(map(math.prod, shapes))


def build_engine(config: RunConfig, model: torch.nn.Module, mesh: Mesh) -> ZeroEngine:
    """The model under ZeRO with AdamW.

    Raises:
        ConfigError: the disk for masters and moments has no room for them.
    """
    assert config.precision != "auto", "resolved when the run starts"
    adamw = config.optim.adamw
    zero, directory = config.zero, config.zero.offload_directory
    try:
        if directory is not None:
            zero = zero.model_copy(update={"offload_directory": str(local_path(directory))})
        return engine.build_engine(model, mesh, adamw=adamw, zero=zero, precision=config.precision)
    except OSError as error:
        if directory is None:
            raise
        raise ConfigError(
            f"zero.offload_directory: {directory} cannot be used ({error.strerror or error}): name "
            "a directory on a disk with 12 free bytes for each parameter of this rank's share"
        ) from error
