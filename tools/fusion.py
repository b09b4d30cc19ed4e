"""`python -m tools.fusion`: a picture read with the beginning of its caption, or alone.

Trains both with each seed, two runs at a time, and writes losses and scores to `out/fusion.json`.
What has run is not run again. Losses are of the same tokens in both: of whole captions behind the
picture alone, and of what follows a beginning that the encoder has read with it (`fused`), or the
decoder (`alone`). Names are asked behind the picture alone, as prompts show it.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from model.batch import Batch
from model.encoders.image import ImageEncoderConfig
from model.encoders.multiway import PrefixTextConfig
from model.loss import Loss
from model.semicausal import SemiCausal
from tools.arguments import Parser, local_path, output_file, whole
from tools.command import command_line, write_json
from train.build import build_collator, open_sources
from train.checkpoint.directory import resolve
from train.config import RunConfig
from train.data.sources import Sources
from train.data.spans.image import ImageSpansConfig
from train.data.spans.prefix import PrefixConfig
from train.errors import RunDirectoryError
from train.evaluate import validation_batches
from train.loading import load_config, load_model
from train.storage.place import Place

EXPERIMENT: Final = "configs/experiment/fusion.yaml"
PREFIX_TOKENS: Final = 24
ARMS: Final[dict[str, tuple[str, ...]]] = {
    "alone": (),
    "fused": (
        f"model.encoders.image.encoder.text={{max_tokens: {PREFIX_TOKENS}, shared_layers: 1}}",
        f"spans.image.prefix={{max_tokens: {PREFIX_TOKENS}}}",
    ),
}
TASKS: Final = tuple(
    f"configs/task/pictures/picture_name_{vendor}.yaml" for vendor in ("twitter", "openmoji")
)
_DRAWN_BY: Final = 0
"""Seed of the beginnings that are judged, the same for all runs."""


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, compare."""
    parser = Parser(prog="python -m tools.fusion", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of all runs")
    parser.add_argument("--seeds", type=whole(least=1, most=64), default=3)
    parser.add_argument("--rows", type=whole(least=1), default=300, help="of each task")
    parser.add_argument("--directory", type=local_path, default=Path("runs/fusion"))
    parser.add_argument("--out", type=output_file, default="out/fusion.json")
    options = parser.parse_intermixed_args(arguments)
    wanted = [(arm, seed) for seed in range(1, options.seeds + 1) for arm in ARMS]
    one = partial(_trained, options.directory, options.overrides, options.rows)
    with ThreadPoolExecutor(2) as pool:
        scores = list(pool.map(one, *zip(*wanted, strict=True)))
    rows = [
        {"arm": arm, "seed": seed, **_judged(_run(options.directory, arm, seed)), **names}
        for (arm, seed), names in zip(wanted, scores, strict=True)
    ]
    compared = differences(rows)
    _show(rows, compared)
    write_json(options.out, {"rows": rows, "fused_less_alone": compared})


def _run(directory: Path, arm: str, seed: int) -> Path:
    return directory / f"{arm}-{seed}"


def _trained(
    directory: Path, overrides: Sequence[str], rows: int, arm: str, seed: int
) -> dict[str, float]:
    """Train one model, unless that is done; the share of names that it tells among twenty."""
    run = _run(directory, arm, seed)
    named = (f"name=fusion-{arm}-{seed}", f"run_directory={run}", f"seed={seed}")
    _call("train", EXPERIMENT, *ARMS[arm], *overrides, *named)
    out = run / "names.json"
    if not out.is_file():
        asked = ("--tasks", ",".join(TASKS), "--rows", str(rows), "--out", str(out))
        _call("tools.evaluate", str(run), *asked)
    found = json.loads(out.read_text())
    return {task["task"]: task["metrics"]["accuracy"] for task in found["tasks"]}


def _call(module: str, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, check=False)
    if ended.returncode:
        raise RunDirectoryError(
            f"python -m {module} {arguments[0]} ended with status {ended.returncode}: see above; "
            "the same command goes on"
        )


def _judged(run: Path) -> dict[str, float]:
    """Losses of a run over its validation split."""
    path = resolve(Place.of(run))
    config = load_config(path)
    return losses(load_model(path, device=torch.device("cpu")), open_sources(config), config)


def losses(model: SemiCausal, sources: Sources, config: RunConfig) -> dict[str, float]:
    """Losses of a model over the validation split of one source, in nats a token.

    Args:
        model: of either arm.
        sources: that it was trained on.
        config: of its run.
    """
    alone = partial(batches_of, sources, config, None)
    behind = partial(batches_of, sources, config, PrefixConfig(max_tokens=PREFIX_TOKENS, share=1.0))
    found = {"caption_loss": _mean(model, alone())}
    image = config.model.encoders["image"].encoder
    reads_text = isinstance(image, ImageEncoderConfig) and image.text is not None
    batches = behind() if reads_text else map(_scored_as, alone(), behind())
    return found | {"loss_behind_beginning": _mean(model, batches)}


def batches_of(sources: Sources, config: RunConfig, prefix: PrefixConfig | None) -> Iterator[Batch]:
    """The validation split, with beginnings of captions read with their pictures, or without.

    Args:
        sources: one.
        config: of a run.
        prefix: which beginnings; None for pictures alone.
    """
    spans, part = config.spans["image"], config.model.encoders["image"]
    assert isinstance(spans, ImageSpansConfig), "of this experiment"
    read: dict[str, Any] = {"spans": {"image": spans.model_copy(update={"prefix": prefix})}}
    if prefix is not None:
        # What the other encoder lacks, it is not asked here.
        text = PrefixTextConfig(max_tokens=PREFIX_TOKENS)
        encoder = part.encoder.model_copy(update={"text": text})
        parts = {"image": part.model_copy(update={"encoder": encoder})}
        read["model"] = config.model.model_copy(update={"encoders": parts})
    changed = config.model_copy(update={"seed": _DRAWN_BY, **read})
    (source,) = sources.all
    collate = build_collator(changed, sources.special)
    return validation_batches(source, collate, sequences=None, micro_sequences=8)


def _scored_as(batch: Batch, other: Batch) -> Batch:
    """A batch whose scored tokens are those of another that was made of the same samples."""
    return replace(
        batch,
        labels=other.labels,
        scored=other.scored,
        num_scored=other.num_scored,
        first_of_span=other.first_of_span,
    )


@torch.no_grad()
def _mean(model: SemiCausal, batches: Iterable[Batch]) -> float:
    total = count = 0.0
    for batch in batches:
        loss = model(batch)
        assert isinstance(loss, Loss)
        total += loss.total.item()
        count += batch.num_scored
    return total / count


def differences(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By how much the fused arm is above the other in each number, in pairs by seed.

    Returns:
        Mean and standard error over seeds, by name of the number.
    """
    names = [name for name in rows[0] if name not in ("arm", "seed")]
    found: dict[str, dict[str, float]] = {}
    for name in names:
        values = {(row["arm"], row["seed"]): row[name] for row in rows}
        seeds = sorted({row["seed"] for row in rows})
        pairs = [values["fused", seed] - values["alone", seed] for seed in seeds]
        error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
        found[name] = {"mean": statistics.mean(pairs), "standard_error": error}
    return found


def _show(rows: Sequence[dict[str, Any]], compared: dict[str, dict[str, float]]) -> None:
    table = Table("arm", "seed", *compared)
    for row in rows:
        table.add_row(row["arm"], str(row["seed"]), *(f"{row[name]:.4f}" for name in compared))
    means = (f"{each['mean']:+.4f} ± {each['standard_error']:.4f}" for each in compared.values())
    table.add_row("fused - alone", "", *means)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
