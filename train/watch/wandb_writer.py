"""Weights & Biases, kept at arm's length: a daemon thread that training never waits for.

wandb blocks where a training loop must not: its import takes half a second, `init` waits for a
server (up to 100 s when there is none), `finish` uploads without a bound, and its exit handler
waits for its service process. So everything it does happens in one thread, fed by a queue, and
what does not end in time is cut off. Whatever W&B misses is still in `metrics.jsonl`.
"""

import contextlib
import os
import queue
import secrets
import threading
from typing import Any, Final, Literal

import psutil

from train.config import RunConfig
from train.watch.config import WatchConfig
from train.watch.metrics import (
    GIB_BYTES,
    BaselineRecord,
    LeftOutRecord,
    NoteRecord,
    Record,
    RunRecord,
    SampleRecord,
    ScoreRecord,
    TrainRecord,
    ValidationRecord,
    WholeValidationRecord,
    perplexity,
)

_SWITCHES: Final = ("WANDB_DISABLED", "WANDB_MODE")

MAX_WAITING = 10_000
"""Records that may wait for W&B; beyond that they are dropped, so that memory stays bounded."""

INIT_SECONDS = 12.0
"""How long an online run waits for the server."""

FINISH_SECONDS = 20.0
"""How long `finish` may take. Longer than `INIT_SECONDS`, so that a short run without a server
still gets its offline files."""

CUT_OFF_SECONDS = 2.0
"""How long the thread may take to notice that its service was killed."""


Mode = Literal["disabled", "offline", "online"]

_MODES: Final[dict[str, Mode]] = {
    **{"disabled": "disabled", "offline": "offline", "dryrun": "offline"},
    **{"online": "online", "run": "online"},
}
_OPENNESS: Final = ("disabled", "offline", "online")
"""What less leaves this host comes first."""


def mode_of(watch: WatchConfig) -> tuple[Mode, str | None]:
    """Whether and where W&B writes, and what to say if its own switches say another thing.

    `WANDB_MODE` and `WANDB_DISABLED` hold where `watch.wandb` is not set. Where both are, the one
    that sends less is obeyed.
    """
    mode: Mode
    switches = {name: os.environ.get(name, "").strip().lower() for name in _SWITCHES}
    if switches["WANDB_DISABLED"] in ("1", "true", "t", "yes", "y", "on"):
        switch, mode = "WANDB_DISABLED", "disabled"
    elif switches["WANDB_MODE"] in _MODES:
        switch, mode = "WANDB_MODE", _MODES[switches["WANDB_MODE"]]
    elif switches["WANDB_MODE"]:
        return watch.wandb, (
            f"WANDB_MODE={switches['WANDB_MODE'][:40]} is none of {', '.join(_MODES)}: W&B is "
            f"{watch.wandb}, as watch.wandb says"
        )
    else:
        return watch.wandb, None
    if "wandb" not in watch.model_fields_set:
        return mode, None
    chosen: Mode = mode if _OPENNESS.index(mode) < _OPENNESS.index(watch.wandb) else watch.wandb
    if mode == watch.wandb:
        return chosen, None
    said = f"{switch}={os.environ[switch]}"
    return chosen, f"W&B is {chosen}: {said}, and watch.wandb is {watch.wandb}; the lesser holds"


def run_id_of(saved: str | None) -> str:
    """The id of a W&B run: what a checkpoint has kept, or a fresh one; ours, so that it can travel.

    `WANDB_RUN_ID` names a new run; with `WANDB_RESUME=never` each start of a run is a new one.
    """
    if saved is not None and os.environ.get("WANDB_RESUME") != "never":
        return saved
    return os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)


