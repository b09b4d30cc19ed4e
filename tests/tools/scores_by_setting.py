"""`python -m tests.tools.scores_by_setting RUN TASKS`: scores whatever the batch and the layout.

Every setting scores the tasks from nothing, each in processes of its own, and is held against the
first. Writes `out/scores.json`: task, setting, score, standard_error, answers_equal.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.command import command_line, write_json

SETTINGS: dict[str, tuple[int, list[str]]] = {
    "batch 1": (1, ["--batch", "1"]),
    "batch 8": (1, ["--batch", "8"]),
    "batch 64": (1, ["--batch", "64"]),
    "dp2": (2, ["--batch", "8"]),
    "tp2": (2, ["--batch", "8", "--tensor", "2"]),
    "pp2": (2, ["--batch", "8", "--pipeline", "2"]),
}
"""Ranks and options."""


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run all settings; 1 where answers differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.scores_by_setting")
    parser.add_argument("run", type=Path)
    parser.add_argument("tasks")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options, rest = parser.parse_known_args(arguments)
    rows = compared(options.run, options.tasks, out=options.out, arguments=rest)
    write_json(options.out / "scores.json", rows)
    table = Table("task", "setting", "score", "error", "equal", "furthest")
    for row in rows:
        numbers = (f"{row['score']:.3f}", _number(row["standard_error"]))
        equal = "yes" if row["answers_equal"] else "NO"
        far = f"{row['log_likelihood_difference']:.0e}"
        table.add_row(row["task"], row["setting"], *numbers, equal, far)
    Console().print(table)
    return 0 if all(row["answers_equal"] for row in rows) else 1


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def compared(run: Path, tasks: str, *, out: Path, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each task and setting.

    Args:
        run: a run or one of its checkpoints.
        tasks: names or files, with commas.
        out: directory for what each setting leaves.
        arguments: further ones of `tools.evaluate`.
    """
    rows: list[dict[str, Any]] = []
    first: dict[str, list[dict[str, Any]]] = {}
    for setting, (ranks, options) in SETTINGS.items():
        kept = out / "scores-by-setting" / setting.replace(" ", "-")
        given = [str(run), "--tasks", tasks, "--scores", str(kept), *options, *arguments]
        (kept / "answers.jsonl").unlink(missing_ok=True)
        _evaluate([*given, "--out", str(kept / "scores.json")], ranks=ranks)
        for task in json.loads((kept / "scores.json").read_text())["tasks"]:
            (path,) = kept.glob(f"step_*/*/{task['task']}.jsonl")
            answers = [json.loads(line) for line in path.read_text().splitlines()]
            theirs = first.setdefault(task["task"], answers)
            pairs = [*zip(answers, theirs, strict=True)]
            rows.append(
                {
                    "task": task["task"],
                    "setting": setting,
                    "score": task["score"],
                    "standard_error": task["standard_error"],
                    "answers_equal": all(a["answer"] == b["answer"] for a, b in pairs),
                    "log_likelihood_difference": max(
                        (
                            abs(x - y)
                            for a, b in pairs
                            for x, y in zip(a["scores"], b["scores"], strict=True)
                        ),
                        default=0.0,
                    ),
                }
            )
    return rows


def _evaluate(arguments: Sequence[str], *, ranks: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tools.evaluate", *arguments],
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.DEVNULL,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        if process.wait(timeout=600):
            raise AssertionError(f"tools.evaluate ended with {process.returncode}")


if __name__ == "__main__":
    sys.exit(main())
