"""Whose a run's directory is: seen to be its own, leased, and made so."""

import contextlib
from collections.abc import Generator, Sequence

from train.checkpoint.directory import CHECKPOINTS_NAME, latest, withdraw
from train.config import RunConfig
from train.config_files import differences, dump, from_stored, read_file
from train.errors import InUseError, RunDirectoryError, StorageError
from train.mirror import Mirror
from train.optim import learning_rate
from train.plain_yaml import MOST_BYTES, YamlError
from train.plain_yaml import parse as parse_yaml
from train.run_directory import RunDirectory
from train.storage.lease import Lease
from train.storage.place import Place


def stored_config(directory: RunDirectory) -> RunConfig:
    """The configuration of the run in a directory.

    Raises:
        ConfigError: this version does not understand it, or it is missing.
    """
    return from_stored(RunConfig, read_file(directory.config, is_stored=True), place=str(directory))


def stored_elsewhere(config: RunConfig) -> str | None:
    """That `checkpoint.directory` lies in a store, which a mirror is for; None if it does not."""
    with contextlib.suppress(StorageError):  # told where it is used
        place = Place.parse(config.checkpoint.directory or "", config.storage)
        if place.is_remote:
            return f"checkpoint.directory: {place} is in a store: {_mirrored(place)}"
    return None


def _mirrored(place: Place) -> str:
    """How checkpoints in a store become those of a mirror."""
    return (
        f"set run_mirror={place} instead, which holds the run's files, too; checkpoints that are "
        f"there belong into {place / CHECKPOINTS_NAME}"
    )


def refuse_to_begin_anew(config: RunConfig, checkpoints: Place) -> None:
    """Refuses to begin a run in its own directory whose checkpoints have lain elsewhere.

    Raises:
        RunDirectoryError: there are some.
    """
    directory = config.directory
    if not directory.config.exists():
        return
    owner = stored_config(directory)
    before = owner.checkpoints_of(directory)
    if str(before) == str(checkpoints) or latest(before) is None:
        return
    if owner.run_mirror is None and before.is_remote:
        remedy = _mirrored(before)
    else:
        key = "run_mirror" if owner.run_mirror is not None else "checkpoint.directory"
        remedy = f"set {key}={owner.run_mirror or owner.checkpoint.directory or 'null'} to go on"
    raise RunDirectoryError(
        f"{directory} holds a run whose checkpoints lie in {before}, and {checkpoints} has none: "
        f"{remedy}, or choose another run_directory"
    )


def check(config: RunConfig) -> None:
    """Checks that the run directory is new or holds this very run; nothing is touched.

    Args:
        config: with its precision resolved.

    Raises:
        RunDirectoryError: another run or other files are there.
    """
    directory = config.directory
    if directory.path.exists() and not directory.path.is_dir():
        raise RunDirectoryError(f"{directory} is a file: choose another run_directory")
    if directory.config.exists():
        refuse_other_run(config, stored_config(directory), directory)
    elif directory.holds_other_files:
        raise RunDirectoryError(
            f"{directory} holds files but no run: choose another run_directory, or empty it"
        )


def leases_of(config: RunConfig, checkpoints: Place) -> list[Lease]:
    """What one process must have, none of which it has yet, to write what a run leaves."""
    leases = [
        Lease(place, instead=f"choose another {key}")
        for key, place in (
            ("run_directory", Place.of(config.directory.path)),
            ("checkpoint.directory" if config.mirror is None else "run_mirror", checkpoints),
        )
    ]
    # One directory may serve for both.
    return leases[: len({lease.real_name for lease in leases})]


def mirror_of(config: RunConfig) -> Mirror | None:
    """The mirror of the run's directory, if it is to have one."""
    place = config.mirror
    return None if place is None else Mirror(place, config.directory)


