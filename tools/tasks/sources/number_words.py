"""Numbers and their names."""

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.packages.kept import last_line, run
from tools.packages.used import Packages
from tools.tasks.build import Row
from train.errors import DataError

_COUNT: Final = 24_000
# In a process of its own: a wheel is read, never installed.
_SPELL: Final = (
    "import json, sys; from num2words import num2words; "
    "json.dump([num2words(n) for n in json.load(open(sys.argv[1]))], sys.stdout)"
)


def words(packages: Packages) -> Iterator[Row]:
    """English words for numbers of one to six digits, about as many of each."""
    wheel = packages.pypi("num2words", "0.5.14", licence="LGPL-2.1-or-later")
    chance = random.Random(0)
    numbers = sorted({int(10 ** chance.uniform(0, 6)) for _ in range(_COUNT)})
    for number, spelled in zip(numbers, _spelled(numbers, wheel), strict=True):
        yield {"unit": str(number), "number": f"{number:,}", "words": spelled}


def _spelled(numbers: list[int], wheel: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        asked = Path(scratch) / "numbers.json"
        asked.write_text(json.dumps(numbers))
        done = run(
            [sys.executable, "-c", _SPELL, str(asked)], Path(scratch), {"PYTHONPATH": str(wheel)}
        )
    if done.returncode:
        raise DataError(f"{wheel} does not spell numbers ({last_line(done.stderr)}); delete it.")
    return json.loads(done.stdout)
