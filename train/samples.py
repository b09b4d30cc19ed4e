"""What the model says while it trains: the configured prompts, continued by the model as it is."""

from collections.abc import Sequence

from model.generation.decoding import Request, Row, generate
from model.generation.picking import Sampling
from model.semicausal import SemiCausal
from parallel.agreement import on_first_rank
from parallel.reading import reader
from parallel.zero.engine import ZeroEngine
from train.asked import Prompt, pack
from train.config import RunConfig
from train.errors import UserError
from train.prompt import plain
from train.text import Speaker
from train.watch.metrics import SampleRecord
from train.watch.monitor import Monitor


def write_samples(config: RunConfig, engine: ZeroEngine, monitor: Monitor, *, step: int) -> None:
    """Let the model continue the configured prompts; every rank must call it.

    All ranks read tokens, each with what it holds of the model; the first one knows the tokenizer,
    and writes. What goes wrong is told, and ends no run.
    """
    speakers: list[Speaker] = []
    model = engine.module
    assert isinstance(model, SemiCausal)

    def understand() -> tuple[list[Prompt | str], int]:
        speaker = Speaker(model, config.directory.tokenizer)
        speakers.append(speaker)
        prompts = [_readable(prompt, config, speaker) for prompt in config.samples.prompts]
        return prompts, speaker.special.document

    with monitor.guard("samples"):
        prompts, stop_token = on_first_rank(understand, UserError)
        readable = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        requests = [
            Request(
                max_new_tokens=config.samples.max_new_tokens,
                sampling=Sampling(top_p=config.samples.top_p, seed=config.seed + number),
                stop_tokens=frozenset({stop_token}),
            )
            for number, prompt in enumerate(prompts)
            if isinstance(prompt, Prompt)
        ]
        rows = iter(_continued(engine, model, readable, requests))
        for written, prompt in zip(config.samples.prompts, prompts, strict=True):
            if isinstance(prompt, str):
                monitor.note(f"no sample for {written!r}: {prompt}")
                continue
            row = next(rows)
            for speaker in speakers:
                text = speaker.text(row.ids)
                monitor.write(SampleRecord(step=step, prompt=written, text=text))


def _readable(prompt: str, config: RunConfig, speaker: Speaker) -> Prompt | str:
    """A prompt in tokens, or why it cannot be read."""
    try:
        return speaker.prompt(prompt if config.built_model.encoders else plain(prompt))
    except UserError as error:
        return str(error)


def _continued(
    engine: ZeroEngine, model: SemiCausal, prompts: Sequence[Prompt], requests: Sequence[Request]
) -> list[Row]:
    if not prompts:
        return []
    device = engine.mesh.world.device
    with engine.evaluating():
        return generate(
            reader(engine),
            [prompt.tokens for prompt in prompts],
            requests,
            most_slots=model.config.decoder.max_tokens,
            device=device,
            spans=pack(model.config, prompts, device=device),
            is_live=True,
        )