def claim(
    config: RunConfig,
    leases: Sequence[Lease],
    checkpoints: Place,
    newest: Place | None,
    mirror: Mirror | None = None,
) -> str | None:
    """Makes the directory this run's; one rank calls it, after all are prepared.

    Args:
        config: of the run.
        leases: from `leases_of`.
        checkpoints: where they lie.
        newest: of them, as it was found there.
        mirror: of the directory.

    Returns:
        What is to be said of the mirror, if anything.

    Raises:
        RunDirectoryError: as `check`; a directory cannot be written; or the mirror is another
            run's.
        InUseError: another process writes there, or has done so since.
        StorageError: a store refuses, or does not answer.
    """
    for lease in leases:
        with _writing(lease):
            lease.take()
        if lease is leases[0]:
            check(config)
    # Until now nobody was kept out of what was not there when this run began to prepare.
    _require_newest(checkpoints, newest)
    if mirror is not None:
        _refuse_other_mirror(config, mirror)
    with _writing(leases[-1]):
        # Who was completing one may wake when this run has removed what it had written of it.
        withdraw(checkpoints, guard=lambda: [lease.check() for lease in leases])
    _require_newest(checkpoints, newest)
    summary = config.directory.summary
    with _writing(leases[0]):
        # First: with it whatever is brought is a run's, also if that is cut short.
        Place.of(config.directory.config).write(dump(config).encode())
    brought = None if mirror is None else mirror.bring()
    with _writing(leases[0]):
        if mirror is not None and summary.exists():
            mirror.forget(summary)
        summary.unlink(missing_ok=True)  # of a run that is extended
    return brought


def _require_newest(checkpoints: Place, newest: Place | None) -> None:
    if latest(checkpoints) != newest:
        raise InUseError(
            f"another run has saved to {checkpoints} while this one prepared: start again to go on "
            "from there"
        )


def _refuse_other_mirror(config: RunConfig, mirror: Mirror) -> None:
    place = mirror.config
    if place is not None:
        try:
            stored = parse_yaml(place.read(limit_bytes=MOST_BYTES))
        except YamlError as error:
            raise RunDirectoryError(
                f"{place} is no configuration: {error}; choose another run_mirror"
            ) from None
        owner = from_stored(RunConfig, stored, place=str(place))
        refuse_other_run(config, owner, mirror.place)


@contextlib.contextmanager
def _writing(lease: Lease) -> Generator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise RunDirectoryError(
            f"{lease.directory} cannot be written ({error.strerror}): {lease.instead}"
        ) from None


def refuse_other_run(config: RunConfig, owner: RunConfig, place: Place | RunDirectory) -> None:
    """Refuses to go on where another run has been.

    Args:
        config: of this run.
        owner: the configuration found there.
        place: where it was found.

    Raises:
        RunDirectoryError: it is of another run.
    """
    if config.data.pack == "stream" and "pack" not in owner.data.model_fields_set:
        raise RunDirectoryError(
            f"{place} holds a run from before data.pack: if it read documents, go on with "
            "data.pack=fit; one on sequences of one length goes on with the version that began it "
            f"alone, and another run_directory begins with its weights (init_from={place})"
        )
    there, here = owner.identity(), config.identity()
    names = list(owner.data.mixed)
    if names == list(config.data.mixed)[: len(names)]:
        # What they give to steps that were made is held against the checkpoint.
        del there["data"]["sources"], here["data"]["sources"]
    if config.steps > owner.steps:
        _require_rate(config, owner, place)
        for identity in (there, here):
            del identity["steps"], identity["optim"]["schedule_steps"]
    changed = differences(there, here)
    if changed:
        raise RunDirectoryError(
            f"{place} holds a different run: delete it, name another one, or undo\n"
            + "\n".join(f"  {change}" for change in changed)
        )


def _require_rate(config: RunConfig, owner: RunConfig, place: Place | RunDirectory) -> None:
    """Refuses to extend a run by guessing what its learning rate is to do."""
    if config.optim.schedule == "constant" or config.optim.schedule_steps is not None:
        return
    ends = owner.schedule_steps
    last, anew = (
        learning_rate(optim, step=owner.steps + 1, total_steps=config.steps)
        for optim in (config.optim.model_copy(update={"schedule_steps": ends}), config.optim)
    )
    raise RunDirectoryError(
        f"{place} holds a run of {owner.steps} steps, which steps={config.steps} extends: say what "
        f"its learning rate does then; optim.schedule_steps={ends} goes on as planned, with the "
        f"last rate after it ({last:.3g} at step {owner.steps + 1}), optim.schedule_steps="
        f"{config.steps} plans it anew over all steps ({anew:.3g})"
    )
