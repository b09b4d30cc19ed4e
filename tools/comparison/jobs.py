"""Every command of a comparison: what it needs before it, and how it is seen that it has run."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.comparison.plan import CHECKPOINTS, IN_CONTEXT, PRETRAINING, AskedConfig, Plan
from tools.hub.foreign import PART
from tools.tasks.build import MANIFEST_NAME as TASK_MANIFEST
from tools.tasks.recipes import RECIPES
from train.config import RunConfig
from train.config_files import load
from train.data.store.manifest import MANIFEST_NAME
from train.run_directory import TOKENIZER, RunDirectory
from train.tasks.task import load_tasks

ENCODER = "encoder"
"""Where it is imported to, below the data."""
START_SECONDS = 12.0
"""What any command takes before it works."""
_ROWS_A_SECOND = 30.0
_VALIDATION_RECORDS = 40
_VALIDATION_SEQUENCES = 32
_VALIDATIONS = 8
_FIXED_SEQUENCES = 64


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command.

    Attributes:
        name: unlike all others.
        arguments: behind `python -m`.
        after: names of what it needs.
        is_done: whether it has run, now or at an earlier time.
        seconds: expected on one core, start included.
        prepare: called before it starts.
    """

    name: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    is_done: Callable[[], bool]
    seconds: float
    prepare: Callable[[], None] = lambda: None

    @property
    def command(self) -> list[str]:
        """As the system starts it."""
        return [sys.executable, "-m", *self.arguments]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An evaluation of tasks.

    Attributes:
        run: of the model.
        template: number of it.
        demonstrations: before each row.
    """

    run: Path
    template: int = 0
    demonstrations: int = 0

    @property
    def out(self) -> Path:
        """What says that it is over."""
        return self.run / f"asked-{self.template}-{self.demonstrations}.json"

    @property
    def predictions(self) -> Path:
        """Where each row's answer is, once it is over."""
        said = json.loads(self.out.read_text())
        return RunDirectory(self.run).scores / Path(said["checkpoint"]).name / said["setting"]


