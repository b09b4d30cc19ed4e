"""`python -m tests.tools.scores_by_setting RUN TASKS`: scores whatever the batch and the layout.

Every setting scores the tasks from nothing, each in processes of its own, and is held against the
first; the last is killed midway and goes on. Writes `out/scores.json`: task, setting, score,
standard_error, answers_equal (log-likelihoods within 1e-4 besides), log_likelihood_difference (as
the task counts it, of a token, a byte or a choice), furthest_of_all_tasks (of whole choices, in
nats), ties (rows whose best choices are as good as each other).
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
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
NEAR_NATS = 1e-4
KILLED = "killed, then batch 8"


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
    table = Table("task", "setting", "score", "error", "equal", "furthest", "ties")
    for row in rows:
        numbers = (f"{row['score']:.3f}", _number(row["standard_error"]))
        equal = "yes" if row["answers_equal"] else "NO"
        far = f"{row['log_likelihood_difference']:.0e}"
        table.add_row(row["task"], row["setting"], *numbers, equal, far, str(len(row["ties"])))
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
    computed = 0
    known: dict[str, float] = {}
    for setting, (ranks, options) in {**SETTINGS, KILLED: (1, ["--batch", "8"])}.items():
        kept = out / "scores-by-setting" / setting.replace(" ", "-").replace(",", "")
        given = [str(run), "--tasks", tasks, "--scores", str(kept), *options, *arguments]
        given += ["--out", str(kept / "scores.json")]
        answers_file = kept / "answers.jsonl"
        answers_file.unlink(missing_ok=True)
        found = _killed(given, answers_file, once=computed // 2) if setting == KILLED else 0
        _evaluate(given, ranks=ranks)
        again = json.loads((kept / "scores.json").read_text())["computed"]
        computed = computed or again
        if found + again != computed:
            raise AssertionError(
                f"{setting}: {found} answers were there and {again} were computed, of {computed}"
            )
        told = _likelihoods(answers_file)
        known = known or told
        if told.keys() != known.keys():
            raise AssertionError(f"{setting}: other requests were answered")
        furthest = max((abs(told[key] - known[key]) for key in told), default=0.0)
        for task in json.loads((kept / "scores.json").read_text())["tasks"]:
            (path,) = kept.glob(f"step_*/*/{task['task']}.jsonl")
            answers = [json.loads(line) for line in path.read_text().splitlines()]
            theirs = first.setdefault(task["task"], answers)
            pairs = [*zip(answers, theirs, strict=True)]
            far = max(
                (
                    abs(x - y)
                    for a, b in pairs
                    for x, y in zip(a["scores"], b["scores"], strict=True)
                ),
                default=0.0,
            )
            rows.append(
                {
                    "task": task["task"],
                    "setting": setting,
                    "score": task["score"],
                    "standard_error": task["standard_error"],
                    "answers_equal": all(a["answer"] == b["answer"] for a, b in pairs)
                    and furthest <= NEAR_NATS,
                    "log_likelihood_difference": far,
                    "furthest_of_all_tasks": furthest,
                    "rows": len(pairs),
                    "ties": [a["id"] for a in answers if a["tied"]],
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
    try:
        for process in processes:
            if process.wait(timeout=3600):
                raise AssertionError(f"tools.evaluate ended with {process.returncode}")
    finally:
        for process in processes:
            process.kill()  # none waits for one that has failed


def _killed(arguments: Sequence[str], answers: Path, *, once: int) -> int:
    """Kill an evaluation that has left some answers; how many it has left."""
    command = [sys.executable, "-m", "tools.evaluate", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and _lines(answers) < once:
            time.sleep(0.02)
        process.kill()
    return _lines(answers)


def _likelihoods(answers: Path) -> dict[str, float]:
    records = (json.loads(line) for line in answers.read_text().splitlines())
    return {each["key"]: each["log_likelihood"] for each in records if "log_likelihood" in each}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