class WandbWriter:
    """Writes one W&B run from a thread of its own; no method raises or waits, save `finish`.

    Online, an unreachable server turns the run into an offline one, which
    `wandb sync RUN/wandb/offline-*` uploads later. What W&B reads from the environment holds where
    the configuration does not say another thing.

    Args:
        config: of the run; shown with it.
        run_id: id of the run; the same after every restart, see `run_id_of`.
        mode: see `mode_of`.
    """

    def __init__(
        self, config: RunConfig, *, run_id: str, mode: Literal["offline", "online"]
    ) -> None:
        self._config = config
        self._mode: Literal["offline", "online"] = mode
        self._directory = os.environ.get("WANDB_DIR") or str(config.directory)
        self._run_id = run_id
        # Records, and at the end the exit code.
        self._queue: queue.Queue[Record | int] = queue.Queue(maxsize=MAX_WAITING)
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._dropped = False
        self._cut_off = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="wandb-writer", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Queues a record, if it is of a kind that W&B shows."""
        if not isinstance(record, RunRecord | NoteRecord):
            self._put(record)

    def take_notes(self) -> list[str]:
        """What the thread has to say to the user since the last call."""
        notes = []
        while not self._notes.empty():
            notes.append(self._notes.get_nowait())
        return notes

    def finish(self, *, exit_code: int = 0) -> None:
        """Ends the run; returns within the bound, leaving nothing behind that could hang the exit.

        Args:
            exit_code: non-zero marks the run as failed.
        """
        self._put(exit_code)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._cut_off.set()
            _kill_services()
            self._thread.join(CUT_OFF_SECONDS)
            self._notes.put(
                f"W&B did not finish within {FINISH_SECONDS:.0f} s and was cut off; "
                "metrics.jsonl has every record"
            )

    def _put(self, item: Record | int) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            if not self._dropped:
                self._dropped = True
                self._notes.put(
                    "W&B does not keep up; it misses records that metrics.jsonl still has"
                )

    def _serve(self) -> None:
        try:
            self._write_run()
        except Exception as error:
            if not self._cut_off.is_set():
                self._notes.put(f"W&B stopped: {_describe(error)}; metrics.jsonl has every record")

    def _write_run(self) -> None:
        # wandb's own telemetry waits up to 30 s for its server when the process exits.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Imported here because the import alone takes half a second of a first step.
        import wandb

        try:
            run = self._open_run(wandb)
            run.define_metric("step", hidden=True)
            # W&B's own step starts again at 0 when a run resumes offline.
            run.define_metric("*", step_metric="step")
            samples: list[list[Any]] = []
            while not isinstance(item := self._queue.get(), int):
                if isinstance(item, SampleRecord):
                    samples.append([item.step, item.prompt, item.text])
                    table = wandb.Table(columns=["step", "prompt", "text"], data=samples)
                    run.log({"step": item.step, "samples": table})
                else:
                    run.log({"step": item.step, **_values(item)})
            run.finish(exit_code=item)
        finally:
            # Ends the service here, within the bound: wandb's own exit handler waits without one.
            with contextlib.suppress(Exception):
                wandb.teardown()

    def _open_run(self, wandb: Any) -> Any:
        if self._mode == "online":
            try:
                return self._init(wandb, "online")
            except Exception as error:
                self._notes.put(
                    f"W&B is not reachable, logging offline: {_describe(error)}; "
                    f"later: wandb sync {self._directory}/wandb/offline-*"
                )
                # The service keeps the run id of the attempt that failed; a new one has none.
                wandb.teardown()
        return self._init(wandb, "offline")

    def _init(self, wandb: Any, mode: Literal["offline", "online"]) -> Any:
        # Before `init`, which would otherwise ask for a key on a terminal.
        wandb.setup(settings=wandb.Settings(silent=True, mode=mode))
        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            init_timeout=INIT_SECONDS,
            # Its own bound comes first: an upload cut off by wandb ends tidier than one by us.
            finish_timeout=0.75 * FINISH_SECONDS,
            x_stats_sampling_interval=30.0,
        )
        os.makedirs(self._directory, exist_ok=True)
        resume = os.environ.get("WANDB_RESUME", "allow").lower()
        return wandb.init(
            mode=mode,
            dir=self._directory,
            resume=resume if resume in ("allow", "must", "never", "auto") else "allow",
            settings=settings,
            project=self._unless("WANDB_PROJECT", "wandb_project"),
            entity=self._unless("WANDB_ENTITY", "wandb_entity"),
            name=os.environ.get("WANDB_NAME") or self._config.name,
            id=self._run_id,
            config=self._config.model_dump(mode="json"),
        )

    def _unless(self, variable: str, key: str) -> str | None:
        """What the configuration says; None where only W&B's variable does, which it then reads."""
        watch = self._config.watch
        if os.environ.get(variable) and key not in watch.model_fields_set:
            return None
        return getattr(watch, key)


def _values(record: Record) -> dict[str, float]:
    """The record under the names that W&B groups its charts by."""
    values: dict[str, float | None] = {}
    if isinstance(record, TrainRecord | ValidationRecord):
        values = {
            f"{record.kind}/loss": record.loss,
            f"{record.kind}/loss_first_of_span": record.first_of_span_loss,
            f"{record.kind}/loss_other": record.other_loss,
        }
    match record:
        case TrainRecord():
            values |= {
                "train/learning_rate": record.learning_rate,
                "train/gradient_norm": record.gradient_norm,
                "speed/tokens_per_second": record.tokens_per_second,
                "speed/data_wait_fraction": record.data_wait_fraction,
                "speed/memory_gib": record.memory_bytes / GIB_BYTES,
            }
        case ValidationRecord():
            values["validation/perplexity"] = perplexity(record.loss)
            for source, loss in (record.by_source or {}).items():
                values[f"validation/loss/{source}"] = loss
        case WholeValidationRecord():
            values["validation/loss_whole_split"] = record.loss
        case ScoreRecord():
            values[f"score/{record.task}"] = record.score
        case LeftOutRecord():
            values["train/left_out"] = 1.0
        case BaselineRecord():
            values["validation/unigram_entropy"] = record.unigram_entropy
        case _:
            pass
    return {name: value for name, value in values.items() if value is not None}


def _describe(error: Exception) -> str:
    """One line about an error, without the API key."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0][:200]}"
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text


def _kill_services() -> None:
    """Kills this process's wandb-core: wandb's exit handler would wait for it without a bound."""
    for child in psutil.Process().children():
        try:
            if child.name().startswith("wandb-core"):
                child.kill()
        except psutil.NoSuchProcess:
            continue
