"""A run in W&B's service, a process that may die at any time: opened, given rows, finished.

The service, `wandb-core`, has a session of its own: what a terminal or a shell sends to the ranks
does not reach it. But Slurm's SIGTERM goes to all that descends from a job's step, and the service
then ends at once, with some 30 KiB of rows that it has not written. Nor can it be made to stay: it
takes the signal even where it is blocked. So whoever has a session opens another one then, and
gives it the rows again that W&B lacks.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from train.config import RunConfig
from train.storage.place import Place
from train.watch.wandb_run.rows import AXES, Row

SERVICE: Final = "wandb-core"
_TAIL_BYTES: Final = 1 << 26
"""Read of a file's end: far more than the rows that are kept for another service."""
_BLOCK_BYTES: Final = 32768
_HEADER_BYTES: Final = 7
"""Of a file, of each block's records; both happen to be as long."""
_WHOLE, _FIRST, _LAST = 1, 2, 4
_SOCKET: Final = re.compile(r"^wandb(?:_symon)?-(\d{1,9})-(\d{1,9})-\d+(?:\.sock)?$")
"""Of a service or of its watcher, by the numbers of processes."""
_LEFT_SECONDS: Final = 86_400.0


class Session:
    """A run that W&B's service has open; any method raises whatever wandb does.

    Args:
        config: of the run; shown with it.
        run_id: id of the run.
        mode: "offline" writes a file that nothing uploads by itself.
        init_seconds: how long the server may take to answer.
        finish_seconds: how long `finish` may upload; 0 for without end.

    Attributes:
        known_step: last step that W&B has a row of; -1 without one. Offline it is that of this
            session's own file, so -1.
        known_left_out: last left-out step that W&B was told of; -1 without one, or offline.
        file: what the service writes on this host.
        url: of the run; None offline.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        run_id: str,
        mode: Literal["offline", "online"],
        init_seconds: float,
        finish_seconds: float = 0.0,
    ) -> None:
        _prepare_variables()
        wandb = self._wandb = _imported(scratch_of(config, run_id))
        # Before `init`, which would otherwise ask for a key on a terminal.
        wandb.setup(settings=wandb.Settings(silent=True, mode=mode))
        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            init_timeout=init_seconds,
            finish_timeout=finish_seconds,
            x_stats_sampling_interval=30.0,
            # Else it returns the run of a service that has died.
            reinit="create_new",
        )
        directory = wandb_directory(config)
        os.makedirs(directory, exist_ok=True)
        resume = os.environ.get("WANDB_RESUME", "allow").lower()
        self._run: Any = wandb.init(
            mode=mode,
            dir=directory,
            resume=resume if resume in ("allow", "must", "never", "auto") else "allow",
            settings=settings,
            project=_unless(config, "WANDB_PROJECT", "wandb_project"),
            entity=_unless(config, "WANDB_ENTITY", "wandb_entity"),
            name=os.environ.get("WANDB_NAME") or config.name,
            id=run_id,
            config=config.model_dump(mode="json"),
        )
        self.file = Path(self._run.settings.sync_file)
        self.url: str | None = self._run.url
        self.known_step = -1 if mode == "offline" else self._known_step()
        is_known = mode == "online" and self._run.resumed
        self.known_left_out = int(self._run.summary.get("train/left_out", -1)) if is_known else -1
        for axis in sorted(set(AXES.values())):
            self._run.define_metric(axis, hidden=True)
        for group, axis in AXES.items():
            self._run.define_metric(f"{group}/*", step_metric=axis)

    def _known_step(self) -> int:
        if self._run.starting_step:
            return self._run.starting_step - 1
        # Not every server tells how far a run has come, but its last values.
        return int(self._run.summary.get("step", -1)) if self._run.resumed else -1

    def log(self, row: Row) -> None:
        """Hand a row over."""
        values = {"step": row.step, **row.values}
        if row.samples:
            columns = ["step", "prompt", "text"]
            data = [list(sample) for sample in row.samples]
            values["samples"] = self._wandb.Table(columns=columns, data=data)
        self._run.log(values, step=row.step, commit=True)
        for title, text in row.alerts:
            self._run.alert(title=title[:60], text=text, level="WARN")

    def keep(self, files: Iterable[Path]) -> None:
        """Hand over files of the run, as an artifact; a version that W&B has is no new one."""
        artifact = self._wandb.Artifact(f"run-{self._run.id}", type="run")
        for file in files:
            artifact.add_file(str(file), policy="immutable")
        self._run.log_artifact(artifact)

    def finish(self, *, exit_code: int) -> None:
        """Have all written, or uploaded, within the bound.

        Args:
            exit_code: non-zero marks the run as failed.
        """
        self._run.finish(exit_code=exit_code)


def _imported(scratch: Path) -> Any:
    """The package; imported when needed, because that takes half a second of a first step.

    It makes directories for temporary files as it is imported, which a process that is killed
    leaves: so they lie where the run's next start finds them.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        import wandb
    finally:
        tempfile.tempdir = before
    return wandb


