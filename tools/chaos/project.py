"""A checkout to submit from, whose trainer can be spoiled: see `tools.chaos.injected`."""

import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).absolute().parents[2]
_MAIN: Final = """\
from train.preemption import quiet_until_asked

if __name__ == "__main__":
    quiet_until_asked()

import os
import sys

from train.real_main import BEAT, import_rest, main
from tools.chaos import injected

if __name__ == "__main__":
    BEAT.wait_until_needed(import_rest)
    injected.into(os.environ)
    sys.exit(main())
"""
"""Does what `train.__main__` does, and spoils between."""


def make_project(directory: Path) -> None:
    """Make it, of links to this checkout.

    Args:
        directory: to be made.
    """
    (directory / "train").mkdir(parents=True)
    for name in ("model", "parallel", "tools", "slurm", "configs"):
        (directory / name).symlink_to(REPOSITORY / name)
    for path in (REPOSITORY / "train").iterdir():
        name = "real_main.py" if path.name == "__main__.py" else path.name
        if name != "__pycache__":
            (directory / "train" / name).symlink_to(path)
    (directory / "train/__main__.py").write_text(_MAIN)
    (directory / ".venv").symlink_to(Path(sys.prefix))
