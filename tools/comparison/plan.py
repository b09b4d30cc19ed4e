"""What is compared: arms, seeds, protocols; how many steps fit the hours."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from model.config import Config, PathText
from train.errors import UserError

PRETRAINING: Final = "pretraining"
IN_CONTEXT: Final = "in_context"
LEAST_STEPS: Final = 4
CHECKPOINTS: Final = 4
"""Of each run: what is lost where it is killed is a quarter of it at most."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]


class StepsConfig(Config):
    """How long runs of a kind may take."""

    share: Share
    """Of the hours that are for training."""
    step_seconds: Seconds
    """A step on one core, as the mean arm took it where the plan was made."""


class AskedConfig(Config):
    """What models are asked."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names in `configs/task`, or files."""
    rows: Count
    """The first this many of each task's test split."""
    templates: list[Annotated[int, Field(ge=0, le=99)]] = Field(
        default_factory=lambda: [0], min_length=1
    )
    """Numbers of templates; scores are the mean over them."""


class DocumentsConfig(Config):
    """How tasks become documents, see `python -m tools.tasks corpus`."""

    protocol: Literal["multitask", "single", "instruction"]
    records: Count
    """Of each task; small ones are gone through again."""
    records_of: dict[Name, Count] = Field(default_factory=dict)
    """Of single tasks, where fewer or more are wanted: each token of a long answer weighs as much
    in the loss as the one that tells labels apart."""
    hold_out: list[Name] = Field(default_factory=list)
    """Clusters whose tasks are not trained on."""


class TuningConfig(StepsConfig):
    """A protocol whose models are finetuned."""

    documents: DocumentsConfig
    tasks: Annotated[list[str], Field(min_length=1)]
    """Trained on, as far as they are not held out."""
    asked: AskedConfig


class InContextConfig(Config):
    """What pretrained models are asked behind demonstrations."""

    demonstrations: Annotated[list[Annotated[int, Field(ge=0, le=64)]], Field(min_length=1)]
    asked: AskedConfig


class Plan(Config):
    """A comparison. Of each arm there is a directory with a configuration for each protocol."""

    configs: PathText = "configs/comparison"
    """Holds ARM/PROTOCOL.yaml, and ARM/pretraining.yaml."""
    data: PathText = "data/comparison"
    """Is to hold the corpora, and the encoder as the configurations name it."""
    encoder: PathText
    """Folder of transformers: a text encoder, whose tokenizer all arms have."""
    text: list[str] = Field(default_factory=list)
    """Sources to pretrain on, see `python -m tools.corpus`; none: documentation."""
    arms: Annotated[list[Name], Field(min_length=2)]
    """The first is what the others are held against."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
    """Of first weights and of the order of the data; arms of one seed read the same."""
    cores: Count
    """Runs side by side that the hours are meant for."""
    fixed_hours: Annotated[float, Field(ge=0, le=1e3)]
    """What corpora, starting and evaluating take."""
    pretraining: StepsConfig
    tuning: dict[Name, TuningConfig]
    in_context: InContextConfig

    @model_validator(mode="after")
    def _fits_together(self) -> "Plan":
        total = sum(kind.share for kind in (self.pretraining, *self.tuning.values()))
        if total > 1 + 1e-9:
            raise ValueError(
                f"pretraining.share and those of tuning: are {total:g} together, above 1"
            )
        for key, names in (("arms", self.arms), ("seeds", self.seeds)):
            if len(set(names)) < len(names):
                raise ValueError(f"{key}: one is named twice")
        if taken := {PRETRAINING, IN_CONTEXT} & set(self.tuning):
            raise ValueError(f"tuning.{taken.pop()}: has a meaning of its own: call it otherwise")
        return self

    @property
    def documents(self) -> dict[str, Any]:
        """What decides the corpora."""
        tuning = {
            name: {"tasks": each.tasks, "documents": each.documents.model_dump(mode="json")}
            for name, each in self.tuning.items()
        }
        return {"encoder": self.encoder, "text": self.text, "tuning": tuning}

    def steps(self, hours: float) -> dict[str, int]:
        """Steps of each kind of run: of the plan and the hours alone, whatever the machine.

        Args:
            hours: for the whole comparison.

        Raises:
            UserError: they leave no room for training.
        """
        seconds = (hours - self.fixed_hours) * 3600 * self.cores
        if seconds <= 0:
            raise UserError(
                f"--hours: {hours:g} leave nothing for training, as {self.fixed_hours:g} are for "
                "corpora and evaluations: give more"
            )
        runs = len(self.arms) * len(self.seeds)
        kinds: dict[str, StepsConfig] = {PRETRAINING: self.pretraining, **self.tuning}
        return {
            name: max(LEAST_STEPS, round(seconds * kind.share / (runs * kind.step_seconds)))
            for name, kind in kinds.items()
        }
