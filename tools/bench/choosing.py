"""Four choices behind a context: our scoring beside lm-eval's own model on the export.

lm-eval stands in an environment of its own, which also sees ours: there both take turns in one
process (`python -m tools.bench.choosing CHECKPOINT FOLDER`), and this one reads what came of it.
"""

import importlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch

from model import torchvision_free
from tools.bench.exported import WORDS, exported, word
from tools.bench.rounds import Findings, ratio, spread
from tools.bench.shapes import Plan
from tools.bench.training import build
from train.errors import UserError

PYTHON: Final = Path(".venv/harness/bin/python")
CONTEXTS: Final = 32
BATCH: Final = 16
"""What both read at once: contexts of ours, contexts with one choice of lm-eval's."""
CHOICES: Final = 4
CHOICE_WORDS: Final = 3
WITHIN: Final = 1e-3
"""Nats by which two sums of log-probabilities may differ."""


def has_harness() -> bool:
    """Whether lm-eval is installed."""
    return PYTHON.exists()


def against_lm_eval(plan: Plan) -> Findings:
    """Seconds of both for the log-likelihoods of all choices, in turns.

    Raises:
        AssertionError: their answers differ.
    """
    shape = plan.ranks
    settings = {
        "rounds": plan.heavy.rounds,
        "contexts": CONTEXTS,
        "context_words": shape.sequence_tokens // 8,
        "threads": torch.get_num_threads(),
    }
    with exported(build(shape.semi_causal()), sequence_tokens=shape.sequence_tokens) as files:
        done = subprocess.run(
            [
                *(str(PYTHON), "-m", "tools.bench.choosing"),
                *(str(files.checkpoint), str(files.folder), json.dumps(settings)),
            ],
            env=os.environ | {"PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise UserError(f"lm-eval's process failed: {done.stderr[-3000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["difference"] < WITHIN, f"log-likelihoods differ by {told['difference']}"
    assert told["answers_equal"], "other choices are likeliest"
    found = Findings(settings=shape.settings | settings | {"difference": told["difference"]})
    seconds: dict[str, list[float]] = told["seconds"]
    processor: dict[str, list[float]] = told["processor"]
    for name, taken in seconds.items():
        found.contestants[name] = {
            "step_seconds": spread(taken).median,
            "step_processor_seconds": spread(processor[name]).median,
            "tokens_per_second": told["tokens"] / spread(taken).median,
            "tokens_per_step": told["tokens"],
            "parameters": told["parameters"],
            "precision": "fp32",
        }
    for ratios, taken in ((found.ratios, seconds), (found.processor_ratios, processor)):
        ratios["choices_vs_lm_eval"] = ratio(taken["lm-eval"], taken["semicausal"])
    return found


def main(checkpoint: str, folder: str, settings: dict[str, int]) -> dict[str, Any]:
    """Both in turns, each time about other contexts: what was answered once, ours may keep."""
    torchvision_free.install()
    from tools.harness.model import Harness  # needs to be told of no torchvision first

    torch.set_num_threads(settings["threads"])
    model: Any = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=folder,
        trust_remote_code=True,
        dtype="float32",
        device="cpu",
        batch_size=BATCH,
    )
    instance: Any = importlib.import_module("lm_eval.api.instance").Instance
    ours = Harness(checkpoint, batch=BATCH)
    words = random.Random(1)

    def some(count: int) -> str:
        return " ".join(word(words.randrange(WORDS)) for _ in range(count))

    seconds: dict[str, list[float]] = {"semicausal": [], "lm-eval": []}
    processor: dict[str, list[float]] = {"semicausal": [], "lm-eval": []}
    difference, equal, tokens = 0.0, True, 0
    for number in range(settings["rounds"] + 1):
        contexts = [some(settings["context_words"]) for _ in range(settings["contexts"])]
        pairs = [(c, f" {some(CHOICE_WORDS)}") for c in contexts for _ in range(CHOICES)]
        tokens = sum(len(ours.tokens(text)) for pair in pairs for text in pair)
        asked = [instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
        answers: dict[str, list[float]] = {}
        turns = {
            "semicausal": lambda pairs=pairs: ours.likelihoods(pairs),
            "lm-eval": lambda asked=asked: model.loglikelihood(asked, disable_tqdm=True),
        }
        for name in sorted(turns, reverse=number % 2 == 0):
            started, processor_started = time.perf_counter(), time.process_time()
            answers[name] = [value for value, _ in turns[name]()]
            if number:  # the first finds its memory
                seconds[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - processor_started)
        both = torch.tensor([answers["semicausal"], answers["lm-eval"]], dtype=torch.float64)
        difference = max(difference, float((both[0] - both[1]).abs().max()))
        best = both.view(2, -1, CHOICES).argmax(dim=2)
        equal &= bool((best[0] == best[1]).all())
    parameters = sum(p.numel() for p in model.model.parameters())
    return {
        "seconds": seconds,
        "processor": processor,
        "difference": difference,
        "answers_equal": equal,
        "tokens": tokens,
        "parameters": parameters,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))) + "\n")
