"""`python -m tools.units OUT CONFIG...`: clusters of what is heard, for `objective.clusters`.

Rows of the first sounds that the run of CONFIG would read are clustered by mel cepstra, as in the
first round of HuBERT; the run then tells in which cluster each masked row lies.
"""

import sys
from collections.abc import Sequence
from typing import Final

import numpy as np

from model.encoders.audio import AudioEncoderConfig, AudioSpans
from model.objectives.units import MaskedUnitsConfig
from tools.arguments import Parser, local_path, whole
from tools.command import command_line
from train.build import build_collator, build_plan
from train.config import RunConfig
from train.config_files import load
from train.data.masks.clusters import Features, clustered, nearest_of, row_features, save_middles
from train.errors import ConfigError

_STEPS: Final = 50


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Read, cluster, write; print how much of each cluster there is."""
    parser = Parser(prog="python -m tools.units", description=__doc__)
    parser.add_argument("out", type=local_path, help="file to write")
    parser.add_argument("arguments", nargs="+", help="YAML files and key=value, as of a run")
    parser.add_argument(
        "--steps", type=whole(least=1), default=_STEPS, help=f"of the run to read ({_STEPS})"
    )
    options = parser.parse_intermixed_args(arguments)
    named = f"objective.clusters={options.out}"
    config = load(RunConfig, [*options.arguments, named])
    objective, modality = config.objective, config.trains_alone
    if not isinstance(objective, MaskedUnitsConfig) or modality is None:
        raise ConfigError("objective.kind: clusters are for masked_units: name a run of that")
    features = _read(config, modality, steps=min(options.steps, config.steps))
    middles = clustered(features, count=objective.units, seed=config.seed)
    save_middles(options.out, middles)
    sizes = np.bincount(nearest_of(features, middles), minlength=len(middles))
    sys.stdout.write(
        f"{options.out}: {len(middles)} clusters of {len(features):,} rows, of {sizes.min():,} to "
        f"{sizes.max():,} rows each\n"
    )


def _read(config: RunConfig, modality: str, *, steps: int) -> Features:
    """Features of the rows that the first steps read."""
    encoder = config.model.encoders[modality].encoder
    assert isinstance(encoder, AudioEncoderConfig), "refused with the configuration"
    plan = build_plan(config)
    # As any run reads them: what is masked is of no matter here.
    collate = build_collator(config.model_copy(update={"objective": None}), plan.sources.special)
    found: list[Features] = []
    for step in range(1, steps + 1):
        for entry in plan.step(step):
            sample = entry.source.read(entry.sequence)
            if not sample.items:
                continue
            spans = collate([(entry.sequence.epoch, sample)]).spans[modality]
            assert isinstance(spans, AudioSpans)
            found.append(row_features(spans, encoder))
    if not found:
        raise ConfigError("data.corpus: its first sequences hold no sound: name a corpus of some")
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(main())
