"""A checkout to submit from, whose trainer is another, or can be spoiled."""

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
"""Does what `train.__main__` does, and spoils between: see `tools.chaos.injected`."""


def make_project(directory: Path, *, main: str | None = _MAIN) -> None:
    """Make it, of links to this checkout.

    Args:
        directory: to be made; it may be there, without these names.
        main: what `python -m train` runs there; None for what it runs here.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("model", "parallel", "train", "tools", "slurm", "configs"):
        (directory / name).symlink_to(REPOSITORY / name)
    (directory / ".venv").symlink_to(Path(sys.prefix))
    if main is not None:
        replace_main(directory, main)


def replace_main(directory: Path, main: str) -> None:
    """Have `python -m train` run something else in a checkout of links."""
    package = directory / "train"
    package.unlink()
    package.mkdir()
    for path in (REPOSITORY / "train").iterdir():
        name = "real_main.py" if path.name == "__main__.py" else path.name
        if name != "__pycache__":
            (package / name).symlink_to(path)
    (package / "__main__.py").write_text(main)
