"""The directory of a run: who owns it, and what lies where."""

import os
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from train.config import RunConfig
from train.config_files import differences, dump, from_stored
from train.errors import RunDirectoryError

CONFIG = "config.yaml"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.json"
SUMMARY = "summary.json"
CHOICE = "pretrain.json"
"""What `tools.pretrain` chose, before the run begins."""


def check(config: RunConfig) -> Path:
    """Check that the directory is new or holds this very run; nothing is touched.

    Args:
        config: with its precision resolved.

    Raises:
        RunDirectoryError: another run or other files are there.
    """
    directory = Path(config.run_directory)
    stored = directory / CONFIG
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"{directory} is a file: choose another run_directory")
    if stored.exists():
        try:
            document = yaml.safe_load(stored.read_text())
        except yaml.YAMLError:
            document = None
        refuse_other_run(config, document, str(directory))
    elif directory.is_dir() and any(
        not entry.name.startswith(("slurm-", f".{CONFIG}", LOCK, CHOICE, f".{CHOICE}"))
        for entry in directory.iterdir()
    ):
        raise RunDirectoryError(
            f"{directory} holds files but no run: choose another run_directory, or empty it"
        )
    return directory


def hold(directory: Path) -> FileLock:
    """A lock on a run directory, taken if it exists; before anything in it is looked at.

    Returns:
        A lock to keep until the run ends; a killed process lets go of it by itself.

    Raises:
        RunDirectoryError: another process holds it.
    """
    lock = FileLock(directory / LOCK, timeout=0)
    # One that cannot be written is told when the run claims it.
    if directory.is_dir() and os.access(directory, os.W_OK):
        try:
            lock.acquire()
        except Timeout:
            raise _in_use(directory) from None
    return lock


def claim(config: RunConfig, lock: FileLock) -> None:
    """Make the directory this run's; one rank calls it, after all have checked.

    Args:
        config: of the run.
        lock: from `hold`.

    Raises:
        RunDirectoryError: as `check`; or the directory cannot be written, or is in use.
    """
    directory = check(config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        temporary = directory / f".{CONFIG}.tmp"
        temporary.write_text(dump(config))
        temporary.replace(directory / CONFIG)
    except Timeout:
        raise _in_use(directory) from None
    except OSError as error:
        raise RunDirectoryError(
            f"{directory} cannot be written ({error.strerror}): choose another run_directory"
        ) from None


def _in_use(directory: Path) -> RunDirectoryError:
    return RunDirectoryError(
        f"{directory} is in use by another process: wait for it, or choose another run_directory"
    )


def refuse_other_run(config: RunConfig, stored: Any, place: str) -> None:
    """Refuse to go on where another run has been.

    Args:
        config: of this run.
        stored: the configuration found there, as a document.
        place: what to call the place.

    Raises:
        RunDirectoryError: it is of another run, or of a version that this one does not understand.
    """
    try:
        owner = from_stored(RunConfig, stored)
    except ValidationError:
        raise RunDirectoryError(
            f"{place} has a configuration that this version does not understand: choose another "
            "place, or continue the run with the version that began it"
        ) from None
    changed = differences(owner.identity(), config.identity())
    if changed:
        raise RunDirectoryError(
            f"{place} holds a different run: delete it, name another one, or undo\n"
            + "\n".join(f"  {change}" for change in changed)
        )
