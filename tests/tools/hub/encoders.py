"""`python -m tests.tools.hub.encoders`: classes of transformers that become encoders of ours.

Writes a row for each into `out/encoders.json`, beside those of `tools.probe`: `class`, `variant`
and `feature_difference`, the largest between its features and ours of random weights.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.tools.hub import test_hearing, test_pictures, test_watching
from tests.tools.hub.__main__ import imported
from tests.tools.hub.kinds import DECODERS, IMPORTED
from tools.arguments import Parser, output_file
from tools.command import command_line
from tools.probe.kept import DEFAULT_OUT, keep

WITHIN = 1e-5


def of_text(name: str, place: Path) -> float:
    """Largest difference of a class that reads text."""
    found = imported(name, place).hidden_difference
    assert found is not None, "of an import"
    return found


def variants() -> list[tuple[str, str, Callable[[str, Path], float]]]:
    """Class, variant, and what compares it."""
    text = {n: kind for n, kind in IMPORTED.items() if not n.startswith(DECODERS)}
    found = [(kind[0], name, of_text) for name, kind in text.items()]
    for module in (test_pictures, test_hearing, test_watching):
        found += [(kind[0], name, module.difference) for name, kind in module.KINDS.items()]
    return found


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Compare all; the exit status says whether each is within its bound."""
    parser = Parser(prog="python -m tests.tools.hub.encoders", description=__doc__)
    parser.add_argument("--out", type=output_file, default=Path(DEFAULT_OUT))
    options = parser.parse_args(arguments)
    rows: list[dict[str, str | float]] = []
    for class_name, name, difference in variants():
        with tempfile.TemporaryDirectory() as place:
            found = difference(name, Path(place))
        rows.append({"class": class_name, "variant": name, "feature_difference": found})
        sys.stdout.write(f"{class_name:36} {name:32} {found:.1e}\n")
    keep(options.out, "variant", rows)
    return int(any(float(row["feature_difference"]) > WITHIN for row in rows))


if __name__ == "__main__":
    sys.exit(main())
