"""The page of promises names tests that there are."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_each_promise_names_tests_that_there_are() -> None:
    rows = [
        line
        for line in (REPOSITORY / "docs/promises.md").read_text().splitlines()
        if line.startswith("|") and not line.startswith(("| promise", "|---"))
    ]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((REPOSITORY / file).read_text())
            tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert (test or "test_").startswith("test_"), row
            assert not test or test in tests, f"{file} has no {test}"
