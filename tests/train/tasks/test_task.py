"""What a task file may say, and how its faults are told."""

from pathlib import Path

import pytest

from tests.train.tasks.making import task
from train.errors import ConfigError
from train.tasks.task import load_tasks


def faults(directory: Path, *changes: tuple[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        task(directory, changes=changes)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("cluster:", "clustre:", "clustre: no such key; did you mean cluster?"),
        ("cluster: inference", "", "cluster: is missing"),
        ("kind: likelihood", "kind: likely", "scoring.kind: there is no kind likely"),
        ("[accuracy]", "[acuracy]", "metrics.0: input should be 'accuracy', 'exact_match'"),
        ("[accuracy]", "[spice]", "metrics.0: spice downloads a parser when it runs, and"),
        ("{{ premise }}", "{{ premise }", "templates.0.input: cannot be read as a jinja template"),
        ("label: label", "label: label(", "answer.label: cannot be read as a jinja template"),
        ("label: label", "label: label }} {{ label", "answer.label: cannot be read as a jinja exp"),
        ("name: backwards", "name: first", "templates: two are called first"),
        ("Does it", "Is {{ answer }} it", "templates.0.input: names the answer, and would give"),
        ("[[{{ premise }}\n", "[[[[\n", "templates.0.input: its span"),
        ("name: senses", "name: Sen ses", "name: string should match pattern"),
    ],
)
def test_a_fault_has_its_key_and_a_remedy(tmp_path: Path, old: str, new: str, told: str) -> None:
    found = faults(tmp_path, (old, new))
    assert any(f"task.yaml: {told}" in line for line in found), found


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    found = faults(tmp_path, ("cluster:", "clustre:"), ("[accuracy]", "[]"), ("label: label", ""))
    assert [line.split(": ")[1] for line in found] == [
        "cluster",
        "answer.label",
        "metrics",
        "clustre",
    ]


def test_likelihood_is_of_choices(tmp_path: Path) -> None:
    text = "kind: text\n  text: label"
    old = 'kind: choice\n  choices: ["yes", "no"]\n  label: label'
    assert "scoring.kind: likelihood is of choices" in faults(tmp_path, (old, text))[0]


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no task package_sectoin .*mean package_section"):
        load_tasks(["package_sectoin"])


def test_every_shipped_task_loads() -> None:
    tasks = load_tasks(["all"])
    assert [task.name for task in tasks] == [
        path.stem for path in sorted(Path("configs/task").glob("*.yaml"))
    ]