@dataclass(frozen=True)
class Jobs:
    """All of a comparison.

    Attributes:
        plan: what is compared.
        directory: of its runs.
        steps: of each kind of run.
    """

    plan: Plan
    directory: Path
    steps: dict[str, int]

    @property
    def data(self) -> Path:
        """Of corpora."""
        return Path(self.plan.data)

    def run(self, arm: str, seed: int, kind: str) -> Path:
        """Directory of a run."""
        return self.directory / arm / f"seed_{seed}" / kind

    def config(self, arm: str, seed: int, kind: str) -> list[str]:
        """What `python -m train` is given for a run."""
        steps = self.steps[kind]
        given = [
            str(Path(self.plan.configs) / arm / f"{kind}.yaml"),
            f"name={arm} {seed} {kind}",
            f"run_directory={self.run(arm, seed, kind)}",
            f"seed={seed}",
            f"data.corpus={self.data / ('text' if kind == PRETRAINING else kind)}",
            f"steps={steps}",
            f"optim.warmup_steps={-(-steps // 20)}",
            f"checkpoint={{every_steps: {-(-steps // CHECKPOINTS)}, keep: 1}}",
            f"validation={{every_steps: {max(1, steps // _VALIDATIONS)}, "
            f"sequences: {_VALIDATION_SEQUENCES}}}",
        ]
        if kind != PRETRAINING:
            given.append(f"init_from={self.run(arm, seed, PRETRAINING)}")
        return given

    def checked(self) -> dict[str, RunConfig]:
        """The configuration of each arm and kind of run.

        Raises:
            ConfigError: one of them is wrong, or a task.
        """
        load_tasks(self.tasks)
        return {
            f"{arm}/{kind}": load(RunConfig, self.config(arm, self.plan.seeds[0], kind))
            for arm in self.plan.arms
            for kind in self.steps
        }

    @property
    def tasks(self) -> list[str]:
        """All that are trained on or asked."""
        asked = [self.plan.in_context.asked.tasks]
        for tuning in self.plan.tuning.values():
            asked += [tuning.tasks, tuning.asked.tasks]
        return [*dict.fromkeys(name for names in asked for name in names)]

    def asked(self, arm: str, seed: int, kind: str) -> dict[int, list[Asked]]:
        """Evaluations of a protocol, by number of demonstrations."""
        if kind == IN_CONTEXT:
            run, settings = self.run(arm, seed, PRETRAINING), self.plan.in_context
            shown, templates = settings.demonstrations, settings.asked.templates
        else:
            run, shown = self.run(arm, seed, kind), [0]
            templates = self.plan.tuning[kind].asked.templates
        return {
            count: [Asked(run=run, template=each, demonstrations=count) for each in templates]
            for count in shown
        }

    def fixed(self, arm: str, seed: int) -> Path:
        """Loss of a pretrained model on the tokens that all arms score."""
        return self.run(arm, seed, PRETRAINING) / f"fixed-{self.steps[PRETRAINING]}.json"

    def all(self) -> list[Job]:
        """In the order in which they should run: one seed of all arms after the other."""
        return [
            *self._data(),
            *(
                job
                for seed in self.plan.seeds
                for arm in self.plan.arms
                for job in self._of(arm, seed)
            ),
        ]

    def _data(self) -> Iterator[Job]:
        encoder, text = self.data / ENCODER, self.data / "text"

        def clear() -> None:
            if encoder.exists():  # of a command that was killed
                shutil.rmtree(encoder)

        yield Job(
            name="encoder",
            arguments=("tools.import", self.plan.encoder, str(encoder)),
            is_done=(encoder / PART).exists,
            seconds=START_SECONDS,
            prepare=clear,
        )
        yield Job(
            name="text",
            arguments=(
                *("tools.corpus", "build", *self.plan.text, str(text)),
                *("--tokenizer", str(encoder / TOKENIZER)),
            ),
            after=("encoder",),
            is_done=(text / MANIFEST_NAME).exists,
            seconds=60,
        )
        made = {task.name: Path(task.source.directory) for task in load_tasks(self.tasks)}
        made = {name: path for name, path in made.items() if name in RECIPES}
        yield Job(
            name="tasks",
            arguments=("tools.tasks", "build", *made),
            is_done=lambda: all((path / TASK_MANIFEST).exists() for path in made.values()),
            seconds=60,
        )
        for name, tuning in self.plan.tuning.items():
            out, documents = self.data / name, tuning.documents
            arguments = ["tools.tasks", "corpus", str(out), "--corpus", str(text)]
            arguments += ["--leave-out-long", "--protocol", documents.protocol]
            arguments += ["--validation-records", str(_VALIDATION_RECORDS)]
            own = [f"{task}={n}" for task, n in documents.records_of.items()]
            arguments += ["--records", str(documents.records), *own, "--evenly"]
            arguments += ["--tasks", *tuning.tasks]
            arguments += ["--hold-out", *documents.hold_out] if documents.hold_out else []
            yield Job(
                name=f"{name} documents",
                arguments=tuple(arguments),
                after=("text", "tasks"),
                is_done=(out / MANIFEST_NAME).exists,
                seconds=60,
            )

    def _of(self, arm: str, seed: int) -> Iterator[Job]:
        yield self._trained(arm, seed, PRETRAINING, self.plan.pretraining.step_seconds, "text")
        pretrained = str(self.run(arm, seed, PRETRAINING))
        losses = {self.fixed(arm, seed): [pretrained, "--sequences", str(_FIXED_SEQUENCES)]}
        yield self._asks(arm, seed, PRETRAINING, IN_CONTEXT, self.plan.in_context.asked, losses)
        for kind, tuning in self.plan.tuning.items():
            needs = (f"{kind} documents", f"{arm} {seed} {PRETRAINING}")
            yield self._trained(arm, seed, kind, tuning.step_seconds, *needs)
            yield self._asks(arm, seed, kind, kind, tuning.asked, {})

    def _trained(self, arm: str, seed: int, kind: str, seconds: float, *after: str) -> Job:
        summary = RunDirectory(self.run(arm, seed, kind)).summary
        return Job(
            name=f"{arm} {seed} {kind}",
            arguments=("train", *self.config(arm, seed, kind)),
            after=("encoder", *after),
            is_done=lambda: _is_whole(summary),
            seconds=START_SECONDS + 10 + seconds * self.steps[kind],
        )

    def _asks(
        self,
        arm: str,
        seed: int,
        trained: str,
        protocol: str,
        settings: AskedConfig,
        losses: Mapping[Path, list[str]],
    ) -> Job:
        """All that a model is asked."""
        evaluations = {**losses}
        rows = 0.0
        for each in (one for group in self.asked(arm, seed, protocol).values() for one in group):
            evaluations[each.out] = [
                *(str(each.run), "--tasks", ",".join(settings.tasks), "--leave-out-long"),
                *("--rows", str(settings.rows), "--template", str(each.template)),
                *("--demonstrations", str(each.demonstrations)),
            ]
            rows += settings.rows * len(settings.tasks) * (1 + each.demonstrations / 2)
        return Job(
            name=f"{arm} {seed} {protocol} asked",
            arguments=(
                "tools.comparison.several",
                *(
                    shlex.join([*arguments, "--out", str(out)])
                    for out, arguments in evaluations.items()
                    if not _is_whole(out)
                ),
            ),
            after=("tasks", f"{arm} {seed} {trained}"),
            is_done=lambda: all(map(_is_whole, evaluations)),
            seconds=START_SECONDS + 8 * len(losses) + rows / _ROWS_A_SECOND,
        )


def read_whole(path: Path) -> Any:
    """What a command has written at its end; None where it has not, or not to the end."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def _is_whole(path: Path) -> bool:
    return read_whole(path) is not None