def clear_up(config: RunConfig, run_id: str) -> None:
    """Remove temporary files of starts that were killed; the run's own process alone may call it.

    Of services that were killed the sockets lie in the host's directory: those of a day and more go
    whose processes are no more.
    """
    shutil.rmtree(scratch_of(config, run_id), ignore_errors=True)
    before = time.time() - _LEFT_SECONDS
    for path in Path(tempfile.gettempdir()).glob("wandb*"):
        named = _SOCKET.match(path.name)
        with contextlib.suppress(OSError):
            status = path.lstat()
            is_left = status.st_uid == os.getuid() and status.st_mtime < before
            if is_left and named and not any(map(psutil.pid_exists, map(int, named.groups()))):
                Place.of(path).remove()


def scratch_of(config: RunConfig, run_id: str) -> Path:
    """Where a run's temporary files for W&B lie."""
    return Path(wandb_directory(config)) / "wandb" / f"tmp-{run_id}"


def end_services() -> None:
    """End the service, if it lives, without what wandb's own exit handler would wait for.

    It also keeps the run's id of an attempt that failed: the next session has a service of its own.
    """
    # A service that was killed makes wandb call `sys.exit`.
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def service_lives() -> bool:
    """Whether this process has a service that has not died."""
    return any(True for _ in _services())


def kill_services() -> None:
    """Kill this process's service: wandb's exit handler would wait for it without a bound."""
    for service in _services():
        with contextlib.suppress(psutil.NoSuchProcess):
            service.kill()


def _services() -> Iterator[psutil.Process]:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith(SERVICE) and child.status() != psutil.STATUS_ZOMBIE:
                yield child


def wandb_directory(config: RunConfig) -> str:
    """In which `wandb/` lies."""
    return os.environ.get("WANDB_DIR") or str(config.directory)


def last_step_of(file: Path) -> int:
    """The last step of which a service has written a row to its file; -1 if its end has none.

    The file is a LevelDB log of protobuf messages: records in fragments, none of which crosses the
    border of a block. What a service that died has left ends anywhere.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    # Looked up by name: the module picks its classes at run time, by the version of protobuf.
    record_class: Any = vars(wandb_internal_pb2)["Record"]
    try:
        with file.open("rb") as source:
            begin = max(0, source.seek(0, os.SEEK_END) - _TAIL_BYTES) // _BLOCK_BYTES * _BLOCK_BYTES
            source.seek(begin)
            content = source.read()
    except OSError:
        return -1
    last, offset = -1, 0 if begin else _HEADER_BYTES
    payload: bytes | None = None  # of a record whose beginning was seen
    while offset + _HEADER_BYTES <= len(content):
        left = _BLOCK_BYTES - offset % _BLOCK_BYTES
        if left < _HEADER_BYTES:
            offset += left
            continue
        length = int.from_bytes(content[offset + 4 : offset + 6], "little")
        kind = content[offset + 6]
        offset += _HEADER_BYTES + length
        if offset > len(content):
            break
        piece = content[offset - length : offset]
        if kind in (_WHOLE, _FIRST):
            payload = piece
        elif payload is not None:
            payload += piece
        if kind in (_WHOLE, _LAST) and payload is not None:
            with contextlib.suppress(DecodeError):  # what a full disk has left
                record = record_class.FromString(payload)
                if record.WhichOneof("record_type") == "history":
                    last = max(last, record.history.step.num)
            payload = None
    return last


def describe(error: BaseException) -> str:
    """One line about an error, without the API key."""
    text = str(error)
    if key := os.environ.get("WANDB_API_KEY"):
        text = text.replace(key, "***")  # before it is cut, which could leave half of it
    lines = text.strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _prepare_variables() -> None:
    # wandb's own telemetry waits up to 30 s for its server when the process exits.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # Without it the service tells errors on the terminal; what looks for it finds the same then.
    if (home := os.path.expanduser("~")) != "~":
        os.environ.setdefault("HOME", home)


def _unless(config: RunConfig, variable: str, key: str) -> str | None:
    """What the configuration says; None where only W&B's variable does, which it then reads."""
    watch = config.watch
    if os.environ.get(variable) and key not in watch.model_fields_set:
        return None
    return getattr(watch, key)
