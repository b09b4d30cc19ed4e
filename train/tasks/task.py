"""What a task file says: where records are, how they are asked, and how answers count."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from model.config import Config, PathText
from train.config_files import load
from train.errors import ConfigError, UserError
from train.explain import shortened
from train.tasks import filling

TASKS: Final = Path("configs/task")
"""Where tasks are that are called by name; those in folders are none of `all`."""

Split = Literal["train", "validation", "test"]


def _not_spice(name: object) -> object:
    if name == "spice":
        raise ValueError(
            "spice downloads a parser when it runs, and nothing here downloads in an evaluation: "
            "ask for cider, caption_bleu, caption_rouge or meteor"
        )
    return name


_Metric = Literal[
    "accuracy", "exact_match", "f1", "rouge", "bleu", "word_accuracy", "vqa_accuracy",
    "cider", "caption_bleu", "caption_rouge", "meteor",
]  # fmt: skip
Metric = Annotated[_Metric, BeforeValidator(_not_spice)]


def _that_fills(kind: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        try:
            kind(text)
        except UserError as error:  # of marks, which prompts have too
            raise ValueError(str(error).replace("the prompt's", "its", 1)) from None
        return text

    return AfterValidator(check)


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=60)]
Expression = Annotated[str, _that_fills(filling.Expression)]
"""In jinja's language over the columns of a record, such as `answers.text` or `label | int`."""
Text = Annotated[str, Field(min_length=1), _that_fills(filling.Text)]
"""A jinja template over the columns of a record: `Premise: {{ premise }}`."""
Marked = Annotated[str, Field(min_length=1), _that_fills(filling.Marked)]
"""The same, in which `[[` and `]]` enclose what the encoder reads (`train/prompt.py`)."""


class SourceConfig(Config):
    """Records: a directory with a file or a directory for each split."""

    directory: PathText
    """Of the splits, see `train.tasks.records`."""
    splits: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)
    """What a split is called there, where it is not called as here."""
    keep: Expression | None = None
    """What is true of the records that count; others are passed over, such as those unlabelled."""
    group: Expression | None = None
    """What records share that are no independent observations, such as their passage; standard
    errors are then of groups."""


class ChoiceConfig(Config):
    """The answer is one of several texts."""

    kind: Literal["choice"]
    choices: Expression | list[Text]
    """The texts, or what gives their list."""
    label: Expression
    """Says which is right."""
    labels: Expression | list[str | int | bool] | None = None
    """What `label` is for each of them in order; counted from 0 where nothing is said."""
    before: list[Text] | None = None
    """What the decoder reads before each choice, unscored: where a sentence has a gap, its
    beginning with each filling, whose ends are the choices."""


class TextConfig(Config):
    """The answer is a text of its own."""

    kind: Literal["text"]
    text: Expression
    """It, or the list of those that are right, of which the first is learned."""


class TemplateConfig(Config):
    """A way to ask."""

    name: Name
    input: Marked
    """What is given. Each line outside of spans is a paragraph. `choices` are the texts to choose
    from. The answer follows behind a space."""
    choices: Expression | list[Text] | None = None
    """The texts to choose from are called otherwise here."""
    inverted: Text | None = None
    """Learn this text instead of the answer, which `input` may then give as `answer`; the template
    is not evaluated."""


class LikelihoodConfig(Config):
    """The likeliest choice is the answer."""

    kind: Literal["likelihood"]
    per: Literal["token", "byte", "choice"] = "token"
    """What a choice's log-likelihood is divided by; `choice`: by nothing."""


class GenerateConfig(Config):
    """What is generated is the answer."""

    kind: Literal["generate"]
    max_new_tokens: Annotated[int, Field(ge=1, le=2**16)] = 32
    beams: Annotated[int, Field(ge=1, le=64)] = 1
    """1 is greedy."""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 0.6
    """The power of the length in beam search (the paper's 0.6, with 4 beams)."""


