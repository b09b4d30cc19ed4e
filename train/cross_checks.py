"""What of a configuration does not go together, each fault in a sentence with its key."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from model.adapters.tuning import Names
from model.fp8 import DIVISOR
from parallel.mesh import layout_faults
from parallel.zero.config import IN_FP8
from train.data.document import Kind

if TYPE_CHECKING:
    from train.config import RunConfig


def faults_of(config: "RunConfig") -> list[str]:
    """All that does not go together."""
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
            config.cluster is not None
            and config.cluster.store is not None
            and config.run_mirror is None
            and config.checkpoint.directory is None,
            f"cluster.store: run_directory={config.run_directory} ends in no name that the run's "
            "mirror there could have: set run_mirror, or name the directory itself",
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
        f"spans.{name}.kind: {kind.kind}": kind.is_stored for name, kind in config.spans.items()
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
            f"e.g. kind={'random' if part.encoder.kind == 'text' else part.encoder.kind}",
        )
        for name, part in encoders.items()
    ]
    of_text = [
        name
        for name, kind in config.spans.items()
        if kind.medium == Kind.TEXT_SPAN and not kind.is_idle
    ]
    rules += [
        (
            kind.prefix_tokens > 0 and bool(of_text),
            f"spans.{name}.prefix: text behind items is read with them, and spans."
            f"{', '.join(of_text)} would be chosen in the same text: leave one of the two out",
        )
        for name, kind in config.spans.items()
    ]
    faults = [message for is_broken, message in rules if is_broken]
    for name in sorted(set(encoders) & set(config.spans)):
        faults += _encoder_faults(config, name)
    faults += _objective_faults(config)
    if set(encoders) <= set(config.spans):
        faults += layout_faults(layout, config.built_model)
        if config.tuning.is_set and not faults:
            faults += _tuning_faults(config)
    return faults


def _objective_faults(config: "RunConfig") -> Iterator[str]:
    """What an encoder that trains alone does not have, or cannot do."""
    objective, encoders, named = config.objective, config.model.encoders, config.trains_alone
    if objective is None:
        return
    if named not in encoders or (objective.encoder is None and len(encoders) > 1):
        yield (
            f"objective.encoder: {objective.encoder or 'missing'}: name which of "
            f"{', '.join(encoders) or 'the encoders'} (model.encoders) trains alone"
        )
        return
    if named in config.spans and config.spans[named].is_idle:
        yield f"objective.encoder: {named} never gets a span: raise spans.{named}.ratio"
    yield from objective.faults("objective", encoders[named].encoder)
    of_decoders = {
        "layout.tensor": config.layout.tensor > 1,
        "layout.pipeline": config.layout.pipeline > 1,
        "init_from": config.init_from is not None,
        "trainable": config.trainable is not None,
        "lora": config.lora is not None,
        "bottleneck": config.bottleneck is not None,
        "samples.prompts": bool(config.samples.prompts),
        "evaluation": config.evaluation is not None,
        "precision": config.precision in IN_FP8,
    }
    for key, is_set in of_decoders.items():
        if is_set:
            yield (
                f"{key}: with an objective an encoder trains alone, without the decoder that this "
                f"is for: leave it out, as with {key}="
                + ("1" if key.startswith("layout") else "[]" if key.endswith("s") else "null")
            )


def _tuning_faults(config: "RunConfig") -> Iterator[str]:
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


def _fp8_rules(config: "RunConfig") -> list[tuple[bool, str]]:
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


def _encoder_faults(config: "RunConfig", modality: str) -> list[str]:
    part, spans = config.model.encoders[modality], config.spans[modality]
    encoder = part.encoder
    S = config.data.sequence_tokens
    load = spans.load(S)
    return [
        *encoder.faults(
            f"model.encoders.{modality}.encoder",
            vocabulary=config.model.decoder.vocabulary,
            longest=0 if load is None else int(load.longest),
            is_supplied=config.init_from is not None,
        ),
        *spans.faults(
            f"spans.{modality}", encoder, sequence_tokens=S, longest_slots=part.longest_span
        ),
        *_item_faults(config, modality),
    ]


def _item_faults(config: "RunConfig", modality: str) -> Iterator[str]:
    """An item that has no room in any sequence."""
    given, spans = config.data.span_capacity.get(modality), config.spans[modality]
    part = config.model.encoders[modality]
    longest, whose = part.longest_span, f"model.encoders.{modality}"
    whose += ".encoder" if part.connector.item_slots is None else ".connector"
    if given is None or spans.medium == Kind.TEXT_SPAN or longest <= given.tokens:
        return
    yield (
        f"data.span_capacity.{modality}.tokens: {given.tokens} slots are fewer than one {modality} "
        f"may take ({longest} vectors of {whose}): raise it, or have it make fewer"
    )
