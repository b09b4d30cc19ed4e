"""Commands that documentation shows are understood, as far as that is seen without running them."""

import argparse
import re
from pathlib import Path

import pytest

from tests import warm
from tests.readme.shown import Command, commands, configurations
from tests.tools.parsers import WITHIN, parser_of
from train.config import RunConfig
from train.config_files import load
from train.tasks.task import Task

PAGES = ["README.md", "docs/comparison.md", "docs/exit-status.md", "docs/promises.md"]
TINY = "configs/experiment/tiny.yaml"
LARGE = "configs/experiment/metalm_1p3b.yaml"
HOSTS = {".", "sudo", "curl", ".venv/bin/pip"}
"""Whose arguments are not ours."""

SHOWN = [
    pytest.param(command, id=f"{page}:{command.line}")
    for page in PAGES
    for command in commands(warm.REPOSITORY / page)
]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(warm.REPOSITORY)


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_is_understood(command: Command) -> None:
    require_files(command.words)
    words = [*command.words]
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if words[0] == "eval":
        words = words[1].removeprefix("$(").removesuffix(")").split()
    match words:
        case ["make", *rest]:
            require_targets(rest)
        case ["python", "-m", module, *rest]:
            require_arguments(module, rest, is_whole=command.is_whole)
        case ["deepspeed", "--module", module, *rest]:
            require_arguments(module, rest, is_whole=command.is_whole)
        case ["sbatch", script, *rest]:
            assert Path(script).is_file()
            if "evaluate" not in script:
                require_keys([word for word in rest if not word.startswith("-")])
        case _:
            assert words[0] in HOSTS, f"{words[0]}: nobody looks at such a command"


@pytest.mark.parametrize("page", PAGES)
def test_configurations_load(page: str, tmp_path: Path) -> None:
    for number, text in enumerate(configurations(Path(page))):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text.replace("../", f"{Path('configs').resolve()}/"))
        if "templates:" in text:
            load(Task, [str(file)])
        elif "run_directory:" in text:
            load(RunConfig, [str(file)])
        else:
            load(RunConfig, [LARGE, "data.corpus=null", str(file)])


def test_no_page_is_read_in_vain() -> None:
    assert len(commands(Path("README.md"))) > 70
    assert len(configurations(Path("README.md"))) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("make bnech", "bnech"),
        ("make test ARG=1", "ARG"),
        ("python -m tools.evaluat runs/a", "tools.evaluat"),
        ("python -m tools.evaluate runs/a --tsks all", "--tsks"),
        ("python -m tools.plan cost configs/experiment/metal.yaml", r"metal\.yaml"),
        ("python -m train A.yaml optim.rate=1", r"optim\.rate"),
        ("sbatch slurm/train.sh A.yaml", r"slurm/train\.sh"),
        ("frobnicate", "frobnicate"),
    ],
)
def test_what_is_wrong_is_seen(words: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((Exception, SystemExit)) as caught:
        test_a_command_is_understood(Command(1, tuple(words.split()), is_whole=True))
    assert re.search(message, f"{caught.value} {capfd.readouterr().err}")


def require_files(words: tuple[str, ...]) -> None:
    """What is named by its place in the repository is there."""
    for word in words:
        if re.match(r"(configs|docs|slurm|tests)/[\w./]+\.\w+$", word):
            assert Path(word).is_file(), word


def require_targets(words: list[str]) -> None:
    """Targets and variables of the Makefile."""
    makefile = Path("Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        known = rf"\$\({name}\)" if is_variable else rf"^(\S+ )*{re.escape(name)}( \S+)*:"
        assert re.search(known, makefile, re.M), f"make knows no {name}"


def require_arguments(module: str, words: list[str], *, is_whole: bool) -> None:
    """Options that the command has; and keys, where it takes a configuration."""
    path = Path(module.replace(".", "/"))
    name = f"{module}.__main__" if path.is_dir() else module
    before = max(
        (begin for begin in WITHIN.get(module, [()]) if tuple(words[: len(begin)]) == begin),
        key=len,
        default=(),
    )
    parser = parser_of(name, before)
    words = words[len(before) :]
    if not is_whole:
        known = parser._option_string_actions
        assert all(word.partition("=")[0] in known for word in words if word.startswith("--"))
        return
    is_plain = any(
        isinstance(each, argparse._SubParsersAction) or each.nargs == argparse.REMAINDER
        for each in parser._actions
    )
    read = parser.parse_args if is_plain else parser.parse_intermixed_args
    options = vars(read(words))
    require_keys(options.get("arguments") or options.get("overrides") or [])


def require_keys(words: list[str]) -> None:
    """Overrides name keys that there are, whatever file of the reader's they change."""
    keys = [word for word in words if "=" in word]
    based = ["init_from=base"] if any(key.startswith("lora=") for key in keys) else []
    load(RunConfig, [TINY, *based, *keys])
