"""The directory of a run: who owns it, and what lies where."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from train.config import RunConfig
from train.config_files import differences, dump
from train.errors import RunDirectoryError

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.json"
SUMMARY = "summary.json"


def claim(config: RunConfig, *, write: bool) -> Path:
    """Check that the directory is new or holds this very run, and make it.

    Args:
        config: with its precision resolved.
        write: whether this rank creates the directory and stores the configuration.

    Raises:
        RunDirectoryError: another run or other files are there; nothing has been touched.
    """
    directory = Path(config.run_directory)
    stored = directory / CONFIG
    if stored.exists():
        _refuse_other_run(config, stored)
    elif directory.is_dir() and any(
        not entry.name.startswith("slurm-") for entry in directory.iterdir()
    ):
        raise RunDirectoryError(
            f"{directory} holds files but no run: choose another run_directory, or empty it"
        )
    elif directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"{directory} is a file: choose another run_directory")
    if write:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = stored.with_suffix(".tmp")
        temporary.write_text(dump(config))
        temporary.replace(stored)
    return directory


def _refuse_other_run(config: RunConfig, stored: Path) -> None:
    try:
        owner = RunConfig.model_validate(yaml.safe_load(stored.read_text()))
    except (ValidationError, yaml.YAMLError):
        raise RunDirectoryError(
            f"{stored} is not a configuration that this version understands: choose another "
            "run_directory, or continue the run with the version that began it"
        ) from None
    changed = differences(owner.identity(), config.identity())
    if changed:
        raise RunDirectoryError(
            f"{stored.parent} holds a different run; choose another run_directory, or undo:\n"
            + "\n".join(f"  {change}" for change in changed)
        )