class DemonstrationsConfig(Config):
    """Where in-context demonstrations come from."""

    split: Literal["train", "validation", "test"] = "train"
    """Winograd's come from the test split, an example never showing itself."""


class Task(Config):
    """A task.

    Source: MetaLM §3.3 to §3.6 (protocols), appendix (templates).
    """

    name: Name
    cluster: Name
    """Tasks of one kind, held out together in instruction tuning."""
    held_out: Name | None = None
    """What of its test training has never met: a vendor, an engine, a person, an episode."""
    answer_from: Literal["input", "memory"] = "input"
    """`memory`: the answer is a fact that the input does not give (closed book)."""
    source: SourceConfig
    columns: dict[Name, Expression] = Field(default_factory=dict)
    """Further columns, made of those of the records, and of those before them."""
    answer: Annotated[ChoiceConfig | TextConfig, Field(discriminator="kind")]
    templates: Annotated[list[TemplateConfig], Field(min_length=1)]
    """The first is that of the protocols that take one."""
    scoring: Annotated[LikelihoodConfig | GenerateConfig, Field(discriminator="kind")]
    metrics: Annotated[list[Metric], Field(min_length=1)]
    """The first is the one that counts."""
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "Task":
        faults: list[str] = []
        if self.scoring.kind == "likelihood" and self.answer.kind != "choice":
            faults.append("scoring.kind: likelihood is of choices, and answer.kind is text")
        if self.answer.kind == "choice" and self.answer.before is not None:
            if isinstance(self.answer.choices, list) and len(self.answer.before) != len(
                self.answer.choices
            ):
                faults.append("answer.before: must have a text for each of answer.choices")
            if self.scoring.kind != "likelihood":
                faults.append("answer.before: is for scoring.kind: likelihood")
        names = [template.name for template in self.templates]
        for name in sorted({name for name in names if names.count(name) > 1}):
            faults.append(f"templates: two are called {name}")
        if self.templates[0].inverted is not None:
            faults.append("templates.0.inverted: the first template asks for the answer itself")
        for number, template in enumerate(self.templates):
            if template.inverted is None and "answer" in filling.Marked(template.input).names:
                faults.append(f"templates.{number}.input: names the answer, and would give it away")
        if faults:
            raise ValueError("\n".join(faults))
        return self


def load_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by name, by file, by directory below `configs/task`, or `all` that lie in it itself.

    Raises:
        ConfigError: with all faults of all of them.
    """
    faults: list[str] = []
    tasks: dict[str, Task] = {}
    for path in _paths(names, faults):
        try:
            task = load(Task, [str(path)])
        except ConfigError as error:
            lines = str(error).splitlines()
            faults += [f"{path}: {line.removeprefix(f'{path}: ')}" for line in lines]
            continue
        if task.name in tasks:
            faults.append(
                f"{path}: another task is called {task.name}: rename one, or name it once"
            )
        tasks[task.name] = task
    if faults:
        raise ConfigError("\n".join(faults))
    return list(tasks.values())


def _paths(names: Sequence[str], faults: list[str]) -> list[Path]:
    found = sorted(TASKS.rglob("*.yaml"))
    known = {path.stem: path for path in found}
    groups: dict[str, list[Path]] = {}
    for path in found:
        groups.setdefault("all" if path.parent == TASKS else path.parent.name, []).append(path)
    paths: list[Path] = []
    for name in names:
        if name in groups:
            paths += groups[name]
        elif name in known:
            paths.append(known[name])
        elif "/" in name or name.endswith((".yaml", ".yml")):
            paths.append(Path(name))
        else:
            near = get_close_matches(name, [*known, *groups], n=1)
            there = ", ".join(known) or "none"
            hint = f"did you mean {near[0]}?" if near else f"there are {shortened(there, 500)}"
            faults.append(f"there is no task {shortened(name, 60)} in {TASKS}: {hint}")
    return paths
