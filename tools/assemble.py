"""`python -m tools.assemble OUT CONFIG...`: parts as one checkpoint, for adapters to begin from.

What `model.decoder.init_from` and `model.encoders.*.encoder.init_from` name is copied as it lies
there. Encoders and connectors that come from nowhere are drawn from `seed`: they are told, stand in
the checkpoint's `drawn`, and a run that begins from it has to train them. Then:
`python -m train OUT/model.yaml CONFIG... "lora={rank: 8}" "trainable=[connectors]"`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from torch import Tensor

from model.layers import initialize
from model.semicausal import ModelConfig, SemiCausal
from tools.arguments import Parser
from tools.command import command_line
from train.build import first_weights, of_part, refuse_other_architecture
from train.checkpoint.directory import resolve
from train.checkpoint.restore import read_state
from train.checkpoint.weights import values_of, write_values
from train.config import RunConfig
from train.config_files import load
from train.data.tokens import TOKENIZER_BYTES_AT_MOST
from train.errors import CheckpointError, ConfigError
from train.loading import Drawn
from train.run_directory import TOKENIZER, kept_tokenizer
from train.storage.place import Place

PART = "model.yaml"
"""What a run merges to begin from the checkpoint."""

PLAIN = ("init_from=null", "trainable=null", "lora=null", "bottleneck=null")
"""Of a run's configuration, what is for the run that begins from the checkpoint."""


def assemble(config: RunConfig, out: Place) -> list[str]:
    """Write a whole checkpoint of the parts that a configuration names.

    Args:
        config: of a run without adapters.
        out: to create.

    Returns:
        The parts that were drawn from the seed.

    Raises:
        CheckpointError: a part is missing, damaged or of another model, or `out` exists.
        ConfigError: no part comes from a checkpoint.
    """
    if out.exists():  # before anything large is read
        raise CheckpointError(f"{out} exists: choose another place for the checkpoint")
    values: dict[str, Tensor] = {}
    tokenizer: Place | None = None
    for named, prefix in first_weights(config):
        place = resolve(named)
        refuse_other_architecture(place, of_part(config, prefix))
        values |= {name: value for name, value in values_of(place) if name.startswith(prefix)}
        tokenizer = tokenizer or kept_tokenizer(place, read_state(place).model_dump())
    if not values:
        raise ConfigError(
            "model.decoder.init_from: names no checkpoint, nor does an encoder's: there is nothing "
            "to assemble; name one, such as python -m tools.import writes"
        )
    model = config.built_model
    parts = [
        "decoder",
        *(f"{kind}.{m}" for m in model.encoders for kind in ("encoders", "connectors")),
    ]
    drawn = [part for part in parts if not any(name.startswith(f"{part}.") for name in values)]
    values |= _drawn(model, drawn, seed=config.seed)
    stored = config.model_dump(mode="json")
    stored["model"] = _without_origins(stored["model"])
    state: dict[str, Any] = {"step": 0, "config": stored}
    if drawn:
        state["drawn"] = Drawn(seed=config.seed, parts=drawn).model_dump()
    write_values(out, values, state)
    if tokenizer is not None:
        (out / TOKENIZER).write(tokenizer.read(limit_bytes=TOKENIZER_BYTES_AT_MOST))
    begin = {"init_from": str(out), "model": stored["model"]}
    (out / PART).write(yaml.safe_dump(begin, sort_keys=False).encode())
    return drawn


def _drawn(model: ModelConfig, parts: Sequence[str], *, seed: int) -> dict[str, Tensor]:
    """First values of some parts, as a run of this seed would draw them."""
    if "decoder" not in parts:  # their values do not depend on it, and it may be large
        decoder = model.decoder.model_copy(update={"num_layers": 1})
        model = model.model_copy(update={"decoder": decoder})
    whole = SemiCausal(model)
    initialize(whole, seed=seed)
    return {
        name: value.detach()
        for name, value in whole.named_parameters()
        if any(name.startswith(f"{part}.") for part in parts)
    }


def _without_origins(model: Mapping[str, Any]) -> dict[str, Any]:
    """A stored model that says nothing of where its parts came from: they are in one place now."""
    encoders = {
        modality: part | {"encoder": part["encoder"] | {"init_from": None}}
        for modality, part in model["encoders"].items()
    }
    return {**model, "decoder": model["decoder"] | {"init_from": None}, "encoders": encoders}


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Write OUT; print what is new in it and what begins from it."""
    parser = Parser(prog="python -m tools.assemble", description=__doc__)
    parser.add_argument("out", help="directory to create")
    parser.add_argument("arguments", nargs="+", help="YAML files and key=value, as of a run")
    options = parser.parse_args(arguments)
    config = load(RunConfig, [*options.arguments, *PLAIN])
    out = Place.parse(options.out)
    for part in assemble(config, out):
        sys.stdout.write(f"{part} is new, drawn from seed {config.seed}: it has to train\n")
    sys.stdout.write(f"{out}: python -m train {out}/{PART} MINE.yaml\n")


if __name__ == "__main__":
    sys.exit(main())
