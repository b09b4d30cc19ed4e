"""`python -m tests.tools.scores_by_entrance RUN TASKS`: lm-eval's scores, whoever answers it.

It asks our registered model, its own `hf` model on the export, and `tools.serve`. Writes
`out/lm-eval.json`: task, entrance, metrics, answers_equal, log_likelihood_difference.
"""

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tools.arguments import Parser, local_path, whole
from tools.command import command_line, write_json
from tools.harness.tasks import write_tasks
from tools.hub.folder import write_folder
from train.errors import UserError
from train.loading import load_config
from train.storage.place import Place
from train.tasks.task import load_tasks

PYTHON: Final = Path(".venv/harness/bin/python")
NEAR_NATS: Final = 1e-4
ENTRANCES: Final = ("semicausal", "hf", "local-completions")
Sample = dict[str, Any]


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Ask all three; 1 where they differ."""
    parser = Parser(prog="python -m tests.tools.scores_by_entrance", description=__doc__)
    parser.add_argument("run", type=local_path)
    parser.add_argument("tasks", help="all, names or files, with commas")
    parser.add_argument("--rows", type=whole(least=1), help="of each task; default: all")
    parser.add_argument("--batch", type=whole(least=1), default=8)
    parser.add_argument("--out", type=local_path, default=Path("out"))
    options = parser.parse_args(arguments)
    if not PYTHON.exists():
        raise UserError("lm-eval is not installed: run make .venv/harness/installed")
    rows = compared(
        options.run, options.tasks, out=options.out, rows=options.rows, batch=options.batch
    )
    write_json(options.out / "lm-eval.json", rows)
    table = Table("task", "entrance", "metrics", "equal", "furthest")
    for row in rows:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in row["metrics"].items())
        far = f"{row['log_likelihood_difference']:.0e}"
        table.add_row(
            row["task"], row["entrance"], metrics, "yes" if row["answers_equal"] else "NO", far
        )
    Console().print(table)
    return 0 if all(row["answers_equal"] for row in rows) else 1


def compared(
    run: Path, tasks: str, *, out: Path, rows: int | None, batch: int
) -> list[dict[str, Any]]:
    """A row for each task and entrance, all held against the first entrance.

    Args:
        run: a run or one of its checkpoints.
        tasks: names or files, with commas.
        out: directory for what is left.
        rows: of each task at most.
        batch: requests that are answered at once.
    """
    place = (out / "lm-eval").absolute()
    names = [
        write_tasks(task, place / "tasks", split="test", most_rows=rows, has_spans=False)
        for task in load_tasks(tasks.split(","))
    ]
    folder = place / "export"
    if not folder.exists():
        write_folder(Place.of(run), folder)
    config = load_config(Place.of(run))
    found: list[dict[str, Any]] = []
    first: dict[str, list[Sample]] = {}
    for entrance in ENTRANCES:
        with _model(entrance, run, folder, slots=config.built_model.decoder.max_tokens) as model:
            left = place / entrance
            _lm_eval(
                *("--model", entrance, "--model_args", model, "--batch_size", str(batch)),
                *("--include_path", str(place / "tasks"), "--tasks", ",".join(names)),
                *("--output_path", str(left / "found.json"), "--log_samples"),
                home=place / "home",
            )
        (path,) = sorted(left.glob("found*.json"))[-1:]
        results = json.loads(path.read_text())["results"]
        for name in names:
            (path,) = sorted(left.glob(f"samples_{name}_*.jsonl"))[-1:]
            samples = [json.loads(line) for line in path.read_text().splitlines()]
            samples.sort(key=lambda sample: sample["doc_id"])
            theirs = first.setdefault(name, samples)
            pairs = [*zip(samples, theirs, strict=True)]
            metrics = {
                key: value
                for key, value in results[name].items()
                if isinstance(value, float) and "stderr" not in key
            }
            far = max((_distance(a, b) for a, b in pairs), default=0.0)
            equal = sum(_answer(a) == _answer(b) for a, b in pairs)
            found.append(
                {
                    "task": name,
                    "entrance": entrance,
                    "metrics": metrics,
                    "samples": len(pairs),
                    "equal_answers": equal,
                    "answers_equal": equal == len(pairs) and far <= NEAR_NATS,
                    "log_likelihood_difference": far,
                }
            )
    return found


def _answer(sample: Sample) -> Any:
    """What was said, or the likeliest choice."""
    answers = [response[0] for response in sample["resps"]]
    if isinstance(answers[0], str):
        return answers
    values = [float(answer[0]) for answer in answers]
    best = max(values)
    return next(at for at, value in enumerate(values) if best - value <= NEAR_NATS)


def _distance(one: Sample, other: Sample) -> float:
    pairs = zip(one["resps"], other["resps"], strict=True)
    return max(
        (abs(float(a[0][0]) - float(b[0][0])) for a, b in pairs if not isinstance(a[0], str)),
        default=0.0,
    )


@contextmanager
def _model(entrance: str, run: Path, folder: Path, *, slots: int) -> Generator[str]:
    """The `--model_args` of an entrance, as long as it answers."""
    if entrance == "semicausal":
        yield f"checkpoint={run}"
    elif entrance == "hf":
        yield f"pretrained={folder},trust_remote_code=True,dtype=float32"
    else:
        command = [sys.executable, "-m", "tools.serve", str(run), "--port", "0", "--name", "it"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                url = server.stdout.readline().split(" answers at ")[1].split()[0]
                yield (
                    f"model=it,base_url={url}/completions,tokenizer={folder},"
                    f"tokenizer_backend=huggingface,add_bos_token=True,max_length={slots + 1},"
                    "num_concurrent=4"
                )
            finally:
                server.terminate()


def _lm_eval(*arguments: str, home: Path) -> None:
    subprocess.run(
        [str(PYTHON), "-m", "tools.harness", "run", *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)},
        check=True,
    )


if __name__ == "__main__":
    sys.exit(main())
