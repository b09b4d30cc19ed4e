"""`python -m tools.probe RUN DATA --item COLUMN --label COLUMN`: what an encoder has learned.

A linear probe reads the mean vector of each item, is fitted on one split of DATA and asked about
another, once behind the encoder of RUN and once behind the same encoder as it was drawn at random.
DATA is a directory of records, as a task's is.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tools.arguments import Parser, local_path, output_file, whole
from tools.command import command_line
from tools.probe.encoding import Probed, labels_of
from tools.probe.kept import DEFAULT_OUT, keep
from tools.probe.linear import answers
from train.errors import DataError
from train.loading import load_config
from train.scores.interval import Estimate, difference, estimate
from train.scores.metric import Accuracy
from train.storage.place import Place
from train.tasks.records import Record, records


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Probe twice, tell both, and keep them."""
    parser = Parser(prog="python -m tools.probe", description=__doc__)
    parser.add_argument("run", help="a run, or one of its checkpoints")
    parser.add_argument("data", type=local_path, help="directory of records")
    parser.add_argument("--item", required=True, help="column of what the encoder reads")
    parser.add_argument("--label", required=True, help="column of what it is")
    parser.add_argument("--choices", help="column of the labels among which one is to be chosen")
    parser.add_argument("--fit", default="train", help="split that the probe is fitted on (train)")
    parser.add_argument(
        "--ask",
        default="test",
        help="split that is asked (test); where the probe is fitted on it, the rows behind those",
    )
    parser.add_argument("--modality", help="of the encoder, where the run has several")
    parser.add_argument("--rows", type=whole(least=10), default=2_000, help="of each split (2,000)")
    parser.add_argument("--stage", help="name of the row in --out (the run's)")
    parser.add_argument("--out", type=output_file, default=Path(DEFAULT_OUT))
    options = parser.parse_args(arguments)
    place = Place.parse(options.run)
    config = load_config(place)
    probed = Probed(place, config, modality=options.modality)
    fit = [*islice(records(options.data, options.fit), options.rows)]
    # Of one split, the rows behind those that it is fitted on.
    first = len(fit) if options.ask == options.fit else 0
    ask = [*islice(records(options.data, options.ask), first, first + options.rows)]
    if not fit or not ask:
        raise DataError(
            f"{options.data}: no rows are left to ask: name another split, or fewer --rows"
        )
    fitted, asked = ([probed.read(each, options.item) for each in some] for some in (fit, ask))
    labels, right = labels_of(fit, options.label), labels_of(ask, options.label)
    choices = [None if options.choices is None else _offered(each, options.choices) for each in ask]
    said = {
        name: answers(probed.means(encoder, fitted), labels, probed.means(encoder, asked), choices)
        for name, encoder in (("random", probed.as_drawn()), ("pretrained", probed.as_trained()))
    }
    metric = Accuracy()
    counts = {
        name: np.array([[float(a == b)] for a, b in zip(some, right, strict=True)])
        for name, some in said.items()
    }
    scores = {name: estimate(metric, some) for name, some in counts.items()}
    gained = difference(metric, counts["pretrained"], counts["random"])
    usual = Counter(labels).most_common(1)[0][0]
    row = {
        "stage": options.stage or config.name,
        "objective": None if config.objective is None else config.objective.kind,
        "run": options.run,
        "data": str(options.data),
        "label": options.label,
        "fitted_rows": len(fit),
        "asked_rows": len(ask),
        "classes": len({*labels}),
        "most_frequent": float(np.mean([name == usual for name in right])),
        "probe_random": scores["random"].value,
        "probe_pretrained": scores["pretrained"].value,
        "difference": gained.value,
        "interval": gained.interval,
    }
    keep(options.out, "stage", [row])
    sys.stdout.write(f"{row['stage']}: {_told(scores, gained)}\n")


def _offered(record: Record, column: str) -> list[str]:
    value: Any = record.values.get(column)
    if not isinstance(value, list) or not value:
        raise DataError(f"{record.place}: {column} is no list of labels: name the column of one")
    return [str(each) for each in value]


def _told(scores: dict[str, Estimate], gained: Estimate) -> str:
    interval = gained.interval or (gained.value, gained.value)
    return (
        f"{scores['pretrained'].value:.3f} pretrained, {scores['random'].value:.3f} random; "
        f"{gained.value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f}) on the same "
        f"{gained.rows:,} rows"
    )


if __name__ == "__main__":
    sys.exit(main())
