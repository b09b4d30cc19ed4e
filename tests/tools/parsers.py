"""The parsers of all commands, found in the commands themselves."""

import argparse
import ast
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests import warm
from tools.plan.__main__ import COMMANDS

WITHIN = {"tools.harness": [("tasks",)], "tools.plan": [(), *((name,) for name in COMMANDS)]}
"""First arguments by which a command chooses among parsers of its own."""


@dataclass(frozen=True)
class Command:
    """One parser of a command.

    Attributes:
        module: of the command.
        before: what chooses the parser.
        actions: its arguments.
    """

    module: str
    before: tuple[str, ...]
    actions: tuple[argparse.Action, ...]

    @property
    def main(self) -> Callable[[Sequence[str]], int]:
        return importlib.import_module(self.module).main

    def __str__(self) -> str:
        return " ".join([self.module.removesuffix(".__main__"), *self.before])


def modules() -> list[str]:
    """All that are run with `python -m`."""
    found: list[str] = []
    for folder in ("tools", "train", "tests/distributed", "tests/train"):
        for path in sorted((warm.REPOSITORY / folder).rglob("*.py")):
            blocks = (each for each in ast.parse(path.read_text()).body if isinstance(each, ast.If))
            if any("sys.exit(main())" in map(ast.unparse, block.body) for block in blocks):
                found.append(".".join(path.relative_to(warm.REPOSITORY).with_suffix("").parts))
    return found


def parser_of(module: str, before: Sequence[str]) -> argparse.ArgumentParser:
    """What a command would parse its arguments with."""

    class Caught(BaseException):
        pass

    def catch(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise Caught(self)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_known_args", "parse_known_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, catch)
        try:
            importlib.import_module(module).main([*before])
        except Caught as caught:
            return caught.args[0]
    raise AssertionError(f"{module} parses no arguments")


def commands() -> Iterator[Command]:
    for module in modules():
        name = module.removesuffix(".__main__")
        for before in WITHIN.get(name, [()]):
            parsers = [(before, parser_of(module, before))]
            while parsers:
                words, parser = parsers.pop(0)
                inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
                actions = [
                    action
                    for action in parser._actions
                    if action not in inner and not isinstance(action, argparse._HelpAction)
                ]
                for choice in inner:
                    parsers += [((*words, word), under) for word, under in choice.choices.items()]
                if not inner:
                    yield Command(module, words, tuple(actions))
